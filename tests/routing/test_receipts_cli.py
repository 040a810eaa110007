"""`flowray router export | replay | report | versions`: from a journal to a page."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from flowray.core.book import Book
from flowray.core.commands import AddAgents, GradeTask, RecordVersion, ResolveTask
from flowray.core.model import AgentSpec, Asked, RouterPlace, RouterRecord
from flowray.core.rollout import RolloutStage as S
from flowray.routing import data, receipts
from flowray.store import SqliteStore, StoreConfig

from .logs import Logger, outcome

ANYWHERE = StoreConfig(allow_filesystems=("overlay", "tmpfs", "9p", "virtiofs", "fuse.fuse-overlayfs", "unknown"))


@pytest.fixture
def log(tmp_path: Path) -> Path:
    receipts.write(tmp_path / "log.parquet", Logger().outcomes(200))
    return tmp_path / "log.parquet"


def test_receipts_leave_a_journal_that_is_in_use(router, tmp_path):
    store = SqliteStore.open(tmp_path / "journal", ANYWHERE)
    store.begin_epoch("test")
    made = [*Logger().outcomes(30), outcome(1000, choices=())]  # the last was never routed
    written = threading.Event()
    store.append([ResolveTask(one) for one in made], lambda error: written.set())
    assert written.wait(20)
    code, out, err = router("export", "--journal", tmp_path / "journal", "-o", "out.parquet", "--json")
    store.close()
    assert code == 0, err
    assert json.loads(out) == {"receipts": "out.parquet", "rows": 30}
    assert receipts.read(tmp_path / "out.parquet").equals(receipts.tabled(made))
    code, out, _ = router("export", "--journal", tmp_path / "journal", "-o", "again.parquet")
    assert (code, out) == (0, "again.parquet: 30 receipts\n")


def test_a_journal_becomes_a_set_that_a_router_learns_from(router, tmp_path):
    store = SqliteStore.open(tmp_path / "journal", ANYWHERE)
    store.begin_epoch("test")
    made = Logger().outcomes(60)
    written = threading.Event()
    commands = [ResolveTask(one, None, Asked(f"question {number}")) for number, one in enumerate(made)]
    spec = AddAgents(AgentSpec(name="small", tier="primary", capabilities=("rhyme",)), 0.0)
    grade = GradeTask(made[0].task_id, 0.25, 99.0)
    store.append([spec, *commands, grade], lambda error: written.set())
    assert written.wait(20)
    code, out, err = router("export", "--journal", "journal", "-o", "out.parquet", "--as-set", "own", "--json")
    store.close()
    assert code == 0, err
    assert json.loads(out) == {"receipts": "out.parquet", "rows": 60, "set": "own", "tasks": 60}
    table = receipts.read(tmp_path / "out.parquet")
    assert table.column("prompt").to_pylist()[:2] == ["question 0", "question 1"]
    assert table.column("grade").to_pylist()[:2] == [0.25, None]
    whole = data.load(tmp_path / "own")
    assert whole.tasks.texts == tuple(f"question {number}" for number in range(60))
    assert "small; rhyme; tier primary" in whole.agents.descriptions
    code, out, err = router("export", "--journal", "journal", "--as-set", "few", "--most", 7)
    assert (code, out) == (0, "few: 7 tasks\n"), err
    assert data.load(tmp_path / "few").prompt_ids == whole.prompt_ids[-7:]


def test_a_journal_without_texts_makes_no_set(router, tmp_path):
    store = SqliteStore.open(tmp_path / "journal", ANYWHERE)
    store.begin_epoch("test")
    store.close()
    code, _, err = router("export", "--journal", "journal", "--as-set", "own")
    assert code == 2 and "no outcome in journal has a text" in err and "keep_text" in err
    code, _, err = router("export", "--journal", "journal")
    assert code == 2 and "--as-set DIR" in err


def test_a_policy_is_replayed_as_lines_and_as_a_document(router, log):
    code, out, err = router("replay", "--receipts", log, "--policy", "cheapest:0.9", "--resamples", 50)
    assert code == 0, err
    assert out.startswith("cheapest:0.9 instead of the policy in force")
    code, out, err = router("replay", "--receipts", log, "--policy", "always:small", "--resamples", 50, "--json")
    assert code == 0, err
    document = json.loads(out)
    reward = document["evaluation"]["quantities"]["reward"]
    assert set(reward["estimates"]) == {"ips", "snips", "dr"} and reward["changes"]["dr"]["value"] < 0
    assert len(document["examples"]) == 10 and 0 < document["differing_share"] < 1


def test_the_report_is_lines_a_page_and_a_document_without_nan(router, log, tmp_path):
    code, out, err = router("report", "--receipts", log, "-o", "page.html", "--windows", 5)
    assert code == 0, err
    assert "200 decisions" in out and "report: page.html" in err
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    receipts.write(tmp_path / "one.parquet", [outcome()])
    code, out, err = router("report", "--receipts", "one.parquet", "--json")
    assert code == 0, err
    document = json.loads(out, parse_constant=pytest.fail)
    assert document["auc"]["value"] is None and document["candidates"][0]["candidate"] == "small"


WRONG = [
    (("export", "--journal", "nowhere", "-o", "x.parquet"), "there is no journal in nowhere"),
    (("replay", "--receipts", "nowhere.parquet"), "`flowray router export` makes one"),
    (("replay", "--receipts", "log.parquet", "--policy", "best"), "say greedy, cheapest:0.95, always:NAME"),
    (("replay", "--receipts", "log.parquet", "--policy", "always:huge"), "there were large, middle, small"),
    (("replay", "--receipts", "log.parquet", "--clip", "0"), "clip: must be above 0"),
    (("report", "--receipts", "empty.parquet"), "holds no receipts"),
    (("report", "--receipts", "log.parquet", "-o", "no/page.html"), "there is no directory no"),
]


@pytest.mark.parametrize(("arguments", "words"), WRONG, ids=lambda value: " ".join(value)[:40])
def test_wrong_usage_is_a_sentence(router, log, tmp_path, arguments, words):
    receipts.write(tmp_path / "empty.parquet", [])
    code, out, err = router(*arguments)
    assert (code, out) == (2, "")
    assert words in err


def test_versions_are_told_from_a_journal_that_is_in_use(router, tmp_path):
    """Before and after a snapshot took the rows away, as lines and as a document."""
    places = [RouterPlace("v1", "/a"), RouterPlace("v2", "/b")]
    steps = [("configured", S.IDLE), ("offered", S.SHADOW), ("noted", S.SHADOW), ("passed", S.CANARY)]
    store = SqliteStore.open(tmp_path / "journal", ANYWHERE)
    store.begin_epoch("test")
    book, written = Book(), threading.Event()
    records = [
        RecordVersion(
            RouterRecord(at=1e9 + n, arrow=arrow, stage=stage, live=places[0], other=places[1], why=f"why {n}")
        )
        for n, (arrow, stage) in enumerate(steps)
    ]
    for record in records:
        book.apply(record)
    store.append(records, lambda error: written.set())
    assert written.wait(20)
    for _ in range(2):
        code, out, err = router("versions", "--journal", tmp_path / "journal", "--json")
        assert code == 0, err
        told = json.loads(out)["records"]
        assert [(each["arrow"], each["stage"]) for each in told] == [
            ("configured", "idle"), ("offered", "shadow"), ("passed", "canary"),
        ]  # fmt: skip
        assert told[-1]["other"]["version"] == "v2"
        written.clear()
        store.save_snapshot(book.snapshot(1e9), lambda error: written.set())
        assert written.wait(20)
    code, out, _ = router("versions", "--journal", tmp_path / "journal")
    store.close()
    assert code == 0
    assert "2001-09-09 01:46:43+00:00" in out and "canary v2" in out and "why 3" in out
    code, _, err = router("versions", "--journal", tmp_path)
    assert code != 0 and "there is no journal" in err


def test_a_runtime_that_never_routed_has_no_versions(router, tmp_path):
    store = SqliteStore.open(tmp_path / "journal", ANYWHERE)
    store.begin_epoch("test")
    code, out, err = router("versions", "--journal", tmp_path / "journal")
    store.close()
    assert code == 0, err
    assert out == "nothing was decided about the router\n"
