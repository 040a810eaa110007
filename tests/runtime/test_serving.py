"""A router behind Ray Serve, on a real cluster: what it says, new versions under load, and its processes killed."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from msgspec import structs
from routing.routers import trained
from routing.sets import two_trades

from flowray.core.breaker import BreakerPolicy, BreakerState
from flowray.core.hedging import HedgePolicy
from flowray.core.model import RouterPlace
from flowray.errors import InvalidTask, NotConnected, RouterRefused
from flowray.routing import artifacts, estimator, quantization
from flowray.routing.artifacts import ArtifactError
from flowray.routing.cards import described
from flowray.routing.config import AskingConfig, ServingConfig
from flowray.routing.queries import Answers, Queries, Query, decode_answers, decode_status, encode
from flowray.routing.scoring import Scorer
from flowray.routing.versions import version_of
from flowray.runtime.scorers import Failed, Hedged, Scored

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`"),  # Serve's own, at its import
]
SHIPPED = Path(__file__).parents[2] / "models" / "router" / "v1"
DEADLINE_S = 1.0
LATE_S = 0.5  # that a busy machine may add
ASKING = AskingConfig(
    deadline_s=DEADLINE_S,
    hedge=HedgePolicy(burst=100.0),
    breaker=BreakerPolicy(failures=3, wait_s=0.2, longest_wait_s=0.4),
)


def queries(n: int, candidates: tuple[str, ...] = ("counter", "poet", "stranger")) -> Queries:
    words = ("add multiply number", "rhyme verse sonnet", "total fraction sum", "stanza line")
    return Queries(tuple(Query(f"{words[i % 4]} {i}", candidates) for i in range(n)))


@dataclass(frozen=True)
class Places:
    one: Path
    two: Path  # the same weights, and another version
    wrong: Path  # a whole file whose weights do not fit its own header
    torn: Path
    history: Path

    def config(self, router: Path) -> ServingConfig:
        return ServingConfig(
            router=str(router),
            history=str(self.history),
            precision="float32",
            min_replicas=2,
            max_replicas=2,
            num_cpus=0.01,
            downscale_delay_s=3600.0,
        )


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    directory = tmp_path_factory.mktemp("routers")
    network = trained()
    estimator.save(directory / "one", network)
    estimator.save(directory / "two", network, note="the second")
    arrays = quantization.arrays_of(network.network)
    name = max(arrays, key=lambda each: arrays[each].size)
    artifacts.save(directory / "wrong", arrays | {name: arrays[name][:1]}, described(network))
    estimator.save(directory / "torn", network)
    weights = directory / "torn" / artifacts.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1])
    return Places(*(directory / each for each in ("one", "two", "wrong", "torn")), two_trades(directory / "trades"))


@pytest.fixture(scope="module")
def served(places: Places, ray_address: str) -> Iterator[Any]:
    from flowray.runtime.serving import deploy_router, undeploy

    try:
        yield deploy_router(places.config(places.one))
    finally:
        undeploy()


@dataclass
class Load:
    """Callers that ask one after another, each on and on, in a thread of their own."""

    ask: Callable[[], Any]  # makes, on the loop, what asks once
    callers: int = 4
    outcomes: list[Any] = field(default_factory=list)

    def __enter__(self) -> Load:
        self._end = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._all()))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(60.0)
        assert not self._thread.is_alive()

    async def _all(self) -> None:
        ask = self.ask()
        await asyncio.gather(*(self._one(ask) for _ in range(self.callers)))

    async def _one(self, ask: Any) -> None:
        while not self._end.is_set():
            self.outcomes.append(await ask())


def plainly(served: Any) -> Callable[[], Any]:
    """Ask once, with no second question to hide behind."""
    body = encode(queries(4))
    return lambda: lambda: served(body)


def hedged(served: Any) -> Callable[[], Any]:
    def make() -> Any:
        asker = Hedged(served, ASKING)
        return lambda: asker.score(queries(4))

    return make


def versions_in(outcomes: list[Any]) -> list[str]:
    """Each answer's, in the order in which they came; everything must be an answer."""
    assert not [outcome for outcome in outcomes if not isinstance(outcome, bytes)]
    return [decode_answers(outcome).version for outcome in outcomes]


