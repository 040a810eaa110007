from __future__ import annotations

import pytest

from flowray.errors import ConfigError
from flowray.store import StoreConfig


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("queue_commands", 0),
        ("queue_bytes", -1),
        ("group_commands", 1.5),
        ("group_bytes", True),
        ("checkpoint_bytes", 0),
        ("trim_rows", 0),
        ("full_check_bytes", -1),
        ("full_check_bytes", "1"),
        ("busy_timeout_s", 0),
        ("busy_timeout_s", float("nan")),
        ("group_commands", 10**9),
        ("group_bytes", 10**12),
        ("allow_filesystems", "overlay"),
        ("allow_filesystems", (1,)),
    ],
)
def test_a_wrong_value_names_its_field(field: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        StoreConfig(**{field: value})
    assert caught.value.field == f"store.{field}"


def test_the_defaults_are_valid() -> None:
    assert StoreConfig() == StoreConfig()
