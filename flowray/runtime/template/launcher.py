"""What Ray runs in the place of Python: has a worker forked by the template process, or becomes Python.

Runs as `python -IS launcher.pyc <python> <directory> <template.py> <arguments of python>`, for every process that Ray
starts, so it imports little and nothing of flowray. What it asks the template for is settled in steps, so that a
worker is started once and only once, whoever is slow or dies in between:

    launcher -> template   the request: arguments, environment, directory, standard streams
    fork -> launcher       "P" and its process id; it does nothing yet
    launcher -> fork       "G": go
    fork -> launcher       "R": the worker is ready. Until then its end is seen as the end of the stream.

The fork says "P" itself, so a template that is killed once it has forked is not missed. A stream that ends before "P"
leaves nobody who could become the worker, because a fork that hears no "G" ends by itself: so if the template has
ended, another one is asked, once.
"""

# pathlib and contextlib would take longer to import than all the rest takes to run.
# ruff: noqa: PTH108, PTH109, PTH110, PTH112, PTH116, PTH118, PTH120, PTH123, SIM105

import errno
import fcntl
import marshal
import os
import select
import sys
import time
from _signal import SIGKILL, pidfd_send_signal  # type: ignore[import-not-found]  # `signal` imports enum
from _socket import AF_UNIX, SCM_RIGHTS, SHUT_RDWR, SO_PEERCRED, SOCK_CLOEXEC, SOCK_STREAM, SOL_SOCKET, socket

TYPE_CHECKING = False  # as typing has it, without importing typing
if TYPE_CHECKING:
    from collections.abc import Callable

START_S = 20.0  # until a new template listens
LOOK_S = 0.25  # between two looks at a template that starts
STALL_S = 4.0  # without any use of a processor, until a new template is taken to hang
ANSWER_S = 10.0  # until a template has forked: milliseconds, but many may ask at once
ENDING_S = 1.0  # until a template that has ended a stream is taken to live on: one that was killed takes milliseconds
READY_S = 40.0  # until a fork is a worker of its raylet; Ray itself gives up after 60
MAX_DEATHS = 3  # forks that ended before they were ready, one after another, until the template is given up

# Ray's C++ part reads the job from the environment once, when it is loaded. This one means "any": Ray's own spare
# workers have it, and are given a job with their first work.
ANY_JOB = "ffffffff"

_WORKER = "/ray/_private/workers/default_worker.py"
_AGENT = "/ray/dashboard/agent.py"
# With this the raylet ends processes below it that it has not started itself.
_SUBREAPER = "RAY_kill_child_processes_on_worker_exit_with_raylet_subreaper"


class NoFork(Exception):
    """No worker was forked, and none will be for this request; the text says why."""


class Unanswered(NoFork):
    """The stream ended before "P": nobody was told to go, and nobody can be told any more."""


class Refused(NoFork):
    """No worker was forked, and the template should not be asked again."""


def stat_of(pid: int) -> tuple[int, int]:
    """When a process began, and what it has used of processors since; in clock ticks."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    return int(fields[19]), int(fields[11]) + int(fields[12])


def key_of(raylet: int) -> str:
    """Names one template: process ids come again, also in other namespaces."""
    return f"{os.stat('/proc/self/ns/pid').st_ino:x}-{raylet}-{stat_of(raylet)[0]}"


def session_log(arguments: list[str], default: str) -> str:
    """The template's log file: beside the logs of the node, when the arguments say where that is."""
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name == "--object-store-name":  # of workers: <session>/sockets/<name>
            value = os.path.dirname(os.path.dirname(value))
        elif name != "--session-dir":  # of the agent
            continue
        if os.path.isdir(os.path.join(value, "logs")):
            return os.path.join(value, "logs", f"flowray-template-{os.environ['RAY_RAYLET_PID']}.log")
    return default


