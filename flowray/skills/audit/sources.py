"""Reading and parsing source files, where everything that can be wrong with a file becomes a finding.

Every analyser goes through here, so a file that cannot be read or parsed is reported in the same words by each of them
and the combiner folds the copies into one.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import io
import re
import stat
import tokenize
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from flowray.agents import Context
from flowray.errors import MissingExtra
from flowray.skills.audit.findings import AUDIT, Finding, finding, rows

Measures = dict[str, int | float]  # numbers about one file: complexity, coverage ...
Findings = Iterable[Finding]

_NEWLINE = re.compile("\r\n|\r|\n")


@dataclass(frozen=True)
class Source:
    """One file that could be read and decoded."""

    file: str  # relative to the root, with slashes
    text: str  # newlines are "\n"

    @cached_property
    def tree(self) -> ast.Module:
        """The syntax tree; raises BadSource. Made when asked for: not every analyser needs it."""
        return parse(self.file, self.text)

    @cached_property
    def lines(self) -> list[str]:
        """The lines as Python counts them (not as str.splitlines, which also cuts at form feeds and U+2028)."""
        return self.text.split("\n")


class BadSource(Exception):
    """A file that cannot be audited, and the finding that says why."""

    def __init__(self, why: Finding) -> None:
        super().__init__(why)
        self.why = why


def digest(data: bytes) -> str:
    """Names a content: equal digests, equal bytes."""
    return hashlib.blake2b(data, digest_size=12).hexdigest()


def read_bytes(root: Path, file: str, max_bytes: int) -> bytes:
    """The content of a regular file.

    Raises:
        BadSource: missing, unreadable, not a regular file (opening a pipe would wait for ever), or too large.
    """
    path = root / file
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):
            raise BadSource(problem(file, "not-a-file", "a pipe, socket or device with the name of a source file"))
        if facts.st_size > max_bytes:
            size_kb, limit_kb = facts.st_size // 1024, max_bytes // 1024
            raise BadSource(problem(file, "too-large", f"{size_kb:,} kB, over the limit of {limit_kb:,} kB", "low"))
        return path.read_bytes()
    except FileNotFoundError:
        what = "a symbolic link to nothing" if path.is_symlink() else "gone since the audit was planned"
        raise BadSource(problem(file, "missing", what)) from None
    except OSError as error:
        raise BadSource(problem(file, "unreadable", error.strerror or type(error).__name__)) from error


def decode(file: str, data: bytes) -> str:
    """The text of a source file, by its own declared encoding.

    Raises:
        BadSource: the declaration is unknown or wrong, or there is a null byte.
    """
    if b"\0" in data:
        line = data[: data.index(b"\0")].count(b"\n") + 1
        raise BadSource(problem(file, "null-byte", "a null byte: Python will not read this file", line=line))
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        text = data.decode(encoding)
        if not encoding.startswith("utf-8"):
            text.encode("utf-8")  # some codecs make lone surrogates, which nothing downstream could carry
    except (SyntaxError, LookupError, UnicodeError) as error:
        what = "bytes that are not in the declared encoding" if isinstance(error, UnicodeError) else str(error)
        raise BadSource(problem(file, "bad-encoding", what)) from error
    return _NEWLINE.sub("\n", text)


def parse(file: str, text: str) -> ast.Module:
    """The syntax tree.

    Raises:
        BadSource: the file is not Python (of this version), or nested too deep for the parser.
    """
    try:
        return ast.parse(text)
    except SyntaxError as error:
        line, column = error.lineno or 0, error.offset or 0
        raise BadSource(problem(file, "syntax-error", f"not Python: {error.msg}", line=line, column=column)) from error
    except (RecursionError, MemoryError) as error:
        raise BadSource(problem(file, "too-deep", "nested too deep to parse")) from error
    except ValueError as error:  # what the compiler says of characters that it cannot encode
        raise BadSource(problem(file, "bad-encoding", "characters that cannot be encoded")) from error


def problem(file: str, rule: str, message: str, severity: str = "error", line: int = 0, column: int = 0) -> Finding:
    """A finding about the audit itself."""
    return finding(file, line, column, rule, AUDIT, severity, message)


def each_source(
    payload: Mapping[str, Any], ctx: Context, skill: str, check: Callable[[Source], tuple[Findings, Measures]]
) -> dict[str, Any]:
    """Run `check` over the files of a task; the plain data that an analyser answers with.

    One file that an analyser cannot take costs that file only, and leaves a finding.
    """
    root, max_bytes = Path(payload["root"]), int(payload["max_bytes"])
    found: list[Finding] = []
    measures: dict[str, Measures] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the audited code's own SyntaxWarnings are not for our terminal
        for file, expected in payload["files"]:
            if ctx.cancelled:
                break
            try:
                data = read_bytes(root, file, max_bytes)
                if digest(data) != expected:
                    raise BadSource(problem(file, "changed", "changed while the audit was running"))
                text = decode(file, data)
                some, numbers = check(Source(file, text))
                found.extend(some)
            except BadSource as bad:
                found.append(bad.why)
            except RecursionError:
                found.append(problem(file, "too-deep", f"nested too deep for the {skill} analysis", "low"))
            except Exception as error:  # noqa: BLE001 - a bug of a third-party analyser on one file is that file's finding
                what = f"the {skill} analysis failed: {type(error).__name__}"
                found.append(problem(file, "analysis-failed", what))
            else:
                if numbers:
                    measures[file] = numbers
    return {"findings": rows(found), "measures": measures}


def tool(module: str) -> Any:
    """Import an optional analyser, only in the process that uses it.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra('pip install "flowray[audit]"') from error
