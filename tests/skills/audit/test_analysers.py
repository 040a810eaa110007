"""Each analyser on small sources: what it must say, and what it must not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flowray.agents import Context, Task
from flowray.errors import MissingExtra
from flowray.skills.audit.sources import tool
from flowray.skills.audit.team import TEAM

from .builders import agent, answer, found, rules, write

SECONDARIES = ("complexity", "names", "security", "deadcode", "documentation", "exceptions", "blocking", "unicode")
CLEAN = '"""A clean module."""\n\n\ndef double(x: int) -> int:\n    """Twice x."""\n    return 2 * x\n'


@pytest.mark.parametrize("name", SECONDARIES)
def test_clean_source_has_no_findings(tmp_path: Path, name: str) -> None:
    assert found(tmp_path, name, CLEAN) == []


# -- complexity --------------------------------------------------------------------------------------------------------


def branches(count: int) -> str:
    return "def f(x):\n" + "".join(f"    if x == {i}:\n        return {i}\n" for i in range(count))


@pytest.mark.parametrize(("count", "severity"), [(20, "low"), (40, "medium"), (80, "high")])
def test_complexity_severity_follows_the_number_of_paths(tmp_path: Path, count: int, severity: str) -> None:
    (complexity,) = [f for f in found(tmp_path, "complexity", branches(count)) if f.rule == "complexity"]
    assert complexity.severity == severity
    assert complexity.message == f"f has a cyclomatic complexity of {count + 1}"


def test_nineteen_branches_are_no_finding(tmp_path: Path) -> None:
    assert "complexity" not in rules(found(tmp_path, "complexity", branches(19)))


def test_complexity_measures_every_file(tmp_path: Path) -> None:
    write(tmp_path, {"a.py": branches(3), "b.py": ""})
    measures = answer(tmp_path, "complexity")["measures"]
    assert measures["a.py"]["complexity_max"] == 4
    assert measures["b.py"]["functions"] == 0


# -- names -------------------------------------------------------------------------------------------------------------


def test_undefined_name_is_one_finding_with_its_places(tmp_path: Path) -> None:
    (f,) = found(tmp_path, "names", "print(gone)\nprint(gone)\n")
    assert (f.rule, f.severity, f.line, f.message) == ("undefined-name", "high", 1, "undefined name 'gone'; 2 places")


def test_undefined_name_in_a_module_that_fills_its_namespace_is_low(tmp_path: Path) -> None:
    (f,) = found(tmp_path, "names", "globals().update(a=1)\nprint(a)\n")
    assert f.severity == "low"


def test_star_import_makes_one_doubt_not_one_for_each_name(tmp_path: Path) -> None:
    some = found(tmp_path, "names", "from os import *\nprint(getcwd(), listdir(), sep)\n")
    assert sorted(rules(some)) == ["import-star-usage", "import-star-used"]
    assert {f.severity for f in some} == {"note"}


def test_doctests_are_not_checked_whatever_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYFLAKES_DOCTEST", "1")
    assert found(tmp_path, "names", '"""\n>>> gone\n"""\n') == []


# -- security ----------------------------------------------------------------------------------------------------------


def test_shell_call_is_high_and_nosec_silences_it(tmp_path: Path) -> None:
    call = "import subprocess\nsubprocess.call(x, shell=True)"
    assert ("B602", "high", 2) in [(f.rule, f.severity, f.line) for f in found(tmp_path, "security", call)]
    assert "B602" not in rules(found(tmp_path, "security", call + "  # nosec\n"))
    assert "B602" not in rules(found(tmp_path, "security", call + "  # nosec B602\n"))
    assert "B602" in rules(found(tmp_path, "security", call + "  # nosec B101\n"))


def test_security_follows_import_aliases_into_nested_code(tmp_path: Path) -> None:
    source = (
        "from subprocess import Popen as P\nclass A:\n    def f(self):\n        return [P(x, shell=True) for x in y]\n"
    )
    assert "B602" in rules(found(tmp_path, "security", source))


@pytest.mark.parametrize("source", ["assert x\n", "try:\n    f()\nexcept Exception:\n    pass\n"])
def test_what_other_analysers_say_security_does_not(tmp_path: Path, source: str) -> None:
    assert found(tmp_path, "security", source) == []


@pytest.mark.parametrize("source", ["import pickle\n", "import random\nrandom.random()\n", "password = 'cfws'\n"])
def test_what_is_true_of_most_programs_is_a_note(tmp_path: Path, source: str) -> None:
    assert [f.severity for f in found(tmp_path, "security", source)] == ["note"]


def test_a_large_table_is_not_searched_key_by_key(tmp_path: Path) -> None:
    table = "password = {" + ", ".join(f"'password{i}': 'x{i}'" for i in range(300)) + "}\n"
    assert found(tmp_path, "security", table) == []


def test_agrees_with_bandits_own_driver(tmp_path: Path) -> None:
    """The walk here is ours; the findings must be those that bandit's own manager reports."""
    source = (
        "import os, pickle, hashlib, tempfile\nfrom subprocess import Popen\n"
        "def f(a, password='hunter2'):\n    os.system('ls ' + a)\n    Popen(a, shell=True)\n"
        "    hashlib.md5(a)\n    exec(a)\n    eval(a)\n    pickle.loads(a)\n    tempfile.mktemp()\n"
        "    os.chmod('/tmp/x', 0o777)\n    q = 'select * from t where x = %s' % a\n    token = 'abc'\n"
    )
    ours = sorted((f.rule, f.line) for f in found(tmp_path, "security", source))
    manager = tool("bandit.core.manager").BanditManager(tool("bandit.core.config").BanditConfig(), "file")
    manager.discover_files([str(tmp_path / "m.py")])
    manager.run_tests()
    assert ours == sorted((i.test_id, i.lineno) for i in manager.results)
    assert len(ours) >= 10


