"""Clients without Ray: on the runtime's machine and outside, and what becomes of them when others die."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from ray_agents import Tool

import flowray as fr
from flowray.core.model import Payload
from flowray.errors import ConfigError, CoordinatorUnavailable, NotConnected, PayloadError, UnknownTask
from flowray.mesh.private_files import DIRECTORY
from flowray.mesh.tickets import Ticket
from flowray.mesh.tokens import Tokens
from flowray.runtime.messages import Finished, Report
from flowray.runtime.places import COORDINATOR

pytestmark = [pytest.mark.ray, pytest.mark.slow]
WAIT_S = 60.0
HERE = Path(__file__).parent
NAME = "connecting"


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("connecting") / "journal"


@pytest.fixture(scope="module")
def rt(start_runtime: Callable[..., fr.Runtime], journal: Path) -> Iterator[fr.Runtime]:
    with start_runtime(
        NAME, journal=str(journal), mesh__listen="127.0.0.1:0", store__allow_filesystems=["overlay"]
    ) as runtime:
        runtime.agents.add(Tool, count=2, capabilities={"tools"})
        runtime.agents.add(lambda task: (task.prompt, 1), name="pairs", capabilities={"pairs"})
        runtime.wait_ready()
        yield runtime


def tool(do: str, **more: Any) -> dict[str, Any]:
    return {"do": do, **more}


class Client:
    """Another process, which runs this code after having connected as `rt`."""

    def __init__(self, code: str, address: str = "", **values: Any) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        begin = f"""
import json, sys, time
import flowray as fr
at = time.perf_counter()
rt = fr.Runtime.connect({NAME!r}, address={address!r})
connect_s = time.perf_counter() - at
def say(value): print(json.dumps(value), flush=True)
"""
        names = "".join(f"{name} = {value!r}\n" for name, value in values.items())
        self.process = subprocess.Popen(
            [sys.executable, "-c", begin + names + code],
            cwd=HERE,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def next(self) -> Any:
        """What it says next."""
        assert self.process.stdout is not None and self.process.stderr is not None
        line = self.process.stdout.readline()
        assert line, self.process.stderr.read()
        return json.loads(line)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


HEAVY = "('ray', 'torch', 'pandas', 'pyarrow', 'numpy')"


# ── on the runtime's machine ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_client_needs_no_ray_and_finds_what_an_earlier_process_began(rt: fr.Runtime) -> None:
    by_id = rt.submit("by its id", needs={"tools"})
    by_key = rt.submit("by its key", needs={"tools"}, key="earlier")
    code = f"""
say(rt.submit("hello", needs={{"tools"}}).result(60))
say(rt.handle(task_id).result(60))
again = rt.submit("by its key", needs={{"tools"}}, key="earlier")
say([again.task_id, again.result(60)])
say(rt.submit({{"do": "echo", "value": (1, {{2}})}}, needs={{"tools"}}).result(60) == (1, {{2}}))
say(len(rt.status().agents))
say([name for name in {HEAVY} if name in sys.modules and name != "ray"])
say(connect_s)
"""
    with Client(code, task_id=by_id.task_id) as client:
        assert client.next() == "HELLO"
        assert client.next() == "BY ITS ID"
        assert client.next() == [by_key.task_id, "BY ITS KEY"]
        assert client.next() is True
        assert client.next() == 3
        assert client.next() == []
        print(f"\nRuntime.connect: {client.next() * 1e3:.0f} ms")  # noqa: T201
        assert client.process.wait(30) == 0


def test_a_client_of_plain_data_never_loads_ray(rt: fr.Runtime) -> None:
    code = f"""
large = bytes(range(256)) * 5000
say(rt.submit({{"do": "reverse", "value": large}}, needs={{"tools"}}).result(60) == large[::-1])
say(len(rt.map(["x"] * 100, needs={{"tools"}}).results(60)))
say([name for name in {HEAVY} if name in sys.modules])
"""
    with Client(code) as client:
        assert client.next() is True
        assert client.next() == 100
        assert client.next() == []


def test_what_a_killed_client_had_begun_is_found_by_id_and_by_key(
    rt: fr.Runtime, tmp_path: Path, eventually: Callable[..., Any], lines: Callable[[str], list[str]]
) -> None:
    wait = tool("wait", gate=str(tmp_path / "gate"), file=str(tmp_path / "ran"))
    begun = """
