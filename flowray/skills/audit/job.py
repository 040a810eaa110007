"""The audit as a job: plan, every analysis, each package combined as soon as it is complete, then the summary.

The job holds no state but what came in, collected by key; whatever the order of the results, whichever came twice,
`finish` writes the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from flowray.errors import ConfigError
from flowray.jobs import Report, Request, Result
from flowray.skills.audit.analysers import ANALYSERS, CYCLES, Analyser
from flowray.skills.audit.combining import combine, summarise
from flowray.skills.audit.findings import Row, rows
from flowray.skills.audit.options import AuditOptions
from flowray.skills.audit.planning import walk
from flowray.skills.audit.report import write_report
from flowray.skills.audit.sources import problem

_VERSION = 1  # part of every key: raise it when an analyser's answer changes its shape or meaning
_TOOLS = ("bandit", "pyflakes", "radon", "rustworkx", "vulture")


class AuditJob:
    """Audits the Python code below one directory.

    Options are those of AuditOptions, as one object or as keyword arguments. `run` may be filled by whoever drives the
    job (names to plain values: nodes, failovers, seconds ...); it appears at the foot of report.html and nowhere else.

    Raises:
        ConfigError: `input` is no directory that can be listed, or an option is wrong.
    """

    def __init__(self, input: Path | str, *, options: AuditOptions | None = None, **plain: Any) -> None:  # noqa: A002
        if options is not None and plain:
            raise ConfigError("audit", "give either `options` or keyword options, not both")
        self.options = options or AuditOptions.of(**plain)
        self.root = _directory(Path(input))
        self.run: dict[str, Any] = {}
        self._tools = {name: _tool_version(name) for name in _TOOLS}
        self._known: dict[str, Request] = {}  # by key, in the order of asking
        self._done: set[str] = set()
        self._waits: dict[str, set[str]] = {}  # package -> keys of analyses still out
        self._feeds: dict[str, list[str]] = {}  # key of an analysis -> packages that wait for it
        self._failed: set[str] = set()
        self._packages: dict[str, list[list[Any]]] = {}  # package -> [file, lines]
        self._home: dict[str, str] = {}  # file -> package
        self._found: dict[str, list[Row]] = defaultdict(list)  # package -> rows
        self._planned_rows: dict[str, list[Row]] = defaultdict(list)  # those of them that the plan brought
        self._measures: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)  # package -> file -> numbers
        self._combined: dict[str, dict[str, Any]] = {}
        self._combining: dict[str, str] = {}  # key of a combination -> package
        self._planning = self._summarising = ""  # their keys
        self._summary: dict[str, Any] | None = None
        self._agents: dict[str, tuple[int, float]] = {}  # agent -> results, seconds
        self._attempts = 0

    def begin(self) -> Iterable[Request]:
        """Ask for the plan. Its key names the tree's state, so that a changed tree is planned again."""
        self._planning = f"audit/plan/{self._fingerprint()}"
        payload = {**self._where(), "exclude": list(self.options.patterns)}
        yield self._ask(Request(key=self._planning, prompt="Plan the audit", needs=("audit.plan",), payload=payload))

    def on_result(self, result: Result) -> Iterable[Request]:
        """Take one result; one that is not waited for (a repetition) changes nothing."""
        if result.key not in self._known or result.key in self._done:
            return []
        self._done.add(result.key)
        self._count(result)
        if result.key == self._planning:
            return list(self._planned(result))
        if result.key in self._feeds:
            return list(self._analysed(result))
        if result.key in self._combining:
            return list(self._package_done(result))
        self._summarised(result)
        return []

    def expected(self) -> int:
        """Requests made so far."""
        return len(self._known)

    def finish(self, out: Path) -> Report:
        """Write findings.parquet, summary.json and report.html below `out`.

        Raises:
            ConfigError: the job was not driven to its end.
        """
        if self._summary is None:
            missing = len(self._known) - len(self._done)
            raise ConfigError("audit", f"the audit is not complete: {missing} results are missing")
        found = [(package, row) for package, c in sorted(self._combined.items()) for row in c["findings"]]
        return write_report(out, summary=self._document(), findings=found, run=self._run_facts(), options=self.options)

    # -- what follows from what ------------------------------------------------------------------------------------

    def _planned(self, result: Result) -> Iterator[Request]:
        if result.error:
            raise ConfigError("audit.input", f"the audit of {self.root} could not be planned: {result.error}")
        plan = result.value
        self._home = {file[0]: p["name"] for p in plan["packages"] for file in p["files"]}
        for p in plan["packages"]:
            self._packages[p["name"]] = [[name, lines] for name, _, lines, _ in p["files"]]
            self._waits[p["name"]] = set()
        for row in plan["findings"]:
            self._planned_rows[self._place(row)].append(row)
        requests = list(self._analyses(plan))
        for request in requests:
            yield self._ask(request)
        for package in sorted(self._packages):
            if not self._waits[package]:
                yield self._combination(package)
        if not self._packages:
            yield self._summing_up()

    def _analyses(self, plan: Mapping[str, Any]) -> Iterator[Request]:
        files = {p["name"]: p["files"] for p in plan["packages"]}
        # Large packages first: the last package to be complete decides when the audit is.
        for p in sorted(plan["packages"], key=lambda p: (-sum(f[1] for f in p["files"]), p["name"])):
            for tree in plan["trees"]:
                together = [f for package in tree["packages"] for f in files[package]]
                if tree["top"] == p["name"] and len(together) > 1:
                    names = {"top": tree["top"], "prefix": tree["prefix"]}
                    yield self._analysis(CYCLES, p["name"], _content(together), tree["packages"], names)
            for analyser in ANALYSERS:
                if analyser.scope == "package":
                    if sum(f[2] for f in p["files"]) >= self.options.duplicates_from_lines:
                        yield self._analysis(analyser, p["name"], _content(p["files"]), [p["name"]])
                elif analyser.scope in ("files", "triggered"):
                    for chunk in self._chunks(analyser, p):
                        yield self._analysis(analyser, p["name"], chunk, [p["name"]])

    def _chunks(self, analyser: Analyser, package: Mapping[str, Any]) -> Iterator[list[list[Any]]]:
        """The package's files in runs of about the size that makes one task of this analyser."""
        files = package["files"]
        if analyser.scope == "triggered":
            wanted = set(package["triggers"][analyser.skill])
            files = [f for f in files if f[0] in wanted]
        most = int(analyser.pace * self.options.chunk_kb * 1024)
        chunk: list[list[Any]] = []
        size = 0
        for name, size_bytes, _, content in files:
            if chunk and size + size_bytes > most:
                yield chunk
                chunk, size = [], 0
            chunk.append([name, content])
            size += size_bytes
        if chunk:
            yield chunk

    def _analysis(
        self,
        analyser: Analyser,
        label: str,
        files: list[list[Any]],
        feeds: list[str],
        further: Mapping[str, Any] | None = None,
    ) -> Request:
        further = {**(further or {}), **{name: getattr(self.options, name) for name in analyser.options}}
        payload = {**self._where(), "files": files, **further}
        key = f"audit/{analyser.skill}/{label}/{_digest([_VERSION, self._tools, files, further])}"
        self._feeds[key] = feeds
        for package in feeds:
            self._waits[package].add(key)
        prompt = f"{analyser.skill}: {label} ({len(files)} files)"
        return Request(key=key, prompt=prompt, needs=(analyser.capability,), payload=payload)

    def _analysed(self, result: Result) -> Iterator[Request]:
        request = self._known[result.key]
        if result.error:
            self._failed.add(result.key)
            what = f"{request.prompt.split(':')[0]} analysis failed for good: {result.error.splitlines()[-1]}"
            for row in rows(problem(file, "analysis-failed", what) for file, _ in request.payload["files"]):
                self._place(row)
        else:
            for row in result.value["findings"]:
                self._place(row)
            for file, numbers in result.value["measures"].items():
                self._measures[self._home[file]].setdefault(file, {}).update(numbers)
        for package in self._feeds[result.key]:
            self._waits[package].discard(result.key)
            if not self._waits[package]:
                yield self._combination(package)

    def _place(self, row: Row) -> str:
        """Put a finding to its package; a file that could not even be planned makes its directory a package."""
        file = str(row[0])
        package = self._home.get(file) or (file.rpartition("/")[0] or ".")
        if package not in self._packages:
            self._packages[package], self._waits[package] = [], set()
        self._found[package].append(row)
        return package

    def _combination(self, package: str) -> Request:
        fed = sorted(key for key, packages in self._feeds.items() if package in packages)
        inputs = [[key, key in self._failed] for key in fed]
        payload = {
            **self._where(),
            "package": package,
            "files": self._packages[package],
            "findings": sorted(self._found[package]),
            "measures": dict(sorted(self._measures[package].items())),
        }
        content = _digest([_VERSION, inputs, self._packages[package], sorted(self._planned_rows[package])])
        key = f"audit/combine/{package}/{content}"
        self._combining[key] = package
        # Before the analyses of other packages: what is complete should be seen to be complete.
        needs = ("audit.combine",)
        return self._ask(Request(key=key, prompt=f"Combine {package}", needs=needs, payload=payload, priority=1))

    def _package_done(self, result: Result) -> Iterator[Request]:
        package = self._combining[result.key]
        if result.error:
            # The combination is cheap and pure: what no agent could do is done here rather than lost.
            payload = dict(self._known[result.key].payload)
            what = problem(package, "analysis-failed", f"combining the package failed for good: {result.error}")
            payload["findings"] = [*payload["findings"], what.row()]
            self._combined[package] = combine(payload)
        else:
            self._combined[package] = result.value
        if len(self._combined) == len(self._packages):
            yield self._summing_up()

    def _summing_up(self) -> Request:
        packages = [{k: v for k, v in c.items() if k != "findings"} for _, c in sorted(self._combined.items())]
        self._summarising = f"audit/summarise/{_digest([_VERSION, sorted(self._combining)])}"
        needs = ("audit.summarise",)
        return self._ask(
            Request(key=self._summarising, prompt="Summarise", needs=needs, payload={"packages": packages})
        )

    def _summarised(self, result: Result) -> None:
        # As above: pure and small, so a failure for good is made up for here.
        self._summary = summarise(self._known[result.key].payload) if result.error else result.value

    # -- small things -----------------------------------------------------------------------------------------------

    def _ask(self, request: Request) -> Request:
        self._known[request.key] = request
        return request

    def _where(self) -> dict[str, Any]:
        return {"root": str(self.root), "max_bytes": self.options.max_file_kb * 1024}

    def _fingerprint(self) -> str:
        facts: list[Any] = []
        for name in walk(self.root, self.options.patterns):
            try:
                s = (self.root / name).stat()
                facts.append([name, s.st_size, s.st_mtime_ns, s.st_mode])
            except OSError:
                facts.append([name])
        return _digest([_VERSION, asdict(self.options), self._tools, facts])

    def _count(self, result: Result) -> None:
        self._attempts += result.attempts
        if result.agent_id:
            tasks, seconds = self._agents.get(result.agent_id, (0, 0.0))
            self._agents[result.agent_id] = (tasks + 1, seconds + result.run_s)

    def _run_facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = {"tasks": len(self._done), "attempts": self._attempts, "agents": len(self._agents)}
        seconds = sum(s for _, s in self._agents.values())
        if seconds:
            facts["agent seconds"] = round(seconds, 1)
        return {**facts, **self.run}

    def _document(self) -> dict[str, Any]:
        assert self._summary is not None
        return {
            "format": _VERSION,
            "name": self.root.name,
            "tools": self._tools,
            "options": {**asdict(self.options), "exclude": list(self.options.exclude)},
            **self._summary,
        }


def _directory(root: Path) -> Path:
    try:
        resolved = root.resolve(strict=True)
        next(resolved.iterdir(), None)
    except OSError as error:
        raise ConfigError("audit.input", f"cannot read the directory {root}: {error.strerror}") from error
    return resolved


def _content(files: list[list[Any]]) -> list[list[Any]]:
    """The plan's files as an analyser wants them: [name, digest]."""
    return [[name, content] for name, _, _, content in files]


def _digest(plain: Any) -> str:
    return hashlib.blake2b(json.dumps(plain, sort_keys=True).encode(), digest_size=9).hexdigest()


def _tool_version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