# -- dead code ---------------------------------------------------------------------------------------------------------


def test_unreachable_code_and_unused_import(tmp_path: Path) -> None:
    some = found(tmp_path, "deadcode", "import os\ndef f():\n    return 1\n    print(2)\n")
    assert {(f.rule, f.line) for f in some} == {("unused-import", 1), ("unreachable-code", 4)}


def test_dead_code_below_the_confidence_is_left_out_and_can_be_asked_for(tmp_path: Path) -> None:
    source = "def never_called():\n    return 1\n"
    assert found(tmp_path, "deadcode", source) == []
    assert rules(found(tmp_path, "deadcode", source, dead_code_confidence=60)) == ["unused-function"]


def test_name_in_a_type_comment_is_used_and_a_bad_one_is_no_error(tmp_path: Path) -> None:
    assert found(tmp_path, "deadcode", "from typing import List\nx = []  # type: List[int]\n") == []
    assert found(tmp_path, "deadcode", "x = []  # type: List[\n") == []


# -- documentation -----------------------------------------------------------------------------------------------------


def test_documentation_is_one_finding_for_a_file(tmp_path: Path) -> None:
    some = found(tmp_path, "documentation", "".join(f"def f{i}(a): return a\n" for i in range(8)))
    assert rules(some) == ["annotations", "docstrings", "module-docstring"]
    assert some[1].message == "0 of 8 public definitions have a docstring"


def test_coverage_counts_the_public_surface_only(tmp_path: Path) -> None:
    source = (
        "class A:\n    '''Doc.'''\n    def __init__(self, x: int): pass\n    def m(self) -> None: '''Doc.'''\n"
        "    def _p(self, x): pass\n    @x.setter\n    def x(self, v): pass\nif 1:\n    def g(*a, k: int): pass\n"
        "def _private(): pass\n"
    )
    write(tmp_path, {"m.py": source})
    assert answer(tmp_path, "documentation")["measures"]["m.py"] == {
        "documentable": 3,  # A, m, g
        "documented": 2,
        "annotatable": 8,  # __init__: x and return; m: return; x: v and return; g: a, k and return
        "annotated": 3,
    }