say([rt.submit({**wait, "name": f"t{n}"}, needs={"tools"}, key=f"killed-{n}").task_id for n in range(4)])
time.sleep(600)
"""
    with Client(begun, wait=wait) as first:
        task_ids = first.next()
        eventually(lambda: len(lines("ran")) == 2, "two of them run")
        first.process.kill()
        assert first.process.wait() == -signal.SIGKILL
    found = """
handles = [rt.handle(task_ids[0]), rt.handle(task_ids[1])]
handles += [rt.submit({**wait, "name": f"t{n}"}, needs={"tools"}, key=f"killed-{n}") for n in (2, 3)]
say([handle.task_id for handle in handles])
say([handle.result(60) for handle in handles])
"""
    with Client(found, wait=wait, task_ids=task_ids) as second:
        assert second.next() == task_ids
        (tmp_path / "gate").touch()
        assert len(second.next()) == 4
    assert sorted(lines("ran")) == ["t0", "t1", "t2", "t3"]


def test_a_client_waits_a_killed_coordinator_out(
    rt: fr.Runtime, tmp_path: Path, eventually: Callable[..., Any], lines: Callable[[str], list[str]]
) -> None:
    code = """
handles = rt.map([{**wait, "name": f"w{n}"} for n in range(20)], needs={"tools"})
calls = []
for handle in handles:
    handle.add_done_callback(lambda handle: calls.append(handle.task_id))
say("waiting")
say(len(handles.results(60)))
say(sorted(calls) == sorted(handle.task_id for handle in handles))
"""
    wait = tool("wait", gate=str(tmp_path / "gate"), file=str(tmp_path / "ran"))
    with Client(code, wait=wait) as client:
        assert client.next() == "waiting"
        eventually(lambda: len(lines("ran")) == 2, "two of them run")
        before = rt.status()
        os.kill(before.pid, signal.SIGKILL)
        (tmp_path / "gate").touch()
        assert client.next() == 20
        assert client.next() is True, "each outcome came once"
    assert sorted(lines("ran")) == sorted(f"w{n}" for n in range(20))
    assert rt.status().epoch == before.epoch + 1


def test_clients_of_a_stopped_runtime_are_told_at_once_and_live_on(
    start_runtime: Callable[..., fr.Runtime], tmp_path: Path
) -> None:
    rt = start_runtime("stopped", limits__unavailable_after_s=3600.0)
    try:
        rt.agents.add(Tool, capabilities={"tools"})
        rt.wait_ready()
        client = fr.Runtime.connect("stopped")
        waiting = client.submit(tool("wait", gate=str(tmp_path / "never")), needs={"tools"})
        subscription = client.subscribe("news")
        messages = subscription.__enter__()
        sockets = Path(Ticket.load("stopped").socket).parent
        assert sockets.is_dir()
        rt.stop()
        with pytest.raises(CoordinatorUnavailable, match="the runtime was stopped"):
            waiting.result(WAIT_S)
        assert list(messages) == [], "it ends"
        with pytest.raises(CoordinatorUnavailable, match="the runtime was stopped"):
            client.submit("x", needs={"tools"})
        with pytest.raises(CoordinatorUnavailable, match="the runtime was stopped"):
            client.handle("some-task").result(WAIT_S)
        with pytest.raises(NotConnected):
            client.ask("tool-0", 1).result(WAIT_S)
        assert not sockets.exists(), "nothing is left behind"
        subscription.__exit__(None, None, None)
        client.disconnect()
        with pytest.raises(NotConnected, match="closed"):
            client.submit("x")
        with pytest.raises(NotConnected):
            client.handle("some-task").result(WAIT_S)
        with pytest.raises(NotConnected, match="there is no ticket"):
            fr.Runtime.connect("stopped", address=str(tmp_path / "ticket.json"))
    finally:
        rt.stop()


# ── outside ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Outside:
    """Tickets as `flowray ticket` makes them, for the runtime of this module."""

    def __init__(self, journal: Path, directory: Path) -> None:
        self.tokens = Tokens(journal / DIRECTORY)
        self._directory = directory

    def ticket(self, **changes: Any) -> tuple[str, str]:
        """(path of the ticket, id of its token)"""
        token, grant = self.tokens.create("client", label="test")
        own = Ticket.load(NAME)
        made = {"socket": "", "token": token, "expires_at_utc": grant.expires_at_utc, **changes}
        path = msgspec.structs.replace(own, **made).save(self._directory / f"{grant.token_id}.json")
        return str(path), grant.token_id


@pytest.fixture
def outside(rt: fr.Runtime, journal: Path, tmp_path: Path) -> Outside:
    return Outside(journal, tmp_path)


def test_a_client_outside_gives_tasks_and_gets_results_without_ray(rt: fr.Runtime, outside: Outside) -> None:
    code = f"""
