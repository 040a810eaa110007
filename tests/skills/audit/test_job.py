"""The audit as a whole: the same bytes whatever the order of things, and nothing vanishes."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import msgspec
import pyarrow.parquet as pq
import pytest

from flowray.errors import ConfigError
from flowray.jobs import Job, Request, Result, run_sequentially
from flowray.skills.audit.findings import finding
from flowray.skills.audit.job import AuditJob
from flowray.skills.audit.options import AuditOptions
from flowray.skills.audit.planning import module_trees, plan, walk
from flowray.skills.audit.ranking import by_attention, grade, points, score
from flowray.skills.audit.report import SCHEMA
from flowray.skills.audit.team import local_team

from .builders import drive, perform, write

BLOCK = "".join(f"    value_{i} = compute(value, {i})\n" for i in range(14))
LOOP = "import time\n\n\nasync def f():\n    time.sleep(1)\n    try:\n        g()\n    except:\n        pass\n"
SHELL = "import subprocess\n\n\ndef run(x):\n    subprocess.call(x, shell=True)\n"
CODE: dict[str, str | bytes] = {
    "top.py": SHELL,
    "pkg/__init__.py": "",
    "pkg/a.py": f"from . import b\nimport os\n\n\ndef f(value):\n{BLOCK}    return gone\n",
    "pkg/b.py": f"from .a import f\n\n\ndef g(value):\n{BLOCK}    return 1\n    return 2\n",
    "pkg/sub/__init__.py": "",
    "pkg/sub/loop.py": LOOP,
    "pkg/sub/deceit.py": "p\u0430ss_word = '\u202e'\n",
    "pkg/broken.py": "def f(:\n",
    "pkg/tests/test_a.py": SHELL,
    "scripts/one.py": b"x = '\xff'\n",
}
SEARCHED = {"duplicates_from_lines": 10}


@pytest.fixture
def code(tmp_path: Path) -> Path:
    return write(tmp_path / "code", CODE)


def files(out: Path) -> tuple[bytes, bytes]:
    return (out / "findings.parquet").read_bytes(), (out / "summary.json").read_bytes()


def found(out: Path) -> list[tuple[str, int, str, str]]:
    return [(r["file"], r["line"], r["skill"], r["rule"]) for r in pq.read_table(out / "findings.parquet").to_pylist()]


# -- the whole way -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_audit_finds_what_was_planted_with_every_skill(code: Path, tmp_path: Path) -> None:
    report = run_sequentially(AuditJob(code, **SEARCHED), local_team(), tmp_path / "out")
    assert set(found(tmp_path / "out")) >= {
        ("pkg/a.py", 1, "cycles", "import-cycle"),
        ("pkg/a.py", 2, "names", "unused-import"),
        ("pkg/a.py", 20, "names", "undefined-name"),
        ("pkg/b.py", 5, "duplicates", "duplicate"),
        ("pkg/b.py", 20, "deadcode", "unreachable-code"),
        ("pkg/broken.py", 1, "audit", "syntax-error"),
        ("pkg/sub/deceit.py", 1, "unicode", "bidirectional-control"),
        ("pkg/sub/loop.py", 5, "blocking", "blocking-call"),
        ("pkg/sub/loop.py", 8, "exceptions", "swallowed-exception"),
        ("scripts/one.py", 0, "audit", "bad-encoding"),
        ("top.py", 5, "security", "B602"),
    }
    assert isinstance(AuditJob(code), Job)
    assert [f.name for f in report.files] == ["report.html", "findings.parquet", "summary.json"]
    assert all(f.exists() for f in report.files)
    assert report.figures["files"] == 10
    assert report.table[0] == ("severity", "where", "rule", "what")


@pytest.mark.slow
def test_same_observation_of_two_skills_is_one_finding_that_names_both(code: Path, tmp_path: Path) -> None:
    run_sequentially(AuditJob(code), local_team(), tmp_path)
    rows = pq.read_table(tmp_path / "findings.parquet").to_pylist()
    (row,) = [r for r in rows if (r["rule"], r["file"], r["line"]) == ("unused-import", "pkg/a.py", 2)]
    assert (row["skill"], row["also"]) == ("names", "deadcode")


def test_specialists_are_called_only_where_something_calls_for_them(tmp_path: Path) -> None:
    plain = write(tmp_path / "plain", {"one.py": "x = 1\n"})
    job = AuditJob(plain)
    asked: list[str] = []
    waiting = list(job.begin())
    while waiting:
        request = waiting.pop()
        asked += request.needs
        waiting += job.on_result(perform(request))
    everywhere = ["security", "complexity", "deadcode", "names", "exceptions", "documentation"]
    assert sorted(asked) == sorted(f"audit.{what}" for what in ["plan", "combine", "summarise", *everywhere])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_order_and_repetition_of_results_do_not_show(code: Path, tmp_path: Path, seed: int) -> None:
    job = AuditJob(code, chunk_kb=1, **SEARCHED)
    drive(job)
    job.finish(tmp_path / "in order")
    other = AuditJob(code, chunk_kb=1, **SEARCHED)
    drive(other, order=random.Random(seed), repeat=True)
    other.run = {"nodes": 2, "seconds": random.Random(seed).random()}
    other.finish(tmp_path / "shuffled")
    assert files(tmp_path / "in order") == files(tmp_path / "shuffled")


@pytest.mark.slow
def test_hash_seed_locale_and_working_directory_do_not_show(code: Path, tmp_path: Path) -> None:
    script = (
        "import sys\nfrom pathlib import Path\nfrom flowray.jobs import run_sequentially\n"
        "from flowray.skills.audit.job import AuditJob\nfrom flowray.skills.audit.team import local_team\n"
        "job = AuditJob(sys.argv[1], duplicates_from_lines=10)\n"
        "run_sequentially(job, local_team(), Path(sys.argv[2]))\n"
    )
    repository = Path(__file__).parents[3]
    results = []
    for seed, language, place in (("0", "C", tmp_path), ("1", "C.UTF-8", code), ("4242", "POSIX", repository)):
        out = tmp_path / seed
        environment = {**os.environ, "PYTHONHASHSEED": seed, "LC_ALL": language, "PYTHONPATH": str(repository)}
        command = [sys.executable, "-c", script, str(code), str(out)]
        done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout + done.stderr == ""
        results.append(files(out))
    assert results[0] == results[1] == results[2]


@pytest.mark.slow
def test_place_of_the_code_does_not_show(code: Path, tmp_path: Path) -> None:
    elsewhere = write(tmp_path / "some/tests/code", CODE)  # a directory that vulture would take for test code
    for root, out in ((code, "a"), (elsewhere, "b")):
        run_sequentially(AuditJob(root, **SEARCHED), local_team(), tmp_path / out)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert str(tmp_path).encode() not in b"".join(files(tmp_path / "a"))


def test_findings_parquet_has_the_stated_schema_and_order(code: Path, tmp_path: Path) -> None:
    run_sequentially(AuditJob(code), local_team(), tmp_path)
    table = pq.read_table(tmp_path / "findings.parquet")
    assert table.schema.equals(SCHEMA)
    assert not table.schema.metadata
    order = [(r["file"], r["line"], r["column"]) for r in table.to_pylist()]
    assert order == sorted(order)


def test_payloads_and_answers_are_plain_data(code: Path) -> None:
    job = AuditJob(code, **SEARCHED)
    waiting = list(job.begin())
    while waiting:
        request = waiting.pop()
        result = perform(request)
        for plain in (request.payload, result.value):
            assert msgspec.msgpack.decode(msgspec.msgpack.encode(plain)) == plain
        waiting += job.on_result(result)


# -- keys --------------------------------------------------------------------------------------------------------------


def keys(root: Path, **options: object) -> set[str]:
    job = AuditJob(root, **options)
    drive(job)
    return set(job._known)


def test_keys_are_those_of_the_content(code: Path) -> None:
    before = keys(code)
    assert keys(code) == before
    write(code, {"pkg/sub/loop.py": "x = 1\n"})
    after = keys(code)
    # The search for deceptive characters looks at the other file of that package only.
    assert {k.split("/")[1] for k in before & after if "/pkg/sub/" in k} == {"unicode"}
    assert {k for k in before if k.startswith("audit/security/scripts/")} <= after
    assert not any(k.startswith(("audit/plan/", "audit/summarise/")) for k in before & after)


@pytest.mark.slow
def test_options_that_change_answers_change_keys(code: Path) -> None:
    assert not any("/deadcode/" in k for k in keys(code) & keys(code, dead_code_confidence=60))


# -- failures ----------------------------------------------------------------------------------------------------------


def test_failed_analysis_is_a_finding_for_each_of_its_files(code: Path, tmp_path: Path) -> None:
    job = AuditJob(code)
    drive(job, fail=lambda r: "Traceback ...\nWorkerCrashed: out of memory" if "/security/./" in r.key else "")
    job.finish(tmp_path)
    lost = [r for r in pq.read_table(tmp_path / "findings.parquet").to_pylist() if r["rule"] == "analysis-failed"]
    assert [(r["file"], r["severity"], r["message"]) for r in lost] == [
        ("top.py", "error", "security analysis failed for good: WorkerCrashed: out of memory")
    ]


@pytest.mark.parametrize("step", ["audit/combine/", "audit/summarise/"])
def test_failed_combination_is_made_up_for(code: Path, tmp_path: Path, step: str) -> None:
    job = AuditJob(code)
    drive(job, fail=lambda r: "lost" if r.key.startswith(step) else "")
    job.finish(tmp_path / "failed")
    whole = AuditJob(code)
    drive(whole)
    whole.finish(tmp_path / "whole")
    assert set(found(tmp_path / "whole")) <= set(found(tmp_path / "failed"))


def test_failed_plan_names_the_directory(code: Path) -> None:
    job = AuditJob(code)
    (request,) = job.begin()
    with pytest.raises(ConfigError, match=r"code could not be planned: lost"):
        list(job.on_result(Result(key=request.key, error="lost")))


def test_results_nobody_waits_for_change_nothing(code: Path) -> None:
    job = AuditJob(code)
    assert list(job.on_result(Result(key="audit/names/x/123", value={}))) == []
    with pytest.raises(ConfigError, match="not complete"):
        job.finish(code / "out")


@pytest.mark.parametrize("name", ["nowhere", "file.txt"])
def test_root_that_is_no_directory_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "file.txt").write_text("x")
    with pytest.raises(ConfigError, match=name):
        AuditJob(tmp_path / name)


def test_empty_directory_is_an_audit_without_findings(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    report = run_sequentially(AuditJob(tmp_path / "code"), local_team(), tmp_path / "out")
    assert report.figures["files"] == 0
    assert json.loads((tmp_path / "out/summary.json").read_text())["grade"] == "A"


def test_files_that_cannot_be_read_are_findings(tmp_path: Path) -> None:
    code = write(tmp_path / "code", {"a.py": "x = 1\n", "huge.py": "x = 1\n" * 1000, "only/bad.py": "x"})
    (code / "dangling.py").symlink_to("nowhere.py")
    os.mkfifo(code / "pipe.py")
    (code / "only/bad.py").unlink()
    (code / "only/bad.py").symlink_to("bad.py")  # to itself
    (code / "loop").symlink_to(code, target_is_directory=True)
    Path(os.fsdecode(os.fsencode(code) + b"/n\xe9me.py")).touch()
    run_sequentially(AuditJob(code, max_file_kb=4), local_team(), tmp_path / "out")
    assert {(file, rule) for file, _, skill, rule in found(tmp_path / "out") if skill == "audit"} == {
        ("dangling.py", "missing"),
        ("huge.py", "too-large"),
        ("n\\xe9me.py", "bad-name"),
        ("only/bad.py", "unreadable"),
        ("pipe.py", "not-a-file"),
    }


# -- planning ----------------------------------------------------------------------------------------------------------


def planned(root: Path, options: AuditOptions) -> list[str]:
    return list(walk(root, options.patterns))


def test_exclusions(tmp_path: Path) -> None:
    names = ("a.py", "t/a.py", "test/x.py", "node_modules/x.py", "a_test.py", "x/idle_test/y.py")
    write(tmp_path, dict.fromkeys(names, ""))
    assert planned(tmp_path, AuditOptions()) == ["a.py", "a_test.py", "t/a.py", "test/x.py", "x/idle_test/y.py"]
    assert planned(tmp_path, AuditOptions(tests=False)) == ["a.py", "t/a.py"]
    assert planned(tmp_path, AuditOptions.of(tests=False, exclude="t, nothing")) == ["a.py"]
    assert planned(tmp_path, AuditOptions(exclude=("t/*", "x", "test", "a*"))) == []


def test_plan_says_lines_and_triggers(tmp_path: Path) -> None:
    write(tmp_path, {"p/a.py": "async def f(): ...\nx = 1", "p/b.py": "# é\n", "p/empty.py": ""})
    (package,) = plan({"root": str(tmp_path), "max_bytes": 1000, "exclude": []})["packages"]
    assert [f[:3] for f in package["files"]] == [["p/a.py", 24, 2], ["p/b.py", 5, 1], ["p/empty.py", 0, 0]]
    assert package["triggers"] == {"blocking": ["p/a.py"], "unicode": ["p/b.py"]}


def test_modules_import_one_another_within_their_outermost_package(tmp_path: Path) -> None:
    write(tmp_path, dict.fromkeys(("p/__init__.py", "p/q/__init__.py", "p/q/r/s.py", "scripts/x.py"), ""))
    trees = module_trees(tmp_path, ["p", "p/q", "p/q/r", "scripts"])
    assert [(t["top"], t["prefix"], t["packages"]) for t in trees] == [
        ("p", "p", ["p", "p/q"]),
        ("p/q/r", "", ["p/q/r"]),
        ("scripts", "", ["scripts"]),
    ]
    below = module_trees(tmp_path / "p/q", ["."])
    assert [(t["top"], t["prefix"]) for t in below] == [(".", "p.q")]


@pytest.mark.parametrize(
    "wrong",
    [{"chunk_kb": 0}, {"report_rows": True}, {"exclude": ("",)}, {"color": "red"}, {"dead_code_confidence": 101}],
)
def test_wrong_options_are_named(tmp_path: Path, wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=f"audit.{next(iter(wrong))}"):
        AuditJob(tmp_path, **wrong)


def test_chunks_cover_every_file_once(tmp_path: Path) -> None:
    code = write(tmp_path, {f"p/m{i:02}.py": f"x = {i}\n" * 100 for i in range(30)})
    job = AuditJob(code, chunk_kb=3)
    (request,) = job.begin()
    requests: list[Request] = list(job.on_result(perform(request)))
    chunks = [r.payload["files"] for r in requests if r.needs == ("audit.security",)]
    assert len(chunks) > 5
    assert sorted(f for chunk in chunks for f, _ in chunk) == sorted(
        p.relative_to(code).as_posix() for p in code.rglob("*.py")
    )


# -- ranking -----------------------------------------------------------------------------------------------------------


def test_grade_follows_the_stated_formula() -> None:
    assert score(0, 10_000) == 100.0
    assert score(120, 10_000) == 50.0
    assert score(3.6, 10) == 50.0  # counted as 300 lines
    assert [grade(s) for s in (100, 90, 89.9, 80, 65, 50, 35, 34.9, 0)] == list("AABBCDEFF")


def test_of_one_rule_in_one_file_ten_findings_count() -> None:
    many = [finding("a.py", i, 1, "r", "names", "medium", "m") for i in range(50)]
    assert points(many) == 30.0
    assert points([finding("a.py", 1, 1, "r", "names", "note", "m")]) == 0.0


def test_first_findings_are_severe_and_different() -> None:
    many = [finding("a.py", i, 1, "same", "names", "high", "m") for i in range(40)]
    other = [finding("b.py", 1, 1, "other", "names", "medium", "m"), finding("c.py", 1, 1, "n", "names", "note", "m")]
    first = by_attention([*many, *other], {}, 20)
    assert first[0].rule == "same"
    assert "other" in [f.rule for f in first]
    assert "note" not in [f.severity for f in first]
    assert first == by_attention([*other, *reversed(many)], {}, 20)