# -- exceptions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("except:\n    pass", ["swallowed-exception"]),
        ("except Exception:\n    ...", ["swallowed-exception"]),
        ("except:\n    x = 1", ["bare-except"]),
        ("except:\n    x = 1\n    raise", []),
        ("except BaseException:\n    x = 1", ["base-exception"]),
        ("except Exception:\n    x = 1", ["broad-except"]),
        ("except Exception as e:\n    print(e)", []),
        ("except Exception:\n    log.exception('x')", []),
        ("except KeyError:\n    pass", []),
        ("except (KeyError or ValueError):\n    x = 1", ["except-or"]),
        ("except KeyError:\n    raise ValueError('x')", ["raise-without-from"]),
        ("except KeyError as e:\n    raise ValueError('x') from e", []),
        ("except KeyError:\n    raise", []),
        ("except OSError:\n    x = 1\nexcept FileNotFoundError:\n    x = 2", ["unreachable-handler"]),
        ("except FileNotFoundError:\n    x = 1\nexcept OSError:\n    x = 2", []),
        ("finally:\n    return 1", ["return-in-finally"]),
        ("finally:\n    break", ["break-in-finally"]),
        ("finally:\n    for x in y:\n        break", []),
        ("finally:\n    def f():\n        return 1", []),
        ("finally:\n    raise 'text'", ["raise-not-exception"]),
    ],
)
def test_exception_handling(tmp_path: Path, body: str, expected: list[str]) -> None:
    indented = "\n".join("        " + line for line in ["try:", "    f()", *body.split("\n")])
    assert rules(found(tmp_path, "exceptions", f"def outer():\n    while True:\n{indented}\n")) == expected


# -- blocking ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("time.sleep(1)", ["blocking-call"]),
        ("nap(1)", ["blocking-call"]),
        ("await asyncio.sleep(1)", []),
        ("requests.get(u)", ["blocking-call"]),
        ("asyncio.create_task(other())", ["task-not-kept"]),
        ("t = asyncio.create_task(other())", []),
        ("other()", ["never-awaited"]),
        ("await other()", []),
        ("p.read_text()", ["blocking-call"]),
        ("def inner(): time.sleep(1)", []),
        ("print(1)", []),
    ],
)
def test_blocking_calls(tmp_path: Path, statement: str, expected: list[str]) -> None:
    head = "import asyncio, time, requests\nfrom time import sleep as nap\nasync def other(): ...\n"
    assert rules(found(tmp_path, "blocking", f"{head}async def f(p, u):\n    {statement}\n")) == expected


# -- cycles ------------------------------------------------------------------------------------------------------------


def cycle(root: Path, files: dict[str, str]) -> list[str]:
    write(root, files)
    return [row[6] for row in answer(root, "cycles", top="p", prefix="p")["findings"]]


def test_import_cycle_is_named_by_its_shortest_way(tmp_path: Path) -> None:
    files = {
        "p/__init__.py": "",
        "p/a.py": "from . import b\n",
        "p/b.py": "import p.c\n",
        "p/c.py": "from .a import x\n",
    }
    assert cycle(tmp_path, files) == ["import cycle: p.a → p.b → p.c → p.a"]


@pytest.mark.parametrize(
    "cure",
    [
        "def f():\n    from .a import x\n",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .a import x\n",
        "import a\n",
    ],
)
def test_deferred_and_foreign_imports_are_no_cycle(tmp_path: Path, cure: str) -> None:
    assert cycle(tmp_path, {"p/__init__.py": "", "p/a.py": "from . import b\n", "p/b.py": cure}) == []


def test_relative_imports_climb_out_of_subpackages(tmp_path: Path) -> None:
    files = {
        "p/__init__.py": "",
        "p/s/__init__.py": "",
        "p/s/m.py": "from ..q import x\n",
        "p/q.py": "from p.s import m\n",
    }
    assert cycle(tmp_path, files) == ["import cycle: p.q → p.s.m → p.q"]


# -- duplicates --------------------------------------------------------------------------------------------------------

BLOCK = "".join(f"    value_{i} = compute(value, {i})\n" for i in range(14))


