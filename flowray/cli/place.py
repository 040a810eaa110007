"""Where a run keeps what lets it go on after an interruption: a journal beside its output, and one run at a time."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import msgspec
from msgspec import structs

from flowray.config import Config, beside_results
from flowray.errors import ConfigError, FlowrayError
from flowray.results import EXTENSIONS


@dataclass(slots=True)
class Place:
    """The state of runs over one output. Held by one process: the lock goes with it, however it ends."""

    directory: Path  # <out>/.flowray, or <directory of out>/.flowray/<name of out>
    journal: Path
    _lock: int = -1

    @classmethod
    def of(cls, out: Path, config: Config) -> Place:
        """The place that belongs to this output."""
        if out.suffix.lower() in EXTENSIONS:
            directory = out.parent / ".flowray" / out.name
        else:
            directory = out / ".flowray"
        journal = Path(config.journal).expanduser() if config.journal else directory / f"journal-{_team(config)}"
        return cls(directory.absolute(), journal.absolute())

    def __enter__(self) -> Place:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise ConfigError(str(self.directory), f"cannot be made: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            other = os.pread(self._lock, 32, 0).decode().strip()
            os.close(self._lock)
            raise FlowrayError(
                f"another `flowray run` (process {other}) works on this output: {self.directory}"
            ) from None
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, str(os.getpid()).encode(), 0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._lock)

    def forget(self) -> None:
        """Start over: what earlier runs recorded is removed. A journal that the configuration names is the user's."""
        for journal in self.directory.glob("journal-*"):
            shutil.rmtree(journal, ignore_errors=True)

    def configured(self, config: Config) -> Config:
        """The configuration with its journal here."""
        if config.journal:
            return config
        # What a run on a RAM disk leaves behind survives the driver and the agents, and more is not expected there.
        return structs.replace(beside_results(config, volatile=True), journal=str(self.journal))


def _team(config: Config) -> str:
    """A digest of the agents' classes, without how many there are: a journal remembers them and keeps them as they are.

    So a team that was changed gets a journal of its own instead of being refused, or mixed with what it was.
    """
    agents = sorted(json.dumps(msgspec.to_builtins(structs.replace(a, count=1)), sort_keys=True) for a in config.agents)
    return hashlib.sha256("\n".join(agents).encode()).hexdigest()[:8]


def job_name(config: Config) -> str:
    """Part of every idempotency key: another job, or agents that are set up otherwise, must not share outcomes.

    How many agents there are and where they run changes no result, so it does not count.
    """
    agents = sorted((a.use, a.name, sorted(a.options.items(), key=str), a.capabilities or []) for a in config.agents)
    what = config.job.use if config.job is not None and config.job.use else "rows"
    digest = hashlib.sha256(msgspec.json.encode([agents, what], order="deterministic")).hexdigest()[:8]
    return f"{config.name}/{digest}"
