"""No text and no bytes make any analyser raise, and every answer is plain data."""

from __future__ import annotations

import ast
import os
import tempfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowray.skills.audit.findings import SEVERITIES, Finding, one_line

from .builders import answer, found, rules, write

ANALYSERS = ("complexity", "names", "security", "deadcode", "documentation", "exceptions", "blocking", "unicode")
TOGETHER = ("duplicates", "cycles")

BAD: dict[str, tuple[bytes, str]] = {
    "syntax": (b"def f(:\n", "syntax-error"),
    "python 2": (b"print 'x'\n", "syntax-error"),
    "null byte": (b"x = 1\n\0", "null-byte"),
    "latin bytes": (b"x = '\xe9'\n", "bad-encoding"),
    "unknown encoding": (b"# coding: nonsense\n", "bad-encoding"),
    "not a text encoding": (b"# coding: rot13\nk = 1\n", "bad-encoding"),
    "lone surrogate": (b"# coding: raw_unicode_escape\nx = '\\ud800'\n", "bad-encoding"),
    "deep": (b"(" * 300 + b")" * 300, "syntax-error"),
    "deep operators": (b"-" * 100_000 + b"1", "too-deep"),
    "deep attributes": (b"x" + b".a" * 20_000, "too-deep"),
    "deep sum": (b"1" + b"+1" * 20_000, "too-deep"),
    "form feed and odd newlines": (b"x = 1\x0c\r\ny = 2\rz = 3\xe2\x80\xa8", "syntax-error"),
}

# Pieces of code that, put together at random, are often Python and often strange.
PIECES = (
    *("def f(a, /, *b: int, c=1, **d) -> None:", "async def g():", "class A(B, metaclass=C):", "try:", "except*  E:"),
    *("except:", "finally:", "    return", "    yield from x", "    raise 1", "    await f()", "    pass", "else:"),
    *("import a.b as c", "from . import x", "from .. import *", "__all__ = ['a', '\\ud800']", "global x", "@d(1)"),
    *("match x:", "    case {'a': [*_, 1], **r}: pass", "    case A(b=1) | None: pass", "lambda *a: (yield)", "x: int"),
    *("f'{x!r:>{w}}'", "'%s %(a)d %' % (1,)", "'{} {0} {a'.format(1)", "x = y = password = 'p'", "del x, y[1:2]"),
    *("# type: ignore[x", "# nosec B999,foo", "# noqa: V1", "assert (1, 'x')", "exec('x')", "__import__()", "if 0: 1"),
    *("importlib.import_module()", "subprocess.call(shell=True)", "yaml.load(*a, **b)", "requests.get()", "\u202e"),
)
SOURCES = st.one_of(
    st.text(max_size=200),
    st.lists(st.sampled_from(PIECES), max_size=12).map("\n".join),
    st.lists(st.sampled_from(PIECES), max_size=8).map(lambda p: "def f():\n" + "\n".join("    " + x for x in p)),
)


def check(source: str | bytes) -> None:
    with tempfile.TemporaryDirectory() as place:
        root = write(Path(place), {"m.py": source})
        for name in (*ANALYSERS, *TOGETHER):
            given_back = answer(root, name, top=".", prefix="", dead_code_confidence=60)
            assert msgspec.msgpack.decode(msgspec.msgpack.encode(given_back)) == given_back
            for row in given_back["findings"]:
                f = Finding.of_row(row)
                assert f.file == "m.py"
                assert f.severity in SEVERITIES
                # The world may be bad; an analyser that stumbles over it is our bug.
                # (bandit's own checks do, over calls without arguments; that is what `check-failed` is for.)
                assert f.rule != "analysis-failed", f


@pytest.mark.slow
@settings(max_examples=800, deadline=None, suppress_health_check=list(HealthCheck))
@given(SOURCES)
def test_no_text_makes_an_analyser_raise(source: str) -> None:
    check(source.encode("utf-8", "surrogatepass"))


@pytest.mark.slow
@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=300))
def test_no_bytes_make_an_analyser_raise(source: bytes) -> None:
    check(source)


@given(st.text())
def test_a_message_is_one_printable_line(text: str) -> None:
    shown = one_line(text)
    assert shown.isprintable()
    assert len(shown) <= 300
    shown.encode("utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("name", ANALYSERS)
@pytest.mark.parametrize("kind", sorted(BAD))
def test_bad_file_is_a_finding_in_the_same_words_from_everyone(tmp_path: Path, name: str, kind: str) -> None:
    source, rule = BAD[kind]
    some = found(tmp_path, name, source)
    if name == "unicode" and rule in ("syntax-error", "too-deep"):
        return  # reads the text only
    if rule == "too-deep":  # how deep is too deep is the parser's business, or that of the analyser
        assert set(rules(some)) <= {"too-deep", "syntax-error"}
    else:
        assert rules(some) == [rule]
        assert some[0].skill == "audit"


def test_python_counts_lines_as_we_do(tmp_path: Path) -> None:
    """str.splitlines cuts at form feeds and U+2028, Python does not: line numbers would drift."""
    some = found(tmp_path, "names", "x = 1\x0c\r\ny = '\u2028'\rprint(gone)\n")
    assert [(f.rule, f.line) for f in some] == [("undefined-name", 3)]


def test_warnings_of_the_audited_code_are_not_printed(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    source = "x = '\\d'\nif x is 'literal': pass\n"
    with pytest.warns((SyntaxWarning, DeprecationWarning)):
        compile(ast.parse(source), "m", "exec")
    recwarn.clear()
    for name in ANALYSERS:
        found(tmp_path, name, source)
    assert not recwarn.list


def test_pipe_and_changed_file_are_findings_and_never_a_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.py")
    write(tmp_path, {"m.py": "x = 1\n"})
    files = [["pipe.py", ""], ["m.py", "digest of what was there"], ["gone.py", ""]]
    rows = answer(tmp_path, "names", files=files)["findings"]
    assert [(row[0], row[3]) for row in rows] == [
        ("gone.py", "missing"),
        ("m.py", "changed"),
        ("pipe.py", "not-a-file"),
    ]