def test_copied_block_is_one_finding_at_the_second_place(tmp_path: Path) -> None:
    write(tmp_path, {"a.py": f"def f():\n{BLOCK}", "b.py": f"# other\n\n\ndef g():\n    x = 1\n{BLOCK}    return x\n"})
    (row,) = answer(tmp_path, "duplicates")["findings"]
    assert (row[0], row[1], row[6]) == ("b.py", 6, "lines 6 to 19 are a copy of a.py:2 to 15 (14 lines of code)")


def test_copies_within_a_file_differ_only_in_blank_lines_and_comments(tmp_path: Path) -> None:
    spaced = "\n".join(f"{line}  # {i}\n" for i, line in enumerate(BLOCK.splitlines()))
    assert rules(found(tmp_path, "duplicates", f"def f():\n{BLOCK}def g():\n{spaced}")) == ["duplicate"]


@pytest.mark.parametrize("block", ["    0,\n" * 40, "".join(f"    '{i}': {i},\n" for i in range(30)), BLOCK[:200]])
def test_tables_and_short_copies_are_no_findings(tmp_path: Path, block: str) -> None:
    write(tmp_path, {"a.py": f"x = (\n{block})\n", "b.py": f"y = (\n{block})\n"})
    assert "duplicate" not in [row[3] for row in answer(tmp_path, "duplicates")["findings"]]


# -- unicode -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "rule"),
    [
        ('x = "\u202e"\n', "bidirectional-control"),
        ("# \u2067 comment\n", "bidirectional-control"),
        ("x = 'a\u200bb'\n", "invisible-character"),
        ("x = '\U000e0041'\n", "hidden-text"),
        ("x = 'é\x1b[0m'\n", "control-character"),
        ("p\u0430ss = 1\n", "lookalike-name"),  # Cyrillic a
        ("\ufb01le = 1\n", "not-normal-name"),  # the ligature fi
    ],
)
def test_deceptive_characters(tmp_path: Path, source: str, rule: str) -> None:
    assert rules(found(tmp_path, "unicode", source)) == [rule]


@pytest.mark.parametrize("source", ["größe = 'Köln'\n", "имя = 'Привет'\n", "x = '日本語 → ok'\n", "\ufeffx = 1\n"])
def test_honest_unicode_is_no_finding(tmp_path: Path, source: str) -> None:
    assert found(tmp_path, "unicode", source) == []


# -- the team as a whole -----------------------------------------------------------------------------------------------


def test_team_is_the_default_tiered_one() -> None:
    tiers: dict[str, int] = {}
    for member in TEAM:
        tiers[member.tier] = tiers.get(member.tier, 0) + member.count
    assert tiers == {"orchestrator": 1, "primary": 3, "secondary": 16, "specialist": 4}


@pytest.mark.slow
def test_agent_process_loads_only_its_own_tool() -> None:
    code = (
        "import sys\nimport flowray.skills.audit.team as team\n"
        "tools = ('bandit', 'radon', 'pyflakes', 'vulture', 'rustworkx')\n"
        "assert not [t for t in tools if t in sys.modules]\n"
        "team.NamesAnalyser()\nprint([t for t in tools if t in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ})
    assert done.stdout.strip() == "['pyflakes']"


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("complexity", "radon.visitors"),
        ("names", "pyflakes.checker"),
        ("deadcode", "vulture.core"),
        ("security", "bandit.core"),
        ("cycles", "rustworkx"),
    ],
)
def test_missing_tool_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch, name: str, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    made = next(m for m in TEAM if m.name == name).agent
    with pytest.raises(MissingExtra, match=r'^pip install "flowray\[audit\]"$'):
        made()


@pytest.mark.parametrize("name", [*SECONDARIES, "duplicates"])
def test_cancelled_attempt_stops(tmp_path: Path, name: str) -> None:
    write(tmp_path, {"m.py": CLEAN})
    payload = {"root": str(tmp_path), "max_bytes": 1000, "files": [["m.py", "another digest"]]}
    cancelled = Context(agent_id="a", cancelled=True)
    assert agent(name).run(Task(id="t", payload=payload), cancelled)["findings"] == []
