"""The launcher against templates that behave badly: the worker starts, once, whatever happens."""

from __future__ import annotations

import itertools
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from flowray.config import RayConfig
from flowray.errors import ConfigError
from flowray.runtime.template import launcher, setup
from flowray.runtime.template.deferred import Deferred

WORKER = "/x/ray/_private/workers/default_worker.py"
# In place of Python: says that it was started the slow way, and with what.
STOCK = "#!/bin/sh\necho stock $@\n"
# In place of launcher.py with its patience: the tests' launchers wait as long as a loaded machine may need, and only
# for what never comes no longer than is said.
PATIENT = """
import sys
from flowray.runtime.template import launcher
launcher.START_S = 60.0
launcher.STALL_S, launcher.ANSWER_S, launcher.ENDING_S, launcher.READY_S = {stall_s}, {answer_s}, {ending_s}, {ready_s}
launcher.main(*sys.argv[1:4], sys.argv[4:])
"""
# In place of template.py, run by {python}: the protocol in a few lines, with room for what goes wrong.
TEMPLATE = """#!{python} -IS
import os, socket, sys, time
path, told = sys.argv[1], int(sys.argv[2])
with open({starts!r}, "a") as file:
    file.write(f"{{os.getpid()}}\\n")
first = len(open({starts!r}).readlines()) == 1
listener = socket.socket(socket.AF_UNIX)
{before}
os.path.exists(path + ".socket") and os.unlink(path + ".socket")
listener.bind(path + ".socket")
listener.listen(64)
os.write(told, b"listening")
while True:
    stream, _ = listener.accept()
    head, descriptors, _, _ = socket.recv_fds(stream, 4, 8)
    if not head:
        continue
    left = int.from_bytes(head, "big")
    while left:
        left -= len(stream.recv(left))
    {request}
    pid = os.fork()
    if pid == 0:
        {fork}
        stream.sendall(b"P%8d" % os.getpid())
        if stream.recv(1) == b"G":
            {go}
            os.write(descriptors[1], b"forked\\n")
            stream.sendall(b"R")
        os._exit(0)
    stream.close()
    for descriptor in descriptors:
        os.close(descriptor)
"""
# The real one, killed before it can do anything more than fork; and a worker that only says that it runs.
KILLED = """#!{python}
import os, sys
from ray._private.worker import Worker
from flowray.runtime.template.template import Template
from flowray.runtime.template.worker import become
path, told = sys.argv[1], int(sys.argv[2])
with open({starts!r}, "a") as file:
    file.write(f"{{os.getpid()}}\\n")
fork = os.fork
def fork_and_die():
    pid = fork()
    if pid:
        os.kill(os.getpid(), 9)
    return pid
os.fork = fork_and_die
Worker.main_loop = lambda self: os.write(1, b"forked\\n")
template = Template(path + ".socket", int(os.environ["RAY_RAYLET_PID"]), {worker!r})
os.write(told, b"listening")
become(template.serve(), compile("from ray._private.worker import Worker; Worker.main_loop(None)", "worker", "exec"))
"""