class Launcher:
    """One start of one worker, or of the template."""

    def __init__(self, python: str, directory: str, template: str, arguments: list[str]) -> None:
        self.python = python
        self.template = template
        self.arguments = arguments
        self.raylet = int(os.environ["RAY_RAYLET_PID"])
        self.path = os.path.join(directory, key_of(self.raylet))
        self.log = session_log(arguments, f"{self.path}.log")
        self.asked = 0  # process id of the template that was connected to last

    def run(self) -> None:
        """Have the worker forked. Raises NoFork."""
        if os.path.exists(f"{self.path}.broken"):
            raise NoFork("")  # said once, by whoever found it out
        for last in (False, True):
            try:
                self.have_forked()
                return
            except Unanswered as error:
                if last or not self.asked_has_ended():
                    raise self.died(str(error)) from error
            # Not noted as a death: a whole team may have been waiting for this template, and that would be many.
            self.require_raylet()

    def have_forked(self) -> None:
        """Ask the template that listens, or a new one. Raises NoFork."""
        stream = self.connect()
        if stream is None:
            stream = self.start()
        try:
            self.ask(stream)
        finally:
            stream.close()

    def connect(self) -> socket | None:
        """A stream to the template, or None when none listens."""
        stream = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
        stream.settimeout(ANSWER_S)
        try:
            stream.connect(f"{self.path}.socket")
        except OSError as error:
            stream.close()
            if error.errno in (errno.ENOENT, errno.ECONNREFUSED):
                return None
            raise NoFork(f"the template does not take requests: {error}") from error
        peer = stream.getsockopt(SOL_SOCKET, SO_PEERCRED, 12)
        user = int.from_bytes(peer[4:8], sys.byteorder)
        if user != os.geteuid():
            stream.close()
            raise Refused(f"{self.path}.socket belongs to user {user}")
        self.asked = int.from_bytes(peer[:4], sys.byteorder)
        return stream

    def asked_has_ended(self) -> bool:
        """Whether the template that was asked has ended, or does so within a moment.

        Its streams end before its socket does: whoever connects in between is let in, and reset.
        """
        try:
            pidfd = os.pidfd_open(self.asked)
        except OSError:
            return True
        try:
            return bool(select.select([pidfd], [], [], ENDING_S)[0])
        finally:
            os.close(pidfd)

    def start(self) -> socket:
        """A stream to a template that this call, or another launcher meanwhile, has started."""
        deadline = time.monotonic() + START_S + 5.0
        lock = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise NoFork("another launcher has been starting the template for too long") from None
                    time.sleep(0.01)
            if os.path.exists(f"{self.path}.broken"):
                raise NoFork("")
            stream = self.connect()
            if stream is None:
                self.spawn()
                stream = self.connect()
            if stream is None:
                raise Refused("the template ended as soon as it had started")
            return stream
        finally:
            os.close(lock)

    def spawn(self) -> None:
        """Start a template and wait until it listens. Raises Refused, with the end of its log."""
        ready, tell = os.pipe()
        middle = os.fork()
        if middle == 0:
            try:
                os.setsid()
                if os.fork() != 0:
                    os._exit(0)  # the template is nobody's child: this process is gone long before it
                os.write(tell, b"%8d" % os.getpid())
                os.set_inheritable(tell, True)
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                for number in (1, 2):
                    os.dup2(os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), number)
                environment = dict(os.environ, RAY_JOB_ID=ANY_JOB)
                environment.setdefault("MALLOC_ARENA_MAX", "2")
                os.execve(self.python, [self.python, self.template, self.path, str(tell)], environment)
            finally:
                os._exit(127)
        os.close(tell)
        try:
            os.waitpid(middle, 0)
            pid = int(os.read(ready, 8))
            pidfd = os.pidfd_open(pid)
            try:
                why = self.await_listening(ready, pid)
                if why:
                    if not select.select([pidfd], [], [], 0)[0]:  # it lives, so the group is still its own
                        os.killpg(middle, SIGKILL)  # with the fork that it may be trying
                    raise Refused(f"the template process {why}; its log is {self.log}")
            finally:
                os.close(pidfd)
        except (OSError, ValueError) as error:
            raise Refused(f"the template process ended at once ({error}); its log is {self.log}") from error
        finally:
            os.close(ready)

    def await_listening(self, ready: int, pid: int) -> str:
        """What is wrong with a template that does not come to listen; "" when it does."""
        began_at = time.monotonic()
        used, still_s = -1, 0.0
        while not select.select([ready], [], [], LOOK_S)[0]:
            # Counted by looks, not by the clock: while the whole machine stands still, this process does not look.
            now_used = stat_of(pid)[1]
            still_s = still_s + LOOK_S if now_used == used else 0.0
            used = now_used
            if still_s > STALL_S:
                return f"has hung for {STALL_S:g} s while it was starting"
            if time.monotonic() - began_at > START_S:
                return f"did not start within {START_S:g} s"
        return "" if os.read(ready, 64) == b"listening" else f"did not start: {last_line(self.log)}"

    def ask(self, stream: socket) -> None:
        """Have the template on this stream fork, and wait until the fork is a worker. Raises NoFork."""
        pidfd = -1
        try:
            pid = self.request(stream)
            pidfd = os.pidfd_open(pid)
            stream.sendall(b"G")
            stream.settimeout(READY_S)
            if stream.recv(1) != b"R":
                raise self.died(f"the forked worker {pid} ended before it was ready")
            self.forget_deaths()
        except TimeoutError:
            if pidfd >= 0:  # it was told to go, and may still come: there must not be two of one id
                pidfd_send_signal(pidfd, SIGKILL)
            raise self.died("the template or its fork did not answer in time") from None
        except OSError as error:
            raise self.died(f"the fork ended before it was ready: {error}") from error
        finally:
            if pidfd >= 0:
                os.close(pidfd)
            # The end of the stream is what a template that is late goes by: it must not fork for us any more.
            try:
                stream.shutdown(SHUT_RDWR)
            except OSError:
                pass  # the other side has gone first

    def request(self, stream: socket) -> int:
        """Send the request. Returns the process id of the fork. Raises Unanswered, Refused or TimeoutError."""
        body = marshal.dumps((self.arguments, dict(os.environb), os.getcwdb()))
        streams = b"".join(number.to_bytes(4, sys.byteorder) for number in (0, 1, 2))
        answer = b""
        try:
            stream.sendmsg([len(body).to_bytes(4, "big")], [(SOL_SOCKET, SCM_RIGHTS, streams)])
            stream.sendall(body)
            while len(answer) < 9:
                more = stream.recv(9 - len(answer))
                if not more:
                    raise Unanswered("the template ended, or refused the request")
                answer += more
        except TimeoutError:
            raise  # it may be late only: another request would be as late, and the worker is waited for
        except OSError as error:
            raise Unanswered(f"the template ended: {error}") from error
        if answer[:1] != b"P":
            raise Refused("the template speaks another version: restart the node")
        return int(answer[1:])

    def require_raylet(self) -> None:
        """End this process if its raylet has gone: its template goes with it, and nobody wants the worker any more."""
        if os.getppid() != self.raylet:
            os._exit(1)

    def died(self, what: str) -> NoFork:
        """Note one failed fork. The error to raise: after a few in a row the template is given up."""
        self.require_raylet()
        with open(f"{self.path}.deaths", "ab") as file:
            file.write(b".")
            deaths = file.tell()
        what = f"{what}; its log is {self.log}"
        return Refused(f"{what} ({deaths} times in a row)") if deaths >= MAX_DEATHS else NoFork(what)

    def forget_deaths(self) -> None:
        """A fork became a worker: what was before does not count."""
        try:
            os.unlink(f"{self.path}.deaths")
        except FileNotFoundError:
            pass  # there were none

    def give_up(self, why: str) -> bool:
        """Let nobody ask this template again; whether that could be written down."""
        try:
            with open(f"{self.path}.broken", "w") as file:
                file.write(why)
        except OSError:
            return False  # the next launcher finds out as this one did
        return True


