"""The job of those who have no job class: every row of a source is one task, every outcome one row of a table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from flowray.config import JobConfig
from flowray.jobs import Report, Request, Result
from flowray.results import Spool, output_file
from flowray.sources import Source, open_source


class MappingJob:
    """Map a source to a table of results."""

    def __init__(self, source: Source, config: JobConfig, out: Path, *, timing: bool = True) -> None:
        """Reads the source once. Raises ConfigError for what is wrong with it, or with where the results should go."""
        self._source, self._config, self._timing = source, config, timing
        self._file = output_file(out)
        self._rows = source.check()
        self._spool = Spool()
        self._failed = 0

    @classmethod
    def of(cls, path: Path, config: JobConfig, out: Path, *, timing: bool = True) -> MappingJob:
        """The job that maps a file or directory."""
        leave_out = out if not out.suffix else None
        source = open_source(path, prompt=config.prompt, key=config.key, glob=config.glob, leave_out=leave_out)
        return cls(source, config, out, timing=timing)

    def begin(self) -> Iterator[Request]:
        """One request for each row, made as they are asked for."""
        config = self._config
        for row in self._source.rows():
            yield Request(
                key=row.key,
                prompt=row.prompt,
                payload=row.payload,
                needs=tuple(config.needs),
                priority=config.priority,
                deadline_s=config.deadline_s,
                max_attempts=config.max_attempts,
                # A changed file is another task, although its path is the same: resuming must not reuse its outcome.
                labels={"sha256": row.digest} if row.digest else {},
            )

    def on_result(self, result: Result) -> Iterable[Request]:
        """Keep it; nothing follows."""
        self._failed += bool(result.error)
        self._spool.add(result)
        return ()

    def expected(self) -> int:
        """Rows of the source."""
        return self._rows

    def finish(self, out: Path) -> Report:
        """Write the table."""
        count = self._spool.write(self._file, timing=self._timing)
        self._spool.close()
        failed = f", {self._failed} of them failed" if self._failed else ""
        return Report(
            headline=f"{count} result{'' if count == 1 else 's'}{failed}",
            figures={"rows": count, "failed": self._failed},
            files=(self._file,),
        )

    def close(self) -> None:
        """Give up: forget what was collected (the journal still has it)."""
        self._spool.close()
