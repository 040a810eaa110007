"""How a new version of the router comes into force: in shadow, as a canary, watched; and how it goes again, by itself.

    idle ── offered ▶ shadow ── passed ▶ canary ── promoted ▶ watched ── settled ▶ idle
      ▲                 │                  │                     │
      ├──── rejected ───┴───── rejected ───┘                     │
      └───────────────────── rolled_back ────────────────────────┘

**Shadow**: the older version answers everything; of a share of the tasks the newer one is asked too, and nobody hears
its answer. It passes once its squared error of the chosen agents is shown to be at most `margin` worse. It is rejected
once that error is shown to be greater, or its choices are shown to earn less (doubly robust, where that can be told).

**Canary**: the newer version answers `canary_share` of the tasks. Each of these outcomes is held against the mean of
the control outcomes since the last one (tasks that the older version answered and the newer one was asked about), so
both are of one time. Only tasks on which the two would choose differently count: on the others any difference is
chance. Promoted once it is shown to earn more, rejected once it is shown to earn less.

**Watched**: the newer version is in force, and the older one still answers `canary_share` of the tasks. Rolled back
once that is shown to earn more; settled after `watch` outcomes.

"Shown" is a bet (`flowray.core.betting`) that reached 1 / alpha: a version that is not better is promoted with a
probability of at most `alpha`, and one that is not worse rejected, by any one test, or rolled back with no more than
that, however often one looks. What is not shown within `most` outcomes counts as not so: nothing is promoted on noise.
Nor is what hardly differs: a version that was wrong and learned better as a canary says what the other one says by
then. A version that raises, answers with nonsense or takes far too long is out at once (`broke`).

Which tasks are whose is a hash of the task's id and of the version: the same after a restart, and for every attempt.
Nothing here reads a clock or draws a number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

from msgspec import Struct

from flowray.core.betting import Bet, Purse
from flowray.errors import ConfigError, InvalidTransition, InvariantBroken


class RolloutStage(str, Enum):
    IDLE = "idle"  # one version, and no other
    SHADOW = "shadow"  # another is asked, and not heard
    CANARY = "canary"  # and answers a few tasks
    WATCHED = "watched"  # it is in force, and the earlier one answers a few tasks


_S = RolloutStage
ROLLOUT_TRANSITIONS: dict[tuple[RolloutStage, str], RolloutStage] = {
    (_S.IDLE, "offered"): _S.SHADOW,
    (_S.SHADOW, "passed"): _S.CANARY,
    (_S.SHADOW, "rejected"): _S.IDLE,
    (_S.CANARY, "promoted"): _S.WATCHED,
    (_S.CANARY, "rejected"): _S.IDLE,
    (_S.WATCHED, "settled"): _S.IDLE,
    (_S.WATCHED, "rolled_back"): _S.IDLE,
}


class RolloutPolicy(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How careful to be with a new version. Shares are of tasks, counts of outcomes."""

    shadow_share: float = 0.1  # of which both versions are asked, the other one unheard
    shadow_least: int = 200  # before a version passes
    shadow_most: int = 5_000  # within which it must
    canary_share: float = 0.01  # that the version on trial answers; after its promotion, the earlier one
    canary_least: int = 30  # pairs of canary and control before a promotion
    canary_most: int = 2_000  # canary outcomes within which it must come
    canary_idle: float = 0.05  # share of canaries on which the versions differ, below which there is nothing to gain
    watch: int = 5_000  # of tasks that both were asked about, after which a promoted version stays
    alpha: float = 0.05  # the probability of each kind of error
    margin: float = 0.01  # of squared error, that is no reason to keep a version out of the canary
    differing: float = 0.05  # total variation between what two versions would choose, from which they differ
    least_propensity: float = 0.05  # of a choice, below which it says nothing of what another would have earned
    slow_factor: float = 5.0  # times the other version's seconds for a task, from which it is too slow

    def __post_init__(self) -> None:
        for name in ("shadow_share", "canary_share", "alpha", "least_propensity"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(f"rollout.{name}", f"must be between 0 and 1, got {getattr(self, name)}")
        for name in ("margin", "differing", "canary_idle"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"rollout.{name}", f"must be at least 0 and below 1, got {getattr(self, name)}")
        if self.shadow_share + self.canary_share > 1:
            raise ConfigError("rollout.shadow_share", "must leave room for canary_share: together at most 1")
        for name in ("shadow_least", "canary_least", "watch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"rollout.{name}", f"must be at least 1, got {getattr(self, name)}")
        for stage in ("shadow", "canary"):
            least, most = getattr(self, f"{stage}_least"), getattr(self, f"{stage}_most")
            if most < least:
                raise ConfigError(f"rollout.{stage}_most", f"must be at least {stage}_least ({least}), got {most}")
        if self.slow_factor <= 1:
            raise ConfigError("rollout.slow_factor", f"must be above 1, got {self.slow_factor}")


class Part(NamedTuple):
    """What a task is for a rollout."""

    by_newer: bool  # who answers it
    both: bool  # are both asked?


class Seen(Struct, frozen=True):
    """What one outcome says of the two."""

    by_newer: bool
    reward: float  # 0..1
    error_saved: float | None = None  # -1..1 squared error of the older one less that of the newer one
    gain: float | None = None  # of the newer one's choice over the older one's, doubly robust; None: cannot be told
    apart: float = 0.0
    first: bool = True  # it is of the task's first attempt


class Evidence(Struct, frozen=True, array_like=True):
    """What a stage has seen, as the journal keeps it. A restart loses what came since, which favours nobody."""

    outcomes: int = 0
    canaries: int = 0  # of these, answered by the version that answers few
    safe: Purse = Purse()  # its error is at most `margin` greater
    worse: Purse = Purse()  # its error is greater
    dearer: Purse = Purse()  # its choices earn less, doubly robust
    earns_more: Purse = Purse()  # as a canary
    earns_less: Purse = Purse()


class Decision(Struct, frozen=True):
    """An arrow that was followed, and why."""

    arrow: str
    stage: RolloutStage  # now
    why: str


_ONE = Part(False, False)
_TO_DIFFER = 10  # times `canary_least` canaries, after which it is asked how often the versions differ


class Rollout:
    """The rollout of one version at a time. `older` is in force while idle; see the module for the rest."""

    def __init__(
        self,
        policy: RolloutPolicy,
        stage: RolloutStage = RolloutStage.IDLE,
        version: str = "",
        evidence: Evidence | None = None,
    ) -> None:
        """As it begins, or as it stood: `version` is that of the newer one."""
        self._policy = policy
        self._stage = stage
        self._salt = version
        self._begin(evidence or Evidence())

    def _begin(self, evidence: Evidence) -> None:
        self._outcomes, self._canaries = evidence.outcomes, evidence.canaries
        self._safe = Bet(-self._policy.margin, evidence.safe)
        self._worse = Bet(0.0, evidence.worse)
        self._dearer = Bet(0.0, evidence.dearer)
        self._more = Bet(0.0, evidence.earns_more)
        self._less = Bet(0.0, evidence.earns_less)
        # Sum and count of the rewards since the last pair: of the version that answers few tasks, and of the other one.
        self._few: tuple[float, int] = (0.0, 0)
        self._many: tuple[float, int] = (0.0, 0)

    @property
    def stage(self) -> RolloutStage:
        return self._stage

    @property
    def outcomes(self) -> int:
        """Of tasks that both were asked about, in this stage."""
        return self._outcomes

    def part(self, task_id: str) -> Part:
        """Who answers this task, and are both asked about it? The same whenever it is asked within a stage."""
        if self._stage is _S.IDLE:
            return _ONE
        policy, watched = self._policy, self._stage is _S.WATCHED
        place = _place(f"{self._salt}/{task_id}")
        few = place < policy.canary_share and self._stage is not _S.SHADOW
        return Part(few != watched, place < policy.canary_share + policy.shadow_share)

    def offered(self, version: str) -> Decision:
        """A candidate has come, and is loaded. Raises InvalidTransition unless idle."""
        self._salt = version
        return self._follow("offered", "it was offered")

    def broke(self, why: str) -> Decision | None:
        """The newer version cannot be used: it goes at once. None where there is none."""
        if self._stage is _S.IDLE:
            return None
        return self._follow("rolled_back" if self._stage is _S.WATCHED else "rejected", why)

    def older_broke(self, why: str) -> Decision | None:
        """The earlier version can no longer be asked, so there is nothing to hold the one in force against.

        None where the older version is itself in force: its trouble is not the other one's.
        """
        return self._follow("settled", why) if self._stage is _S.WATCHED else None

    def saw(self, seen: Seen) -> Decision | None:
        """One outcome of a task that both were asked about; what follows from it, if anything does."""
        if self._stage is _S.IDLE:
            return None
        self._outcomes += 1
        if self._stage is not _S.WATCHED and not seen.by_newer:
            self._saw_unheard(seen)
        if self._stage is not _S.SHADOW and seen.first:
            self._saw_answered(seen)
        return self._judges[self._stage](self)

    def evidence(self) -> Evidence:
        """For the journal."""
        bets = (self._safe, self._worse, self._dearer, self._more, self._less)
        return Evidence(self._outcomes, self._canaries, *(bet.keep() for bet in bets))

    def check(self) -> None:
        """Raise InvariantBroken where the state contradicts itself."""
        if not 0 <= self._canaries <= self._outcomes:
            raise InvariantBroken(f"{self._canaries} canaries of {self._outcomes} outcomes")
        if self._stage is _S.IDLE and self._outcomes:
            raise InvariantBroken(f"idle, and {self._outcomes} outcomes of a trial")
        if self._stage is _S.SHADOW and (self._canaries or self._more.count):
            raise InvariantBroken("a version in shadow was heard")
        if self._stage is _S.WATCHED and (self._safe.count or self._dearer.count):
            raise InvariantBroken("a version in force was judged by what the other one chose")
        if self._few[1] and self._many[1]:
            raise InvariantBroken("a canary and its control were not put against each other")
        for bet in (self._safe, self._worse, self._dearer, self._more, self._less):
            bet.check()

    # ── evidence ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _saw_unheard(self, seen: Seen) -> None:
        """The older version chose; what would the newer one have said, and chosen?"""
        if seen.error_saved is not None:
            self._safe.add(seen.error_saved)
            self._worse.add(-seen.error_saved)
        if seen.gain is not None:
            self._dearer.add(-seen.gain / (1.0 + 1.0 / self._policy.least_propensity))

    def _saw_answered(self, seen: Seen) -> None:
        few = seen.by_newer is not (self._stage is _S.WATCHED)
        self._canaries += few
        if seen.apart < self._policy.differing:
            return
        if few:
            self._few = self._few[0] + seen.reward, self._few[1] + 1
        else:
            self._many = self._many[0] + seen.reward, self._many[1] + 1
        if self._few[1] and self._many[1]:
            difference = self._few[0] / self._few[1] - self._many[0] / self._many[1]
            self._more.add(difference)
            self._less.add(-difference)
            self._few = self._many = (0.0, 0)

    # ── decisions ────────────────────────────────────────────────────────────────────────────────────────────────

    def _judge_shadow(self) -> Decision | None:
        policy = self._policy
        if (worse := self._shown_worse()) is not None:
            return worse
        if self._outcomes >= policy.shadow_least and self._safe.shown(policy.alpha):
            saved = self._safe.mean
            return self._follow("passed", f"its squared error was {_less(saved)} in {self._safe.count} outcomes")
        if self._outcomes >= policy.shadow_most:
            why = (
                f"it was not shown to be as exact in {self._outcomes} outcomes: squared error {_less(self._safe.mean)}"
            )
            return self._follow("rejected", why)
        return None

    def _judge_canary(self) -> Decision | None:
        policy, pairs = self._policy, self._more.count
        if self._less.shown(policy.alpha):
            return self._follow("rejected", f"as a canary it earned {self._more.mean:+.3f} in {pairs} pairs")
        if (worse := self._shown_worse()) is not None:
            return worse
        if pairs >= policy.canary_least and self._more.shown(policy.alpha):
            why = f"as a canary it earned {self._more.mean:+.3f} in {pairs} pairs of tasks on which the two differ"
            return self._follow("promoted", why)
        if self._canaries >= _TO_DIFFER * policy.canary_least and pairs < policy.canary_idle * self._canaries:
            return self._follow("rejected", f"the two chose otherwise in {pairs} of {self._canaries} canary outcomes")
        if self._canaries >= policy.canary_most:
            found = f"{self._more.mean:+.3f}, {pairs} pairs"
            why = f"it was not shown to be better in {self._canaries} canary outcomes: {found}"
            return self._follow("rejected", why)
        return None

    def _judge_watched(self) -> Decision | None:
        """Here the few are the earlier version's: that these earn more is what speaks against the newer one."""
        policy, pairs = self._policy, self._more.count
        if self._more.shown(policy.alpha):
            return self._follow("rolled_back", f"the earlier version earned {self._more.mean:+.3f} in {pairs} pairs")
        if self._outcomes >= policy.watch:
            why = f"the earlier version earned {self._more.mean:+.3f} in {pairs} pairs, after {self._outcomes} outcomes"
            return self._follow("settled", why)
        return None

    def _shown_worse(self) -> Decision | None:
        alpha = self._policy.alpha
        if self._worse.shown(alpha):
            why = f"its squared error was {_less(-self._worse.mean)} in {self._worse.count} outcomes"
            return self._follow("rejected", why)
        if self._dearer.shown(alpha):
            gain = -self._dearer.mean * (1.0 + 1.0 / self._policy.least_propensity)
            why = f"its choices would have earned {gain:+.3f} where they differ ({self._dearer.count} outcomes)"
            return self._follow("rejected", why)
        return None

    def _follow(self, arrow: str, why: str) -> Decision:
        try:
            self._stage = ROLLOUT_TRANSITIONS[self._stage, arrow]
        except KeyError:
            raise InvalidTransition(f"the rollout is {self._stage.value}: no arrow {arrow!r}") from None
        self._begin(Evidence())
        return Decision(arrow, self._stage, why)

    _judges: dict[RolloutStage, Callable[[Rollout], Decision | None]] = {
        _S.SHADOW: _judge_shadow,
        _S.CANARY: _judge_canary,
        _S.WATCHED: _judge_watched,
    }


def _place(name: str) -> float:
    """Where a name lies between 0 and 1: the same everywhere and for ever."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") / 2.0**64


def _less(saved: float) -> str:
    return f"{abs(saved):.4f} {'less' if saved >= 0 else 'greater'}"
