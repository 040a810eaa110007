"""`flowray up` with its journal in PostgreSQL, on real Ray: the machine of its head is lost, and another goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from polling import eventually
from test_cli_ray import Place
from test_head_on_ray import HERE, Head

from flowray.testing import postgres

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]

_TOKENS = "SELECT encode(body, 'escape') FROM flowray_cli.files WHERE name = 'identity/tokens.json'"


@pytest.fixture
def server() -> Iterator[postgres.PostgresServer]:
    if reason := postgres.missing():
        pytest.skip(reason)
    with postgres.started() as running:
        yield running


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A team of slow agents whose runtime, if it has one, is gone afterwards."""
    (tmp_path / "home").mkdir()
    made = Place(tmp_path)
    made.team(pause_s=3.0)
    yield made
    if (tmp_path / "home" / ".flowray" / "cli" / "up.json").exists():
        made.call("down", *HERE)


def test_another_machine_goes_on_with_the_journal_of_a_head_that_is_lost(
    place: Place, server: postgres.PostgresServer
) -> None:
    up = ("up", "team.yaml", "--no-dashboard", "--set", f"store.url={server.url}")
    head = Head(place, place.ask(*up))
    first = head.answers("one two three", "a")
    token = place.ask("token", "create", *HERE)["token_id"]
    eventually(lambda: token in server.psql(_TOKENS), "the token is kept")
    epoch = head.epoch()
    began = len(place.noted())
    waiting = place.begin("submit", "one two", "--needs", "count", "--key", "open", *HERE)
    eventually(lambda: len(place.noted()) > began, "an agent is at it")
    waiting.kill()
    waiting.communicate()
    head.supervisor.kill()  # and all of Ray here with it
    eventually(lambda: place.left() == [], "everything there has ended")
    (place.directory / "home").rename(place.directory / "lost")  # the disk, too
    (place.directory / "home").mkdir()

    head = Head(place, place.ask(*up))
    assert head.epoch() > epoch
    assert head.answers("one two three", "a")["task_id"] == first["task_id"], "what had ended is known"
    answer = head.answers("one two", "open")
    assert (answer["state"], answer["value"]) == ("succeeded", 2)
    lines = place.ask("story", answer["task_id"], *HERE)["lines"]
    story = [line["what"] if isinstance(line, dict) else line[1] for line in lines]
    # More than twice where a coordinator saw its agents die before it died itself, and gave the task to another one.
    assert (story[0], story[-1]) == ("accepted", "succeeded") and story.count("started") > 1, lines
    assert [row["token_id"] for row in place.ask("token", "list", *HERE)] == [token]