def wait_until_answered(served: Any) -> None:
    async def until() -> None:
        asker = Hedged(served, ASKING)
        end = time.monotonic() + 30.0
        while not isinstance(outcome := await asker.score(queries(1)), Scored):
            assert time.monotonic() < end, outcome
            await asyncio.sleep(0.05)

    asyncio.run(until())


@pytest.fixture
def replica(places: Places, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What a replica runs, in this process and not told of any router."""
    from flowray.runtime import replica

    monkeypatch.setattr(replica, "_keep_to_loopback", lambda: None)
    monkeypatch.setattr(replica.gc, "freeze", lambda: None)
    monkeypatch.setattr("flowray.routing.scoring.use_one_thread", lambda: None)
    return replica.RouterReplica("float32", 256)


async def test_a_replica_without_a_router_does_not_start_with_a_bad_one(replica: Any, places: Places) -> None:
    with pytest.raises(ArtifactError):
        await replica.reconfigure({"router": str(places.wrong), "history": ""})


async def test_a_replica_refuses_files_that_are_not_those_it_was_told_of(replica: Any, places: Places) -> None:
    """On another node the directory may hold something else."""
    await replica.reconfigure({"router": str(places.one), "history": "", "told": "a"})
    await replica.reconfigure({"router": str(places.two), "history": "", "version": "another", "told": "b"})
    status = decode_status(await replica.status())
    assert (status.version, status.router) == (version_of(places.one), str(places.one))
    assert (status.told, status.refused) == ("b", "another")
    assert f"are {version_of(places.two)} here, not another" in status.reason
    await replica.reconfigure({"router": str(places.two), "history": ""})
    assert decode_status(await replica.status()).refused == ""


def beside(places: Places, other: Path, version: str = "") -> dict[str, str]:
    """What a replica is told while another version is on trial."""
    return {"router": str(places.one), "other_router": str(other), "other_version": version}


async def tried(replica: Any, places: Places, other: Path) -> None:
    await replica.reconfigure(beside(places, other))
    await replica._loading


async def asked(replica: Any, other: str, rows: tuple[int, ...], version: str = "") -> Answers:
    found: Answers = decode_answers(
        await replica.score(encode(structs.replace(queries(4), version=version, other=other, rows=rows)))
    )
    return found


async def test_a_replica_asks_the_version_on_trial_about_its_rows_alone(replica: Any, places: Places) -> None:
    await tried(replica, places, places.two)
    one, two = version_of(places.one), version_of(places.two)
    answers = await asked(replica, two, (1, 3))
    assert (answers.version, len(answers.estimates)) == (one, 4)
    assert answers.other is not None
    assert (answers.other.version, len(answers.other.estimates)) == (two, 2)
    assert answers.other.estimates == (answers.estimates[1], answers.estimates[3]), "they have the same weights"
    assert min(answers.took_s, answers.other.took_s) > 0.0
    assert (await asked(replica, "", (), version=two)).version == two, "who names a version hears that one"
    assert (await asked(replica, "gone", (0,))).other is None
    with pytest.raises(InvalidTask, match="rows"):
        await asked(replica, two, (4,))


async def test_a_promotion_loads_nothing(replica: Any, places: Places) -> None:
    await tried(replica, places, places.two)
    before, after = replica._scorer, replica._other
    await replica.reconfigure(beside(places, places.one, version_of(places.one)) | {"router": str(places.two)})
    assert (replica._scorer, replica._other) == (after, before)
    await replica.reconfigure({"router": str(places.two)})
    assert (replica._scorer, replica._other) == (after, None)


async def test_a_version_on_trial_that_says_nonsense_costs_no_answer(replica: Any, places: Places) -> None:
    import torch

    await tried(replica, places, places.two)
    with torch.no_grad():
        for weights in replica._other.router.network.parameters():
            weights.fill_(float("nan"))
    answers = await asked(replica, version_of(places.two), (0,))
    assert answers.version == version_of(places.one)
    assert (answers.other, "no number" in answers.trouble) == (None, True)
    await replica.check_health()


async def test_a_version_on_trial_that_cannot_be_loaded_is_left_out(replica: Any, places: Places) -> None:
    await tried(replica, places, places.wrong)
    status = decode_status(await replica.status())
    assert (status.version, status.refused, status.other) == (version_of(places.one), "", "")
    assert status.other_reason


async def test_a_replica_is_healthy_only_while_its_network_says_numbers(replica: Any, places: Places) -> None:
    import torch

    await replica.reconfigure({"router": str(places.one), "history": ""})
    await replica.check_health()
    with torch.no_grad():
        for weights in replica._current().router.network.parameters():
            weights.fill_(float("nan"))
    with pytest.raises(ArtifactError, match="no number"):
        await replica.check_health()


def test_it_says_what_a_local_copy_says(served: Any, places: Places) -> None:
    asked = queries(32, ("fool", "counter", "somebody", "poet"))
    local = Scorer.load(places.one, places.history, "float32").score(asked)
    remote = asyncio.run(Hedged(served, ASKING).score(asked, 10.0))
    assert isinstance(remote, Scored)
    assert remote.answers.version == local.version == version_of(places.one, places.history)
    assert remote.path == "serve"
    for mine, theirs in zip(local.estimates, remote.answers.estimates, strict=True):
        for one, other in zip(mine, theirs, strict=True):
            assert one.candidate == other.candidate
            for name in ("success", "deviation", "quality", "latency_s", "cost_usd"):
                expected = getattr(one, name)
                assert getattr(other, name) == (expected if expected is None else pytest.approx(expected, rel=1e-5))


def test_serve_itself_listens_on_loopback_only(served: Any) -> None:
    """Each process of Ray's has one port of Ray's own core on all interfaces, this one too. Serve may add none."""
    import ray
    from ray import serve

    replicas = {one.pid for one in served.statuses()}
    controller = ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
    own = _open_ports(psutil.Process())
    for pid in (ray.get(controller.get_pid.remote()), *replicas):
        assert len(_open_ports(psutil.Process(pid))) <= max(1, len(own)), psutil.Process(pid).cmdline()
    for pid in replicas:
        listening = [c.laddr.ip for c in psutil.Process(pid).net_connections("tcp") if c.status == psutil.CONN_LISTEN]
        assert any(ip.endswith("127.0.0.1") for ip in listening), "Serve's own server has moved elsewhere"
    assert not serve.status().proxies


def _open_ports(process: psutil.Process) -> list[tuple[str, int]]:
    """Where others than this machine can connect to."""
    listening = [c.laddr for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    return [(at.ip, at.port) for at in listening if at.ip.removeprefix("::ffff:") not in ("127.0.0.1", "::1")]


def test_wrong_questions_are_refused_with_the_reason(served: Any) -> None:
    many = asyncio.run(served(encode(queries(257))))
    assert (many.kind, "at most 256" in many.detail) == ("refused", True)
    unreadable = asyncio.run(served(b"\xc1"))
    assert (unreadable.kind, "cannot be read" in unreadable.detail) == ("refused", True)
    whole = asyncio.run(served(encode(queries(256))))
    assert len(decode_answers(whole).estimates) == 256


def test_a_call_is_one_plain_call_and_no_stream(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.serve._private.request_router.replica_wrapper import ActorReplicaWrapper

    assert isinstance(asyncio.run(served(encode(queries(1)))), bytes)  # Serve has said by now how it routes
    streams: list[bool] = []
    send = ActorReplicaWrapper.send_request_python

    def seen(self: Any, request: Any, *, with_rejection: bool) -> Any:
        streams.append(with_rejection)
        return send(self, request, with_rejection=with_rejection)

    monkeypatch.setattr(ActorReplicaWrapper, "send_request_python", seen)
    assert isinstance(asyncio.run(served(encode(queries(1)))), bytes)
    assert streams == [False]


def test_calls_of_the_coordinator_stay_on_its_event_loop(served: Any) -> None:
    from ray.serve._private.router import CurrentLoopRouter

    from flowray.runtime.serving import find_router

    async def ask() -> tuple[Any, bool]:
        loop = asyncio.get_running_loop()
        near = await asyncio.to_thread(find_router, "flowray-router", None, loop)
        end = time.monotonic() + 30.0
        while not near.ready:
            assert time.monotonic() < end
            await asyncio.sleep(0.05)
        assert isinstance(await near(encode(queries(1))), bytes)
        router = near._asked._router
        await asyncio.to_thread(near.close)
        return router, router._asyncio_loop is loop and near._plain

    router, on_the_loop = asyncio.run(ask())
    assert isinstance(router, CurrentLoopRouter)
    assert on_the_loop


def test_a_full_queue_refuses_at_once_and_clearly(served: Any) -> None:
    async def flood() -> list[Any]:
        return await asyncio.gather(*(served(encode(queries(64))) for _ in range(300)))

    outcomes = asyncio.run(flood())
    refused = [one for one in outcomes if isinstance(one, Failed)]
    assert {one.kind for one in refused} == {"full"}
    assert "max_queued_requests=32" in refused[0].detail
    assert len(outcomes) - len(refused) >= 32, "those in the queue are answered"


def test_a_new_version_under_load_fails_no_call(served: Any, places: Places) -> None:
    from flowray.runtime.serving import deploy_router

    if not SHIPPED.is_dir():
        pytest.skip("models/router/v1 is not in this checkout")
    old, new = version_of(places.one, places.history), version_of(SHIPPED, places.history)
    pids = {one.pid for one in served.statuses()}
    with Load(plainly(served)) as load:
        deploy_router(places.config(SHIPPED))
        at_once = len(load.outcomes)
        time.sleep(0.3)
    versions = versions_in(load.outcomes)
    assert len(versions) > 50
    assert versions[0] == old
    assert set(versions) == {old, new}
    assert set(versions[at_once + load.callers :]) == {new}, "once deployed, nobody hears the old one any more"
    assert {one.pid for one in served.statuses()} == pids, "no process was replaced"


def test_a_trial_comes_ends_and_wins_without_a_failed_call(served: Any, places: Places) -> None:
    """Held beside the one in force, then in its place, then alone: what `Paths` has Serve do."""
    from flowray.runtime.serving import arrange, deploy_router

    deploy_router(places.config(places.one))
    one, two = (
        RouterPlace(version_of(at, places.history), str(at), str(places.history)) for at in (places.one, places.two)
    )
    wrong = RouterPlace("wrong", str(places.wrong), str(places.history))
    body = encode(structs.replace(queries(4), version=two.version, other=one.version, rows=(0, 1)))
    with Load(lambda: lambda: served(body)) as load:
        assert "are" in arrange("flowray-router", one, wrong), "its files are of another version"
        assert arrange("flowray-router", one, two) == ""
        assert {(each.version, each.other) for each in served.statuses()} == {(one.version, two.version)}
        held = len(load.outcomes) + load.callers
        assert arrange("flowray-router", two, one) == ""
        assert arrange("flowray-router", two, one) == "", "it is so already"
        promoted = len(load.outcomes)
        assert arrange("flowray-router", two, None) == ""
        assert {(each.version, each.other) for each in served.statuses()} == {(two.version, "")}
        time.sleep(0.2)
    versions = versions_in(load.outcomes)
    assert versions[0] == one.version
    assert set(versions[held:]) == {two.version}, "who names a version hears it as soon as it is there"
    assert any(decode_answers(outcome).other is not None for outcome in load.outcomes[held:promoted])
    deploy_router(places.config(places.one))
    assert arrange("flowray-router", two, one) == "another version was deployed meanwhile"


def test_what_cannot_be_loaded_leaves_the_old_version(served: Any, places: Places) -> None:
    from flowray.runtime.serving import deploy_router

    deploy_router(places.config(places.two))
    version = version_of(places.two, places.history)
    with Load(plainly(served)) as load:
        with pytest.raises(ArtifactError, match="torn"):
            deploy_router(places.config(places.torn))
        with pytest.raises(RouterRefused, match="do not fit its header") as refusal:
            deploy_router(places.config(places.wrong))
    assert refusal.value.kept == version
    assert set(versions_in(load.outcomes)) == {version}
    for one in served.statuses():
        assert (one.version, one.router) == (version, str(places.two))
        assert one.refused == version_of(places.wrong, places.history)
        assert "do not fit its header" in one.reason


def test_one_hung_replica_is_asked_round(served: Any) -> None:
    """It neither answers nor dies: one question or the next goes to the other replica, within the deadline.

    One caller asks: Serve sends a call to whoever has fewer, so where several ask a replica that answers, slowly, on
    busy cores, the silent one can look the better of the two for as long as a deadline lasts.
    """
    hung = served.statuses()[0].pid
    try:
        os.kill(hung, signal.SIGSTOP)
        with Load(hedged(served), callers=1) as load:
            time.sleep(1.0)
    finally:
        os.kill(hung, signal.SIGCONT)
    assert len(load.outcomes) > 3
    assert not [outcome for outcome in load.outcomes if isinstance(outcome, Failed)]


def test_hung_replicas_cost_the_deadline_and_then_nothing(served: Any) -> None:
    """All are stopped: callers wait three times, then the breaker is open; once they go on, they are asked again."""
    impatient = structs.replace(ASKING, deadline_s=0.4)
    pids = [one.pid for one in served.statuses()]

    async def story() -> list[Any]:
        asker, outcomes = Hedged(served, impatient), []
        while asker.state is not BreakerState.OPEN:
            outcomes.append(await asker.score(queries(1)))
        outcomes.append(await asker.score(queries(1)))
        return outcomes

    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        outcomes = asyncio.run(story())
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    assert [outcome.kind for outcome in outcomes[-4:]] == ["late", "late", "late", "open"]
    assert all(outcome.took_s < impatient.deadline_s + LATE_S for outcome in outcomes)
    assert outcomes[-1].took_s == 0.0
    wait_until_answered(served)


def test_a_killed_replica_costs_no_call_more_than_its_deadline(served: Any) -> None:
    with Load(hedged(served)) as load:
        time.sleep(0.5)
        before = len(load.outcomes)
        os.kill(served.statuses()[0].pid, signal.SIGKILL)
        time.sleep(1.0)
        assert len(load.outcomes) > before
    assert before
    for outcome in load.outcomes:
        assert isinstance(outcome, Scored | Failed)
        assert outcome.took_s < DEADLINE_S + LATE_S
    assert isinstance(load.outcomes[-1], Scored), "the other one goes on"
    wait_until_answered(served)


def test_nothing_served_is_said_and_asking_still_ends(served: Any) -> None:
    """The last test of this module: it ends what the others use."""
    from flowray.runtime.serving import served_router, undeploy

    wait_until_answered(served_router())
    undeploy()
    with pytest.raises(NotConnected, match="flowray-router"):
        served_router()
    outcome = asyncio.run(Hedged(served, ASKING).score(queries(1)))
    assert isinstance(outcome, Failed)
    assert outcome.took_s < DEADLINE_S + LATE_S
    undeploy()
