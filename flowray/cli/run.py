"""`flowray run`: a team, an input, a table of results; on Ray or in this process; resumable."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from msgspec import structs

from flowray.cli.failover import KillOne
from flowray.cli.place import Place, job_name
from flowray.cli.progress import Progress
from flowray.cli.screen import Json, Screen, Settings, overrides
from flowray.config import Config, JobConfig, load
from flowray.errors import ConfigError, FlowrayError, WaitTimeout
from flowray.jobs import Job, Report, Result, run_sequentially
from flowray.mapping import MappingJob
from flowray.results import output_file
from flowray.team import local_team, make_job, resolved

if TYPE_CHECKING:
    from flowray.runtime.jobs import JobEvent, JobRun
    from flowray.runtime.recorded import Recorded
    from flowray.runtime.runtime import Runtime

_INTERRUPTED = 130  # what shells give for a command that Ctrl-C ended


def add_to(app: typer.Typer) -> None:
    """Register this command."""
    app.command()(run)


@dataclass(slots=True)
class _Stages:
    """When each stage was reached, in seconds since the command began."""

    began_at: float = field(default_factory=time.monotonic)
    at: dict[str, float] = field(default_factory=dict)

    def reached(self, stage: str, at_s: float | None = None) -> None:
        self.at[stage] = round(time.monotonic() - self.began_at if at_s is None else at_s, 3)


def run(
    team: Annotated[Path, typer.Argument(metavar="TEAM.yaml", help="The team, and how the input becomes tasks.")],
    input_: Annotated[Path, typer.Argument(metavar="INPUT", help="JSONL, CSV or Parquet file, or a directory.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="A .parquet or .jsonl file, or a directory.")],
    set_: Settings = None,
    sequential: Annotated[
        bool, typer.Option("--sequential", help="In this process, one task at a time, no Ray.")
    ] = False,
    kill_one: Annotated[
        bool, typer.Option("--kill-one", help="Kill a busy agent on the way, to see what happens.")
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget what earlier runs over this output did.")] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try what an earlier run failed at again.")
    ] = False,
    timing: Annotated[
        bool,
        typer.Option("--timing/--no-timing", help="Columns agent_id, attempts, run_s, which differ from run to run."),
    ] = True,
    timeout_s: Annotated[float | None, typer.Option("--timeout-s", help="Give up after this long; resumable.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    as_json: Json = False,
) -> None:
    """Run a team over an input and write a table of results. A run that was interrupted goes on where it was."""
    screen = Screen(as_json=as_json, quiet=quiet)
    if sequential and kill_one:
        raise ConfigError("--kill-one", "there is nobody else to go on with --sequential")
    config = load(team, os.environ, overrides(set_))
    base = team.absolute().parent
    if not config.agents:
        raise ConfigError("agents", f"{team} names no agents", 'agents: [{use: "module:Class"}]')
    stages = _Stages()
    with _job(config, base, input_, out, timing=timing) as job, Place.of(out, config) as place:
        if fresh:
            place.forget()
        try:
            if sequential:
                document, report = _sequentially(job, config, base, out, screen, stages, timeout_s)
            else:
                work = _Work(job, resolved(config, base), out, place, screen, stages, timeout_s, retry_failed)
                document, report = work.run(kill_one=kill_one)
        except KeyboardInterrupt:
            again = "nothing of a sequential run is kept" if sequential else "run the same command again to go on"
            screen.say(f"interrupted: {again}")
            raise typer.Exit(_INTERRUPTED) from None
    _show(screen, report, document)
    if document["failed"]:
        raise typer.Exit(1)


@contextmanager
def _job(config: Config, base: Path, input_: Path, out: Path, *, timing: bool) -> Iterator[Job]:
    """The job of this run: the configured class, or a task for each row. What it spooled goes with it."""
    settings = config.job or JobConfig()
    if settings.use:
        if not input_.exists():
            raise ConfigError(str(input_), "there is no such file or directory")
        yield make_job(settings, base, input_)
        return
    output_file(out)
    job = MappingJob.of(input_, settings, out, timing=timing)
    try:
        yield job
    finally:
        job.close()


def _sequentially(
    job: Job, config: Config, base: Path, out: Path, screen: Screen, stages: _Stages, timeout_s: float | None
) -> tuple[dict[str, Any], Report]:
    """The yardstick: no Ray, no concurrency, nothing kept."""
    agents = local_team(config.agents, base)
    stages.reached("agents ready")
    failed = done = 0
    shown_at = time.monotonic()

    def on_result(result: Result) -> None:
        nonlocal failed, done, shown_at
        if not done:
            stages.reached("first result")
        done += 1
        failed += bool(result.error)
        now = time.monotonic()
        if timeout_s is not None and now - stages.began_at > timeout_s:
            raise FlowrayError(f"not done within {timeout_s:g} s: {done} of {job.expected()} tasks are")
        if now - shown_at > 5.0:
            shown_at = now
            screen.say(f"{config.name}: {done}/{job.expected()} tasks")

    report = run_sequentially(job, agents, out, on_result=on_result)
    stages.reached("report written")
    document: dict[str, Any] = {"done": done, "failed": failed, "resumed": 0, "sequential": True, "stages": stages.at}
    return document, report


@dataclass(slots=True)
class _Work:
    """One run on Ray."""

    job: Job
    config: Config
    out: Path
    place: Place
    screen: Screen
    stages: _Stages
    timeout_s: float | None
    retry_failed: bool

    def run(self, *, kill_one: bool) -> tuple[dict[str, Any], Report]:
        from flowray.runtime.jobs import run_job
        from flowray.runtime.recorded import Recorded

        config = self.place.configured(self.config)
        recorded = Recorded.of(self.place.journal, config.store)
        if recorded is not None and recorded.count():
            self.screen.say(f"an earlier run is on record (tasks done: {recorded.count()}); --fresh starts over")
        # Agents' prints would tear the picture apart; they are in Ray's logs.
        settings = structs.replace(config, ray=structs.replace(config.ray, agent_output=False))
        settings_job = config.job or JobConfig()
        log = self.place.directory / "output.log"
        with (
            log.open("a") as others,
            self.screen.alone(others),
            _started(settings, recorded) as runtime,
            _Interrupts() as interrupts,
        ):
            self.stages.reached("Ray started")
            look = None if self.screen.quiet else lambda: runtime.status().agents
            with Progress(config.name, quiet=self.screen.quiet, look=look) as progress:
                self._wait_for_an_agent(runtime)
                self.stages.reached("first agent ready")
                started_s = time.monotonic() - self.stages.began_at
                killer = KillOne(runtime, progress.remark) if kill_one else None
                done = run_job(
                    runtime,
                    self.job,
                    out=self.out,
                    name=job_name(config),
                    open_tasks=settings_job.open_tasks,
                    batch_tasks=config.limits.batch_tasks,
                    recorded=recorded,
                    retry_failed=self.retry_failed,
                    on_event=self._observer(progress, killer, interrupts),
                    before_report=lambda: self._note(runtime.figures(), killer),
                )
            figures = runtime.figures()
        if recorded is not None:
            recorded.close()
        return self._document(done, started_s, figures, killer), done.report

    def _wait_for_an_agent(self, runtime: Runtime) -> None:
        """One is enough to begin; the others join while it works."""
        patience_s = max(0.1, self._left(default=120.0))
        try:
            runtime.wait_ready(patience_s, agents=1)
        except WaitTimeout as error:
            raise FlowrayError(f"no agent was ready within {patience_s:.0f} s; the same command goes on") from error

    def _observer(
        self, progress: Progress, killer: KillOne | None, interrupts: _Interrupts
    ) -> Callable[[JobEvent], None]:
        def observe(event: JobEvent) -> None:
            interrupts.check()
            progress.update(event)
            if killer is not None:
                killer(event)
            if self.timeout_s is not None and self._left(default=0.0) <= 0:
                state = f"{event.done} of {event.expected} tasks are"
                raise FlowrayError(f"not done within {self.timeout_s:g} s: {state}; run the command again to go on")

        return observe

    def _left(self, *, default: float) -> float:
        """Seconds until this run has to give up."""
        if self.timeout_s is None:
            return default
        return self.timeout_s - (time.monotonic() - self.stages.began_at)

    def _note(self, figures: dict[str, int], killer: KillOne | None) -> None:
        """Tell a job that wants to know how it was run; it is for the foot of its report only."""
        facts = getattr(self.job, "run", None)
        if isinstance(facts, dict):
            seconds = round(time.monotonic() - self.stages.began_at, 1)
            facts.update({"seconds": seconds, **figures, **(killer.facts() if killer is not None else {})})

    def _document(
        self, done: JobRun, started_s: float, figures: dict[str, int], killer: KillOne | None
    ) -> dict[str, Any]:
        if done.first_result_s is not None:
            self.stages.reached("first result", started_s + done.first_result_s)
        self.stages.reached("tasks done", started_s + done.tasks_done_s)
        self.stages.reached("report written", started_s + done.tasks_done_s + done.report_s)
        self.stages.reached("all ended")
        document: dict[str, Any] = {"done": done.done, "failed": done.failed, "resumed": done.resumed}
        document |= {"sequential": False, "stages": self.stages.at, "figures_of_runtime": figures}
        return document | (killer.facts() if killer is not None else {})


def _started(settings: Config, recorded: Recorded | None) -> Runtime:
    """The runtime. Classes may have changed in their source since the journal was begun: then say how to go on."""
    from flowray.runtime.runtime import Runtime

    try:
        return Runtime.start(settings)
    except ConfigError as error:
        if recorded is None or error.hint:
            raise
        raise ConfigError(error.field, error.problem, "after a change of the team, --fresh starts over") from error


class _Interrupts:
    """Ctrl-C and SIGTERM end a run alike: agents and Ray are stopped, and the next run resumes.

    The exception alone is not enough: where Python happens to be inside a destructor, it is printed and dropped, and
    a run has been seen to go on after Ctrl-C. So it is also remembered, and raised again between two results.
    Entered after Ray has started, which puts its own handler there.
    """

    def __init__(self) -> None:
        self._wanted = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Interrupts:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._interrupt)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _interrupt(self, number: int, frame: Any) -> None:
        self._wanted = True
        raise KeyboardInterrupt

    def check(self) -> None:
        """Raise KeyboardInterrupt if one was wanted."""
        if self._wanted:
            raise KeyboardInterrupt


def _show(screen: Screen, report: Report, document: dict[str, Any]) -> None:
    if document["resumed"]:
        screen.say(f"resumed: {document['resumed']} of {document['done']} already done")
    runtime = document.get("figures_of_runtime", {})
    if runtime.get("failovers") or document.get("killed"):
        screen.say(f"failovers: {runtime.get('failovers', 0)}, agents restarted: {runtime.get('restarts', 0)}")
    screen.say(f"stages: {', '.join(f'{stage} {at:.1f} s' for stage, at in document['stages'].items())}")
    if screen.as_json:
        answer = {"headline": report.headline, "figures": report.figures, "table": report.table, "files": report.files}
        screen.document(answer | document)
        return
    screen.line(report.headline)
    for name, value in report.figures.items():
        screen.line(f"  {name:<16} {value}")
    for row in _aligned(report.table):
        screen.line(f"  {row}")
    for file in report.files:
        screen.line(f"  -> {file}")


def _aligned(table: tuple[tuple[str, ...], ...]) -> list[str]:
    widths = [max(len(str(row[i])) for row in table) for i in range(len(table[0]))] if table else []
    return [
        "  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table
    ]
