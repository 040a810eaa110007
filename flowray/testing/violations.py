"""That something must not be."""

from __future__ import annotations

from flowray.errors import InvariantBroken


class Violation(InvariantBroken):
    """An invariant of the whole world does not hold. `invariant` is its number."""

    def __init__(self, invariant: str, detail: str) -> None:
        super().__init__(invariant, detail)
        self.invariant, self.detail = invariant, detail

    def __str__(self) -> str:
        return f"invariant {self.invariant}: {self.detail}"


def hold(condition: bool, invariant: str, detail: str) -> None:
    """Raise Violation unless the condition holds."""
    if not condition:
        raise Violation(invariant, detail)
