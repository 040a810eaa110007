"""Dangerous calls, secrets in the source and weak cryptography, by bandit's checks.

bandit's checks are used, its driver is not. The driver copies a context for each check, keeps scores, formats log lines
for each node and tokenizes every file; walking only to the kinds of node that have checks takes a third of the time,
prints nothing and leaves no global state behind but a silenced logger.
"""

from __future__ import annotations

import ast
import io
import logging
import tokenize
import warnings
from typing import Any

from flowray.agents import Context, Task, agent
from flowray.skills.audit.findings import Finding, finding
from flowray.skills.audit.sources import Measures, Source, each_source, problem, tool

SKILL = "security"

# Left to others: asserts are no finding in themselves, swallowed exceptions and bidirectional controls have analysers.
_SKIPPED = frozenset({"B101", "B110", "B112", "B613"})
# True of most programs that do anything at all, or wrong far more often than right (the guesses at passwords): worth a
# note, not a place in the list. So are all of B4xx: that a module is imported is not yet a weakness.
_NOTES = frozenset({"B105", "B107", "B311", "B603", "B606", "B607"})
_LOW = frozenset({"B312", "B321"})  # telnet and ftp: a protocol of its time is seldom an accident
_CHECKED = (ast.Call, ast.Constant, ast.FunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)
# bandit searches the keys of a dict for each of its keys: 1.4 s for the table of HTML entities. Tables are left out.
_LARGEST_DICT = 256
_LOWER = {"high": "medium", "medium": "low", "low": "note"}


@agent(capabilities={"audit.security"}, tier="secondary")
class SecurityAnalyser:
    """Finds what an attacker would look for."""

    def __init__(self) -> None:
        logging.getLogger("bandit").setLevel(logging.CRITICAL)
        shown_as = warnings.formatwarning
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its plugin loader uses something deprecated
            core = tool("bandit.core")
        warnings.formatwarning = shown_as  # bandit replaces it for the whole process when it is imported
        self._visitor = _visitor_class(core.node_visitor)
        self._context = core.context.Context
        self._comment = core.manager._parse_nosec_comment
        profile = {"include": set(), "exclude": set(_SKIPPED)}
        self._tests = core.test_set.BanditTestSet(core.config.BanditConfig(), profile)

    def run(self, task: Task, ctx: Context) -> dict[str, Any]:
        """Findings for the task's files."""
        return each_source(task.payload, ctx, SKILL, self._check)

    def _check(self, source: Source) -> tuple[list[Finding], Measures]:
        checks = _Checks(source.file, self._tests, self._context, self._nosec(source.text))
        # The leading "./" makes bandit take the file's name as it is, without looking around on the disk.
        visitor = self._visitor("./" + source.file, None, None, self._tests, False, {}, None)
        visitor.tester = checks
        visitor.generic_visit(source.tree)
        return checks.found, {}

    def _nosec(self, text: str) -> dict[int, set[str]]:
        """Lines with a `nosec` comment, and the checks that it names; an empty set is all of them."""
        if "nosec" not in text:
            return {}
        try:
            tokens = [t for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type == tokenize.COMMENT]
        except (tokenize.TokenError, SyntaxError):
            return {}
        parsed = ((t.start[0], self._comment(t.string)) for t in tokens)
        return {line: tests for line, tests in parsed if tests is not None}


class _Checks:
    """Runs bandit's checks of one kind of node: the place of bandit's own tester."""

    def __init__(self, file: str, tests: Any, context: Any, nosec: dict[int, set[str]]) -> None:
        self.found: list[Finding] = []
        self._file, self._tests, self._context, self._nosec = file, tests, context, nosec

    def run_tests(self, raw: dict[str, Any], kind: str) -> None:
        """Every check for this kind, on the node in `raw`."""
        context = self._context(raw)
        for test in self._tests.get_tests(kind):
            try:
                issue = test(context, test._config) if hasattr(test, "_config") else test(context)
            except Exception as error:  # noqa: BLE001 - a check that stumbles over unusual code must not hide the others
                what = f"bandit's check {test.__name__} failed: {type(error).__name__}"
                self.found.append(problem(self._file, "check-failed", what, "note", line=raw["lineno"]))
                continue
            if issue is not None:
                self._take(issue, issue.test_id or test._test_id, raw)

    def _take(self, issue: Any, rule: str, raw: dict[str, Any]) -> None:
        node = raw["node"]
        line = issue.lineno or raw["lineno"]
        for number in {line, *range(node.lineno, (node.end_lineno or node.lineno) + 1)} if self._nosec else ():
            if number in self._nosec and (not self._nosec[number] or rule in self._nosec[number]):
                return
        severity = str(issue.severity).lower()
        severity = severity if severity in _LOWER else "low"
        if issue.confidence == "LOW":
            severity = _LOWER[severity]
        severity = "note" if rule in _NOTES or rule.startswith("B4") else "low" if rule in _LOW else severity
        column = issue.col_offset if issue.col_offset >= 0 else raw["col_offset"]
        self.found.append(finding(self._file, line, column + 1, rule, SKILL, severity, issue.text))


def _visitor_class(node_visitor: Any) -> Any:
    class Visitor(node_visitor.BanditNodeVisitor):
        """bandit's visitor, going only where a check may be."""

        namespace: str

        def generic_visit(self, node: ast.AST) -> None:
            for _, value in ast.iter_fields(node):
                if isinstance(value, list):
                    children = [child for child in value if isinstance(child, ast.AST)]
                elif isinstance(value, ast.AST):
                    children = [value]
                else:
                    continue
                siblings: list[Any] = [*children[1:], None]
                for child, sibling in zip(children, siblings, strict=False):  # no children, one None
                    vars(child).update(_bandit_parent=node, _bandit_sibling=sibling)
                    if isinstance(child, _CHECKED) and not _in_large_dict(child, node):
                        self._enter(child)
                        self.visit(child)
                    self.generic_visit(child)
                    if isinstance(child, ast.FunctionDef | ast.ClassDef):
                        self.namespace = self.namespace.rpartition(".")[0]

        def _enter(self, node: Any) -> None:
            self.context = {
                "imports": self.imports,
                "import_aliases": self.import_aliases,
                "lineno": node.lineno,
                "col_offset": node.col_offset,
                "end_col_offset": node.end_col_offset,
                "node": node,
                "linerange": (node.lineno, node.end_lineno),
                "filename": self.fname,
                "file_data": None,
            }

        def update_scores(self, scores: Any) -> None:
            """Not kept."""

    return Visitor


def _in_large_dict(node: ast.AST, parent: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(parent, ast.Dict) and len(parent.keys) > _LARGEST_DICT
