"""What a person may choose about an audit, validated."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from flowray.errors import ConfigError

# Directories that hold other people's code or no source at all.
NEVER = ("site-packages", "__pycache__", ".git", ".hg", ".venv", "venv", "node_modules", ".tox", ".nox", ".eggs")
TESTS = ("test", "tests", "*_test", "testing_data", "test_*.py", "*_test.py", "conftest.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditOptions:
    """How to audit.

    Patterns are those of `fnmatch`; each is tried against every part of a file's relative path and against the whole.
    """

    tests: bool = True  # audit test code too
    exclude: tuple[str, ...] = ()  # further patterns to leave out
    chunk_kb: int = 96  # source in one task of the slowest analyser; the others take more, by their speed
    max_file_kb: int = 2048  # larger files are named in the report, and not analysed
    dead_code_confidence: int = 80  # percent; below 80 vulture also guesses at functions that only other files use
    duplicates_from_lines: int = 500  # packages with fewer lines are not searched for copied blocks
    report_rows: int = 1500  # findings that report.html carries at most; findings.parquet has all

    def __post_init__(self) -> None:
        for name, least, most in (
            ("chunk_kb", 1, 65_536),
            ("max_file_kb", 1, 65_536),
            ("dead_code_confidence", 0, 100),
            ("duplicates_from_lines", 0, 10_000_000),
            ("report_rows", 1, 20_000),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
                raise ConfigError(f"audit.{name}", f"must be a whole number from {least} to {most:,}, got {value!r}")
        if not isinstance(self.exclude, tuple) or not all(isinstance(p, str) and p for p in self.exclude):
            raise ConfigError("audit.exclude", f"must be non-empty patterns, got {self.exclude!r}")

    @classmethod
    def of(cls, **plain: Any) -> AuditOptions:
        """From plain values, as a command line or a YAML file gives them.

        Raises:
            ConfigError: there is no such option, or its value cannot be.
        """
        known = [f.name for f in fields(cls)]
        for name in sorted(plain):
            if name not in known:
                raise ConfigError(f"audit.{name}", "there is no such option", f"known: {', '.join(known)}")
        exclude = plain.get("exclude")
        if isinstance(exclude, str):
            plain["exclude"] = tuple(part.strip() for part in exclude.split(",") if part.strip())
        elif isinstance(exclude, Iterable):
            plain["exclude"] = tuple(exclude)
        return cls(**plain)

    @property
    def patterns(self) -> tuple[str, ...]:
        """Everything that is left out."""
        return NEVER + (() if self.tests else TESTS) + self.exclude