class World:
    """One directory of sockets, one fake template, and launchers; this process stands for the raylet."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.python = directory / "python"
        self.python.write_text(STOCK)
        self.python.chmod(0o755)
        self.template = directory / "template"
        self.starts = directory / "starts"
        self.key = directory / launcher.key_of(os.getpid())
        self.launched: list[subprocess.Popen[bytes]] = []

    def template_is(self, before: str = "", request: str = "pass", fork: str = "pass", go: str = "pass") -> None:
        body = TEMPLATE.format(
            python=sys.executable, starts=str(self.starts), before=before, request=request, fork=fork, go=go
        )
        # The launcher runs `<python> <template>`: this python runs what is executable, and is stock for workers.
        self.template.write_text(body)
        self.template.chmod(0o755)
        self.python.write_text(f'#!/bin/sh\nif [ "$1" = "{self.template}" ]; then exec "$@"; fi\necho stock $@\n')

    def launch(
        self,
        *arguments: str,
        stall_s: float = 30.0,
        answer_s: float = 30.0,
        ending_s: float = 30.0,
        ready_s: float = 30.0,
        **environment: str,
    ) -> Callable[[], tuple[str, str]]:
        """Start a launcher; call what comes back for what it wrote: (output, error)."""
        # Files, not pipes: a process that hangs would keep those open.
        written = [self.directory / f"{secrets.token_hex(4)}.{name}" for name in ("output", "error")]
        patient = PATIENT.format(stall_s=stall_s, answer_s=answer_s, ending_s=ending_s, ready_s=ready_s)
        command = [sys.executable, "-c", patient]
        with written[0].open("w") as output, written[1].open("w") as error:
            process = subprocess.Popen(
                [*command, str(self.python), str(self.directory), str(self.template), *arguments],
                env={**os.environ, "RAY_RAYLET_PID": str(os.getpid()), "RAY_JOB_ID": "01000000", **environment},
                stdout=output,
                stderr=error,
            )
        self.launched.append(process)

        def finish() -> tuple[str, str]:
            assert process.wait(timeout=120) == 0, written[1].read_text()
            return written[0].read_text().strip(), written[1].read_text().strip()

        return finish

    def worker(self, **more: Any) -> tuple[str, str]:
        """What one start of a worker writes: (output, error)."""
        return self.launch(WORKER, "--worker-id=1", **more)()

    def started(self) -> list[int]:
        """The templates that were started."""
        return [int(line) for line in self.starts.read_text().split()] if self.starts.exists() else []

    def end(self) -> None:
        for pid in self.started():
            if psutil.pid_exists(pid):
                psutil.Process(pid).kill()
        shutil.rmtree(self.directory)


@pytest.fixture
def world() -> Iterator[World]:
    world = World(Path(tempfile.mkdtemp(dir="/tmp")))  # a socket's path is limited to 107 bytes
    yield world
    world.end()


SLOW = f"stock {WORKER} --worker-id=1"


@pytest.mark.slow
def test_a_template_is_started_once_for_all_and_forks(world: World) -> None:
    world.template_is(before="time.sleep(0.3)")
    launches = [world.launch(WORKER, f"--worker-id={number}") for number in range(6)]
    assert [finish() for finish in launches] == [("forked", "")] * 6
    assert world.worker() == ("forked", "")
    assert len(world.started()) == 1


@pytest.mark.slow
def test_a_killed_template_is_started_again(world: World) -> None:
    world.template_is()
    assert world.worker()[0] == "forked"
    psutil.Process(world.started()[0]).kill()
    assert world.worker() == ("forked", "")
    assert len(world.started()) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "end",
    [
        "os.kill(os.getpid(), 9)",
        "os._exit(0)",
        "(stream.close(), time.sleep(0.1), os._exit(1))",  # its socket outlives the stream
    ],
)
def test_a_request_that_a_template_had_not_answered_when_it_ended_goes_to_another(world: World, end: str) -> None:
    world.template_is(request=f"first and {end}")
    assert world.worker() == ("forked", "")
    assert len(world.started()) == 2


@pytest.mark.slow
def test_a_template_killed_under_many_requests_is_followed_by_one_and_not_given_up(
    world: World, eventually: Callable[..., Any]
) -> None:
    """A team starts, and the template is killed while each launcher has a request with it, or waits to be let in."""
    world.template_is(request="first and time.sleep(1000)")
    number = 2 * launcher.MAX_DEATHS
    launches = [world.launch(WORKER, f"--worker-id={n}") for n in range(number)]
    socket_path = f"{world.key}.socket"

    def all_there() -> bool:
        assert [one.poll() for one in world.launched] == [None] * number, "all wait"
        # The accepted one, those in the queue, and the listener itself have this path.
        return Path("/proc/net/unix").read_text().count(socket_path) == number + 1

    eventually(all_there, "all have connected")
    psutil.Process(world.started()[0]).kill()
    assert [finish() for finish in launches] == [("forked", "")] * number
    assert len(world.started()) == 2
    assert not world.key.with_name(f"{world.key.name}.deaths").exists()


@pytest.mark.slow
def test_a_fork_becomes_a_worker_although_the_template_was_killed_as_soon_as_it_had_forked(world: World) -> None:
    world.template_is()
    world.template.write_text(KILLED.format(python=sys.executable, starts=str(world.starts), worker=WORKER))
    assert world.worker() == ("forked", "")
    assert len(world.started()) == 1


@pytest.mark.slow
def test_a_request_goes_to_two_templates_at_most(world: World) -> None:
    world.template_is(request="os._exit(1)")
    for _ in range(launcher.MAX_DEATHS - 1):
        assert world.worker()[0] == SLOW
    assert "3 times in a row" in world.worker()[1]
    assert len(world.started()) == 2 * launcher.MAX_DEATHS
    assert world.worker() == (SLOW, "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "says"),
    [
        ("raise RuntimeError('no such luck')", "did not start: RuntimeError: no such luck"),
        ("os._exit(3)", "did not start: it said nothing"),
        ("time.sleep(1000)", "has hung for 1 s while it was starting"),
        ("os.fork(); time.sleep(1000)", "has hung for 1 s while it was starting"),
    ],
)
def test_a_template_that_does_not_start_is_given_up_and_said_once(
    world: World, eventually: Callable[..., Any], before: str, says: str
) -> None:
    world.template_is(before=before)
    output, error = world.worker(stall_s=1.0 if "hung" in says else 30.0)
    assert output == SLOW
    assert error.startswith("flowray: all workers of this node start the slow way") and says in error
    assert says in world.key.with_name(f"{world.key.name}.broken").read_text()
    assert world.worker() == (SLOW, "")
    assert len(world.started()) == 1
    eventually(lambda: not processes_of(world), "nothing of it is left")


def test_a_machine_that_stood_still_is_no_template_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a virtual machine is moved: the clock has gone on, and nobody has run."""
    monkeypatch.setenv("RAY_RAYLET_PID", str(os.getpid()))
    one = launcher.Launcher("python", str(tmp_path), "template", [])
    ready, tell = os.pipe()
    looks: list[int] = []

    def stat_of(pid: int) -> tuple[int, int]:
        looks.append(pid)
        if len(looks) == 3:
            os.write(tell, b"listening")
        return 0, 7

    clock = itertools.count(step=1000.0)
    monkeypatch.setattr(launcher, "stat_of", stat_of)
    monkeypatch.setattr(launcher, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(launcher, "LOOK_S", 0.01)
    monkeypatch.setattr(launcher, "START_S", 1e9)
    assert one.await_listening(ready, 1) == "" and len(looks) == 3
    os.close(ready)
    os.close(tell)


def processes_of(world: World) -> list[psutil.Process]:
    """What runs the fake template, forks included."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        if str(world.template) in (process.info["cmdline"] or ()) and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


@pytest.mark.slow
def test_forks_that_die_are_replaced_and_after_three_the_template_is_given_up(world: World) -> None:
    world.template_is(go="os._exit(1)")
    for _ in range(launcher.MAX_DEATHS - 1):
        output, error = world.worker()
        assert output == SLOW and error.startswith("flowray: this worker starts the slow way")
    assert "3 times in a row" in world.worker()[1]
    assert world.worker() == (SLOW, "")


@pytest.mark.slow
def test_one_good_fork_clears_the_count(world: World) -> None:
    flag = world.directory / "die"
    world.template_is(go=f"os.path.exists({str(flag)!r}) and os._exit(1)")
    for _ in range(launcher.MAX_DEATHS):
        flag.touch()
        assert world.worker()[0] == SLOW
        flag.unlink()
        assert world.worker() == ("forked", "")


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrong",
    [
        {"request": "time.sleep(1000)"},  # the template hangs
        {"request": "stream.close(); continue"},  # it refuses
        {"request": "os._exit(1)"},  # it dies
        {"fork": "os._exit(1)"},  # its fork dies at once
        {"go": "time.sleep(1000)"},  # its fork hangs
    ],
)
def test_whatever_goes_wrong_with_one_request_the_worker_starts(world: World, wrong: dict[str, str]) -> None:
    world.template_is(**wrong)
    output, error = world.worker(answer_s=0.5, ending_s=0.5, ready_s=0.5)
    assert output == SLOW
    assert "this worker starts the slow way" in error


@pytest.mark.slow
def test_a_fork_that_is_late_is_ended_before_another_worker_of_its_id_starts(world: World) -> None:
    late = world.directory / "late"
    world.template_is(fork=f"open({str(late)!r}, 'w').write(str(os.getpid()))", go="time.sleep(1000)")
    assert world.worker(ready_s=0.5)[0] == SLOW
    pid = int(late.read_text())
    deadline = time.monotonic() + 20
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "two workers of one id"
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "environment"),
    [
        (["-c", "pass", "a b"], {}),
        (["/x/setup_worker.py", WORKER, "--worker-id=1"], {}),  # a runtime_env
        (["-s", WORKER, "--worker-id=1"], {}),
        ([WORKER, "--worker-id=1"], {"RAY_JOB_ID": ""}),
        ([WORKER, "--worker-id=1"], {"RAY_RAYLET_PID": ""}),
        (
            [WORKER, "--worker-id=1"],
            {"RAY_kill_child_processes_on_worker_exit_with_raylet_subreaper": "true"},
        ),
    ],
)
def test_what_is_no_plain_worker_starts_as_it_is(
    world: World, arguments: list[str], environment: dict[str, str]
) -> None:
    world.template_is()
    assert world.launch(*arguments, **environment)() == (f"stock {' '.join(arguments)}", "")
    assert world.started() == []


@pytest.mark.slow
def test_the_template_is_started_with_the_nodes_agent(world: World, eventually: Callable[..., Any]) -> None:
    world.template_is()
    agent = ["-u", "/x/ray/dashboard/agent.py", "--node-ip-address=1"]
    assert world.launch(*agent)() == (f"stock {' '.join(agent)}", "")
    eventually(world.started, "the template is started")
    assert world.worker() == ("forked", "")
    assert len(world.started()) == 1


@pytest.mark.slow
def test_no_worker_is_started_for_a_raylet_that_has_gone(world: World) -> None:
    world.template_is(request="os._exit(1)")
    gone = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])  # not the launcher's parent
    try:
        with pytest.raises(AssertionError):  # it ends with 1, as a worker without a raylet does
            world.worker(RAY_RAYLET_PID=str(gone.pid))
    finally:
        gone.kill()
        gone.wait()
    assert not any("stock" in file.read_text() for file in world.directory.glob("*.output"))


# ── setting up ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home and a directory for sockets of our own."""
    monkeypatch.setenv("HOME", str(tmp_path / "home of mine"))
    monkeypatch.setattr(setup, "directory", lambda: setup._private(tmp_path / "sockets"))
    return tmp_path


@pytest.mark.slow
def test_the_launcher_is_private_runs_python_and_is_written_once(home: Path) -> None:
    file = setup.install()
    assert file.parent.stat().st_mode & 0o777 == 0o700
    assert file.stat().st_mode & 0o077 == 0
    said = subprocess.run(
        [file, "-c", "import sys; print(sys.argv, sys.executable)", "a b"], capture_output=True, text=True
    )
    assert said.stdout == f"['-c', 'a b'] {sys.executable}\n"
    before = file.stat().st_mtime_ns
    assert setup.install() == file
    assert file.stat().st_mtime_ns == before


def test_what_is_left_of_raylets_that_are_gone_is_removed(home: Path) -> None:
    here = setup.directory()
    mine, gone = launcher.key_of(os.getpid()), launcher.key_of(os.getpid()).rpartition("-")[0] + "-1"
    other = "0-1-1"  # of another namespace: what runs there cannot be seen from here
    for key in (mine, gone, other):
        (here / f"{key}.broken").touch()
    setup._sweep(here)
    assert sorted(path.stem for path in here.iterdir()) == sorted([mine, other])


def test_a_directory_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(setup.NoTemplate, match="somebody else's"):
        setup._private(tmp_path / "link")
    (tmp_path / "file").touch()
    with pytest.raises(setup.NoTemplate, match="cannot be made"):
        setup._private(tmp_path / "file" / "below")
    open_to_all = tmp_path / "open"
    open_to_all.mkdir(mode=0o777)
    assert setup._private(open_to_all).stat().st_mode & 0o777 == 0o700


def test_the_launcher_is_in_place_only_while_it_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    python = sys.executable
    monkeypatch.delenv(setup.PRELOAD, raising=False)
    with pytest.raises(KeyError), setup.in_place(Path("/launcher"), ("a", "b.c")):
        assert (sys.executable, os.environ[setup.PRELOAD]) == ("/launcher", "a,b.c")
        raise KeyError
    assert sys.executable == python and setup.PRELOAD not in os.environ


def test_only_names_of_modules_can_be_preloaded() -> None:
    assert RayConfig(preload=["numpy", "a.b_c"]).preload == ["numpy", "a.b_c"]
    with pytest.raises(ConfigError, match=r"preload.*'os; x'"):
        RayConfig(preload=["os; x"])


# ── serializers in time ──────────────────────────────────────────────────────────────────────────────────────────────


def test_serializers_are_registered_when_their_module_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "late_one.py").write_text("value = __name__")
    (tmp_path / "late_pack").mkdir()
    (tmp_path / "late_pack" / "__init__.py").touch()
    (tmp_path / "late_pack" / "inner.py").write_text("import late_one")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, "there", types.ModuleType("there"))
    done: list[tuple[str, Any]] = []
    names = ("there", "late_one", "late_pack.inner", "never")
    deferred = Deferred({name: lambda context, name=name: done.append((name, context)) for name in names})
    monkeypatch.setattr(sys, "meta_path", [deferred, *sys.meta_path])
    deferred.apply(1)
    assert done == [("there", 1)]
    import late_pack.inner  # type: ignore[import-not-found]

    assert done == [("there", 1), ("late_one", 1), ("late_pack.inner", 1)]
    assert type(late_pack.inner.__spec__.loader).__name__ == "SourceFileLoader"
    deferred.apply(2)
    assert done[3:] == [("there", 2), ("late_one", 2), ("late_pack.inner", 2)]
    for name in ("late_one", "late_pack", "late_pack.inner"):
        monkeypatch.delitem(sys.modules, name)


def test_starlettes_serializer_is_registered_while_its_package_is_being_imported() -> None:
    code = """
import sys
from flowray.runtime.template.deferred import SERIALIZERS, Deferred

class Context:
    registered = []

    def _register_cloudpickle_serializer(self, kind, **how):
        self.registered.append(kind.__name__)

assert "starlette" not in sys.modules
deferred = Deferred({"starlette.datastructures": SERIALIZERS["starlette.datastructures"]})
sys.meta_path.insert(0, deferred)
deferred.apply(Context())
import starlette.requests
print(Context.registered)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "['State']\n", done.stderr