def last_line(path: str) -> str:
    """What a log ends with."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 500))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError as error:
        return str(error)
    return next((line for line in reversed(lines) if line.strip()), "it said nothing")


def applies() -> bool:
    """Whether this process was started by a raylet whose workers can be forked."""
    raylet = os.environ.get("RAY_RAYLET_PID", "")
    return raylet.isdigit() and os.environ.get(_SUBREAPER, "0").lower() not in ("1", "true")


def is_worker(arguments: list[str]) -> bool:
    """Whether this is the start of a plain worker: no runtime_env, no flags for Python, a job to work for."""
    return len(arguments) > 1 and arguments[0].endswith(_WORKER) and bool(os.environ.get("RAY_JOB_ID"))


def is_agent(arguments: list[str]) -> bool:
    """Whether this is the start of a node's agent: the first thing a raylet does, seconds before any worker."""
    return any(argument.endswith(_AGENT) for argument in arguments[:4])


def start_ahead(launcher: Launcher) -> None:
    """Start the template in the background. Returns at once in this process."""
    middle = os.fork()
    if middle != 0:
        os.waitpid(middle, 0)
        return
    try:
        os.setsid()
        if os.fork() == 0:  # nobody's child either: this process will be the agent, and reaps nobody
            attempt(launcher, lambda: launcher.start().close(), "workers of this node start")
    finally:
        os._exit(0)


def attempt(launcher: Launcher, do: "Callable[[], None]", who: str) -> bool:
    """Do something with a template; whether that went well. Says why not on standard error."""
    try:
        do()
    except Exception as error:  # noqa: BLE001 - whatever it is, workers must start
        why = str(error) if isinstance(error, NoFork) else f"{type(error).__name__}: {error}"
        if why:
            if isinstance(error, Refused) and launcher.give_up(why):
                who = "all workers of this node start"
            # Standard error is the raylet's log, and Ray shows that to drivers.
            os.write(2, f"flowray: {who} the slow way, without a template: {why}\n".encode())
        return False
    return True


def main(python: str, directory: str, template: str, arguments: list[str]) -> None:
    """Start what was asked for. Returns when a worker was forked; else this process becomes it."""
    if applies() and (is_worker(arguments) or is_agent(arguments)):
        try:
            launcher = Launcher(python, directory, template, arguments)
        except OSError as error:
            os.write(2, f"flowray: a worker starts without a template: {error}\n".encode())
        else:
            if is_agent(arguments):
                start_ahead(launcher)
            elif attempt(launcher, launcher.run, "this worker starts"):
                return
        if is_worker(arguments) and os.getppid() != int(os.environ["RAY_RAYLET_PID"]):
            os._exit(1)  # the raylet has gone while this looked for a template: a worker would look for it for a minute
    os.execv(python, [python, *arguments])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:])
