"""Which node is meant by what a person says of it."""

from __future__ import annotations

import pytest

from flowray.errors import ConfigError
from flowray.runtime.leaving import node_of
from flowray.runtime.views import NodeView, Status

NODES = (
    NodeView(node_id="aaaa1111bbbb", address="10.0.0.1", alive=True),
    NodeView(node_id="aaaa2222bbbb", address="10.0.0.2", alive=True),
    NodeView(node_id="cccc3333bbbb", address="10.0.0.3", alive=False),
)
STATUS = Status(name="team", epoch=1, at_utc="", journal="", nodes=NODES)


@pytest.mark.parametrize(
    ("said", "meant"), [("10.0.0.2", "aaaa2222bbbb"), ("aaaa1111bbbb", "aaaa1111bbbb"), ("aaaa22", "aaaa2222bbbb")]
)
def test_a_node_is_known_by_its_address_or_the_beginning_of_its_id(said: str, meant: str) -> None:
    assert node_of(STATUS, said).node_id == meant


@pytest.mark.parametrize("said", ["10.0.0.3", "aaaa", "nowhere", ""])
def test_what_names_no_living_node_is_refused_and_they_are_named(said: str) -> None:
    with pytest.raises(ConfigError, match=r"no living node.*10\.0\.0\.1"):
        node_of(STATUS, said)


def test_what_names_several_is_refused() -> None:
    twins = Status(
        name="team",
        epoch=1,
        at_utc="",
        journal="",
        nodes=(NODES[0], NodeView(node_id="aaaa1111cccc", address="10.0.0.4", alive=True)),
    )
    with pytest.raises(ConfigError, match="2 nodes"):
        node_of(twins, "aaaa1111")
