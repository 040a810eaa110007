import pytest

from flowray.core.admission import Admission, AdmissionPolicy
from flowray.errors import ConfigError

from .builders import task


def test_is_full_by_count_and_by_bytes():
    admission = Admission(AdmissionPolicy(max_open_tasks=2, max_open_bytes=1500))
    assert admission.full(task()) == ""
    admission.opened(task("a"))
    assert "max_open_bytes" in admission.full(task("b", prompt="x" * 600))
    admission.opened(task("b"))
    assert "max_open_tasks" in admission.full(task("c"))
    admission.closed(task("a"))
    assert admission.full(task("c")) == ""


def test_counts_go_back_to_zero():
    admission = Admission(AdmissionPolicy())
    tasks = [task(str(n), prompt="p" * n, key=f"k{n}") for n in range(50)]
    for one in tasks:
        admission.opened(one)
    for one in tasks:
        admission.closed(one)
    assert (admission.open_tasks, admission.open_bytes) == (0, 0)


def test_an_ended_task_is_remembered_by_id_and_key_until_newer_ones_push_it_out():
    """And never before it is on disk: neither the core nor the store would know it then."""
    admission = Admission(AdmissionPolicy(max_recent=2))
    for number in range(3):
        one = task(f"t{number}", key=f"k{number}", fingerprint="f")
        admission.opened(one)
        admission.closed(one)
    assert all(admission.recent(f"t{number}") for number in range(3))
    admission.on_disk(0)
    assert admission.recent("t0")
    admission.on_disk(admission.ended)
    assert not admission.recent("t0")
    assert admission.by_key("k0") is None
    assert admission.recent("t2")
    assert admission.by_key("k2") == ("t2", "f")


@pytest.mark.parametrize("field", ["max_open_tasks", "max_open_bytes", "max_recent"])
def test_bounds_are_positive(field):
    with pytest.raises(ConfigError, match=f"admission.{field}"):
        AdmissionPolicy(**{field: 0})
