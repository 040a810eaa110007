from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowray.core.retry import RetryPolicy
from flowray.errors import ConfigError


class Most:
    def random(self):
        return 1.0


def test_the_bound_doubles_up_to_its_maximum():
    policy = RetryPolicy(backoff_s=0.2, backoff_max_s=1.0)
    assert [policy.delay_s(failures, Most()) for failures in (1, 2, 3, 4, 1000)] == [0.2, 0.4, 0.8, 1.0, 1.0]


@given(st.integers(1, 10_000), st.integers())
def test_a_delay_is_within_its_bound(failures, seed):
    policy = RetryPolicy()
    assert 0.0 <= policy.delay_s(failures, Random(seed)) <= min(30.0, 0.2 * 2.0 ** min(failures, 60))


@pytest.mark.parametrize(
    "wrong", [{"backoff_s": 0}, {"backoff_s": 2.0, "backoff_max_s": 1.0}, {"max_losses": 0}, {"poison_kills": 0}]
)
def test_refuses_what_makes_no_sense(wrong):
    with pytest.raises(ConfigError, match="retry"):
        RetryPolicy(**wrong)
