"""Small code bases on disk, and one analyser run over them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowray.agents import Context, Task
from flowray.jobs import Job, Request, Result
from flowray.skills.audit.findings import Finding
from flowray.skills.audit.sources import digest
from flowray.skills.audit.team import TEAM

_AGENTS: dict[str, Any] = {}


def agent(name: str) -> Any:
    """The team's agent of that name; one for the whole test run, as in a process of its own."""
    if name not in _AGENTS:
        _AGENTS[name] = next(m for m in TEAM if m.name == name).agent()
    return _AGENTS[name]


def write(root: Path, files: Mapping[str, str | bytes]) -> Path:
    """A code base."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return root


def answer(root: Path, name: str, **payload: Any) -> dict[str, Any]:
    """What the analyser says of all Python files below root."""
    paths = sorted(p for p in root.rglob("*.py") if p.is_file())
    files = [[p.relative_to(root).as_posix(), digest(p.read_bytes())] for p in paths]
    task = Task(id="t", payload={"root": str(root), "max_bytes": 1 << 20, "files": files, **payload})
    return dict(agent(name).run(task, Context(agent_id="a")))


def found(root: Path, name: str, source: str | bytes, **payload: Any) -> list[Finding]:
    """The findings in one file."""
    write(root, {"m.py": source})
    return [Finding.of_row(row) for row in answer(root, name, **payload)["findings"]]


def rules(findings: list[Finding]) -> list[str]:
    """Just the rules, in order of place."""
    return [f.rule for f in findings]


def perform(request: Request) -> Result:
    """Do one request with the team's own agents."""
    member = next(m for m in TEAM if set(request.needs) <= set(m.capabilities))
    task = Task(id=request.key, payload=request.payload, needs=request.needs)
    return Result(key=request.key, value=agent(member.name).run(task, Context(agent_id=member.name)))


def drive(job: Job, *, order: Any = None, repeat: bool = False, fail: Any = None) -> None:
    """Run a job to its end; `order` picks the next request, `repeat` delivers results twice, `fail` makes errors."""
    waiting = list(job.begin())
    while waiting:
        request = waiting.pop(order.randrange(len(waiting)) if order else 0)
        error = fail(request) if fail else ""
        result = Result(key=request.key, error=error) if error else perform(request)
        waiting += job.on_result(result)
        if repeat:
            assert list(job.on_result(result)) == []
