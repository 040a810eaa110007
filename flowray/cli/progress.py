"""How a run is doing, on stderr: a live picture on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from flowray.cli.screen import plain_data
from flowray.errors import FlowrayError
from flowray.jobs import Result

if TYPE_CHECKING:
    from rich.console import RenderableType

    from flowray.runtime.jobs import JobEvent
    from flowray.runtime.views import AgentView

_LINE_EVERY_S = 5.0
_LOOK_EVERY_S = 0.5  # at the agents
_LAST = 5  # results and remarks shown


class Progress:
    """Draws where a run stands. `update` is cheap: it may be called for every result."""

    def __init__(
        self, title: str, *, quiet: bool = False, look: Callable[[], tuple[AgentView, ...]] | None = None
    ) -> None:
        """`look` gives the agents; it is called in a thread of its own, for it may have to wait."""
        self._title, self._quiet, self._look = title, quiet, look
        self._live: Any = None
        self._event: JobEvent | None = None
        self._agents: tuple[AgentView, ...] = ()
        self._last: deque[str] = deque(maxlen=_LAST)
        self._remarks: deque[str] = deque(maxlen=_LAST)
        self._rates: deque[tuple[float, int]] = deque(maxlen=64)
        self._line_at = time.monotonic()
        self._stop = threading.Event()

    def __enter__(self) -> Progress:
        if self._look is not None and not self._quiet:
            threading.Thread(target=self._watch, daemon=True, name="progress").start()
        if sys.stderr.isatty() and not self._quiet:
            from rich.console import Console
            from rich.live import Live

            console = Console(stderr=True, highlight=False)
            self._live = Live(console=console, get_renderable=self.picture, refresh_per_second=5, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._live is not None:
            self._live.stop()

    def update(self, event: JobEvent) -> None:
        """Take in where the job stands."""
        self._event = event
        if event.result is not None:
            self._last.append(one_line(event.result))
        now = time.monotonic()
        if not self._rates or now - self._rates[-1][0] >= 0.25:
            self._rates.append((now, event.done))
        if self._live is None and not self._quiet and now - self._line_at >= _LINE_EVERY_S:
            self._line_at = now
            self._write(self.line())

    def remark(self, text: str) -> None:
        """Something worth a line that stays."""
        self._remarks.append(text)
        if self._live is not None:
            self._live.console.print(text, markup=False)
        elif not self._quiet:
            self._write(text)

    def line(self) -> str:
        """Where the run stands, in one line."""
        event = self._event
        if event is None:
            return f"{self._title}: starting"
        parts = [f"{self._title}: {event.done}/{event.expected} tasks", f"{self.rate():.1f}/s"]
        busy = sum(agent.held > 0 for agent in self._agents)
        parts += [f"{busy} of {len(self._agents)} agents busy"] if self._agents else []
        parts += [f"resumed {event.resumed}"] if event.resumed else []
        parts += [f"{event.failed} failed"] if event.failed else []
        return ", ".join(parts)

    def rate(self) -> float:
        """Tasks per second, over the last seconds."""
        if len(self._rates) < 2:
            return 0.0
        (began_at, before), (now, done) = self._rates[0], self._rates[-1]
        return (done - before) / (now - began_at) if now > began_at else 0.0

    def picture(self) -> RenderableType:
        """Where the run stands, as rich draws it."""
        from rich.console import Group
        from rich.text import Text

        from flowray.runtime.pictures import by_tier, tier_line
        from flowray.runtime.render import bar, printable

        event = self._event
        if event is None:
            return Text(f"{self._title}: starting", style="dim")
        share = event.done / event.expected if event.expected else 0.0
        head = Text.assemble(
            (self._title, "bold"), "  ", (bar(share, 24), "green on grey30"), f" {event.done}/{event.expected}"
        )
        head.append(f"  {self.rate():.1f}/s  {event.elapsed_s:.0f} s", style="dim")
        head.append(f"  resumed {event.resumed}" if event.resumed else "", style="cyan")
        head.append(f"  {event.failed} failed" if event.failed else "", style="red")
        lines = [head]
        for tier, members in by_tier(self._agents).items():
            busy = sum(agent.held > 0 for agent in members)
            line = Text.assemble(f"  {tier:<13}", (bar(busy / len(members), 12), "yellow on grey30"))
            line.append(f"  {tier_line(members)}", style="dim")
            lines.append(line)
        lines += [Text(f"  {printable(last)}", style="dim", no_wrap=True, overflow="ellipsis") for last in self._last]
        return Group(*lines)

    def _watch(self) -> None:
        assert self._look is not None
        while not self._stop.wait(_LOOK_EVERY_S):
            try:
                self._agents = self._look()
            except FlowrayError:
                continue  # the coordinator is away for a moment; the picture keeps what it has

    def _write(self, text: str) -> None:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


def one_line(result: Result) -> str:
    """A result, short enough to be looked at while it passes."""
    if result.error:
        return f"{result.key}: failed: {' '.join(result.error.split())}"[:200]
    value = plain_data(result.value) if not isinstance(result.value, (dict, list)) else _summary(result.value)
    return f"{result.key}: {' '.join(str(value).split())}"[:200]


def _summary(value: Any) -> str:
    if isinstance(value, list):
        return f"{len(value)} items"
    return ", ".join(
        f"{key} {len(one) if isinstance(one, (list, dict)) else one}" for key, one in list(value.items())[:4]
    )