say(rt.submit("hello", needs={{"tools"}}, key="outside").result(60))
large = bytes(range(256)) * 4096
handle = rt.submit({{"do": "reverse", "value": large}}, needs={{"tools"}})
say(handle.result(60) == large[::-1] and handle.outcome().value.ref is not None)
say(len(rt.map(["x"] * 200, needs={{"tools"}}).results(60)))
say([rt.status().name, len(rt.agents), handle.state])
say([name for name in {HEAVY} if name in sys.modules])
say(connect_s)
"""
    with Client(code, address=outside.ticket()[0]) as client:
        assert client.next() == "HELLO"
        assert client.next() is True
        assert client.next() == 200
        assert client.next() == [NAME, 3, "succeeded"]
        assert client.next() == []
        print(f"\nRuntime.connect from outside: {client.next() * 1e3:.0f} ms")  # noqa: T201


def test_a_client_outside_may_do_no_more_than_that(rt: fr.Runtime, outside: Outside, tmp_path: Path) -> None:
    with fr.Runtime.connect(address=outside.ticket()[0]) as client:
        with pytest.raises(ConfigError, match="add_agents: is not for clients outside the cluster"):
            client.agents.add(Tool, name="intruder")
        with pytest.raises(PayloadError, match="from outside the cluster only"):
            client.submit({1, 2}, needs={"tools"})
        with pytest.raises(PayloadError, match="from outside the cluster only"):
            client.submit({"value": tmp_path}, needs={"tools"})
        with pytest.raises(PayloadError, match="result"):  # what an agent made of it is a pickle
            client.submit("pair", needs={"pairs"}).result(WAIT_S)
        with pytest.raises(NotConnected, match="outside the cluster cannot talk to its agents"):
            client.ask("tool-0", 1)
        with pytest.raises(NotConnected, match="outside the cluster"), client.subscribe("news"):
            pass
        with pytest.raises(UnknownTask):
            client.handle("no-such-task").result(WAIT_S)
        client.stop()
    assert len(rt.agents) == 3 and rt.submit("on", needs={"tools"}).result(WAIT_S) == "ON"


def test_a_client_outside_cannot_report_in_an_agents_name(
    rt: fr.Runtime, outside: Outside, tmp_path: Path, eventually: Callable[..., Any]
) -> None:
    """Or it could have everybody inside load a pickle of its own making."""
    rt.wait_ready(WAIT_S)
    handle = rt.submit(tool("wait", gate=str(tmp_path / "gate"), file=str(tmp_path / "ran")), needs={"tools"})
    eventually(lambda: (tmp_path / "ran").exists(), "it runs")
    started = next(line for line in handle.story().lines if line.what == "started")
    forged = Payload(codec="pickle", data=b"cos\ngetpid\n(tR.", size_bytes=16)
    result = Finished(handle.task_id, started.attempt, rt.status().epoch, forged)
    with fr.Runtime.connect(address=outside.ticket()[0]) as client:
        link = client._driver._link
        before = link._endpoint.peer(COORDINATOR).link
        link._thread.soon(link._tell, Report(started.agent_id, 1, 1, [result]))
        eventually(lambda: link._endpoint.peer(COORDINATOR).link is not before, "it is thrown out")
    (tmp_path / "gate").touch()
    assert handle.result(WAIT_S) == f"{started.agent_id} attempt {started.attempt}"


def test_a_revoked_token_ends_its_clients_and_no_others(rt: fr.Runtime, outside: Outside, tmp_path: Path) -> None:
    (path, token_id), (other_path, _) = outside.ticket(), outside.ticket()
    client, other = fr.Runtime.connect(address=path), fr.Runtime.connect(address=other_path)
    with client, other:
        waiting = client.submit(tool("wait", gate=str(tmp_path / "gate")), needs={"tools"})
        outside.tokens.revoke(token_id)
        with pytest.raises(CoordinatorUnavailable, match=f"token {token_id} is revoked: get another"):
            waiting.result(WAIT_S)
        with pytest.raises(CoordinatorUnavailable, match=f"token {token_id} is revoked"):
            client.submit("x", needs={"tools"})
        with pytest.raises(NotConnected, match=f"token {token_id} is revoked"):
            fr.Runtime.connect(address=path)
        (tmp_path / "gate").touch()
        assert other.handle(waiting.task_id).result(WAIT_S).endswith("attempt 1"), "the task itself goes on"


def test_tickets_that_open_nothing_say_why(rt: fr.Runtime, outside: Outside) -> None:
    with pytest.raises(NotConnected, match="unknown token"):
        fr.Runtime.connect(address=outside.ticket(token="frk_" + "x" * 43)[0])
    with pytest.raises(NotConnected, match=r"expired at .*flowray ticket"):
        fr.Runtime.connect(address=outside.ticket(expires_at_utc=time.time() - 1)[0])
    with pytest.raises(NotConnected, match="unknown token"):  # the machine's own secret opens the socket only
        fr.Runtime.connect(address=outside.ticket(token=Ticket.load(NAME).token)[0])
    assert fr.Runtime.connect(address=outside.ticket()[0]).submit("in", needs={"tools"}).result(WAIT_S) == "IN"


# ── without Ray's control store ──────────────────────────────────────────────────────────────────────────────────────

OWN = """
import sys
sys.path.insert(0, {here!r})
from ray_agents import Tool
import flowray as fr
overrides = {{"name": "headless", "ray.num_cpus": 2, "ray.object_store_mb": 100, "limits.unavailable_after_s": 2.0}}
rt = fr.Runtime.start(overrides=overrides)
rt.agents.add(Tool, capabilities={{"tools"}})
rt.wait_ready()
print("ready", flush=True)
sys.stdin.read()
"""


def test_a_client_survives_the_death_of_rays_control_store_and_then_of_the_coordinator(
    ray_token: Path, eventually: Callable[..., Any]
) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    driver = subprocess.Popen(
        [sys.executable, "-c", OWN.format(here=str(HERE))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    family: list[psutil.Process] = []
    try:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "ready\n"
        family = psutil.Process(driver.pid).children(recursive=True)
        store = next(one for one in family if one.name() == "gcs_server")
        with fr.Runtime.connect("headless") as client:
            coordinator = client.status().pid
            store.kill()
            status = client.status()
            assert status.ray_failed.startswith("no answer") and [a.state for a in status.agents] == ["ready"]
            for number in range(50):
                assert client.submit(f"n{number}", needs={"tools"}).result(WAIT_S) == f"N{number}"
            waiting = client.submit(tool("echo", value=1), needs={"tools"})
            assert waiting.result(WAIT_S) == 1
            never = client.submit(tool("wait", gate="/nowhere"), needs={"tools"})
            os.kill(coordinator, signal.SIGKILL)
            with pytest.raises(CoordinatorUnavailable, match="could not be reached for 2 s") as caught:
                never.result(WAIT_S)
            assert caught.value.outcome == "accepted"
            with pytest.raises(CoordinatorUnavailable, match=r"submitting: the coordinator did not answer for 2 s"):
                client.submit("late", needs={"tools"})
    finally:
        driver.kill()
        driver.communicate()
        for one in family:
            if one.is_running():
                one.kill()
        psutil.wait_procs(family, timeout=20)
