from hypothesis import given
from hypothesis import strategies as st

from flowray.core.ordered import IndexedSet


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 8))))
def test_is_a_set_whose_members_have_positions(steps):
    ordered, model = IndexedSet(), set()
    for add, item in steps:
        if add:
            assert ordered.add(item) == (item not in model)
            model.add(item)
        else:
            assert ordered.discard(item) == (item in model)
            model.discard(item)
        assert set(ordered) == model
        assert sorted(ordered[index] for index in range(len(ordered))) == sorted(model)
        assert all(item in ordered for item in model)
