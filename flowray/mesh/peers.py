"""The peers of one process: what is known of each, which conversation carries its link, and what becomes of it."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import Callable

from flowray.mesh import frames
from flowray.mesh.events import MeshEvent, PeerGone, StreamBroken, StreamUp
from flowray.mesh.frames import Hello, Limits
from flowray.mesh.peer import Handler, Peer
from flowray.mesh.streams import Conversation, Stream

_SWEEP_S = 1.0


class Peers:
    """See the module. For one event loop."""

    def __init__(
        self,
        name: str,
        *,
        runtime: str,
        token: str,
        limits: Limits,
        on_messages: Handler,
        on_event: Callable[[MeshEvent], None],
        silent_after_s: float,
        forget_after_s: float,
    ) -> None:
        self.name = name
        self.instance = secrets.token_hex(8)  # no other process has it
        self.runtime = runtime
        self.limits = limits
        self.closed = False
        self._token = token
        self._on_messages = on_messages
        self._on_event = on_event
        self._silent_after_s = silent_after_s
        self._forget_after_s = forget_after_s
        self._ends = (f"{self.instance}-{number}" for number in itertools.count(1))
        self._peers: dict[str, Peer] = {}
        self._loop = asyncio.get_running_loop()
        self._sweeper = self._loop.create_task(self._sweep())

    # ── who is there ─────────────────────────────────────────────────────────────────────────────────────────────

    def peer(self, name: str) -> Peer:
        """This peer, connected or not."""
        found = self._peers.get(name)
        if found is None:
            found = self._peers[name] = Peer(name, self.limits, lambda: next(self._ends))
            found.broken_at = self._loop.time()
        return found

    def known(self, name: str) -> Peer | None:
        """This peer, if this process has anything to do with it."""
        return self._peers.get(name)

    def all(self) -> list[Peer]:
        """All of them."""
        return list(self._peers.values())

    # ── streams ──────────────────────────────────────────────────────────────────────────────────────────────────

    def greeting(self, peer: Peer) -> Hello:
        """What to say to this peer first."""
        return peer.link.greeting(
            runtime=self.runtime, name=self.name, to=peer.name, version=frames.VERSION, token=self._token
        )

    def refusal(self, hello: Hello) -> str:
        """Why nothing can be said to whoever greets like this; "" if it can."""
        if hello.version != frames.VERSION:
            return f"it speaks version {hello.version} of the protocol, this process {frames.VERSION}"
        if hello.runtime != self.runtime:
            return f"it belongs to the runtime {hello.runtime!r}, this process to {self.runtime!r}"
        if hello.to != self.name:
            return f"it looks for {hello.to!r}, this process is {self.name!r}"
        if hello.name == self.name:
            return f"it has the name of this process, {self.name!r}"
        return ""

    def begin(self, peer: Peer, stream: Stream, hello: Hello, *, answer: bool) -> Conversation:
        """Let this stream carry the peer's link from now on, instead of whichever does or was to."""
        self.hang_up(peer, "another stream takes over")
        if peer.pending is not None:
            peer.pending.cancel()
            peer.pending = None
        # Nothing may come between what the greeting says and the opening, so it is made and the link opened at once.
        peer.link.open(hello)
        opening = frames.encode(self.greeting(peer)) if answer else b""
        conversation = Conversation(peer, stream, self._on_messages, opening)
        peer.conversation = conversation
        peer.refused, peer.unwelcome = "", False
        peer.connected.set()
        peer.release_room()  # the greeting has confirmed messages
        self._on_event(StreamUp(peer.name))
        return conversation

    async def carry(self, peer: Peer, conversation: Conversation) -> None:
        """Until the stream ends. An error of this process's own handler ends it too, and goes to the loop's handler."""
        reason = "it was ended here"
        try:
            if peer.conversation is conversation:
                reason = await conversation.carry()
        except Exception as error:  # noqa: BLE001 - told below; a bug there must not leave the peer without a dialler
            reason = f"its message could not be handled here: {type(error).__name__}"
            self._loop.call_exception_handler(
                {"message": f"messages of {peer.name} could not be handled", "exception": error}
            )
        finally:
            if peer.conversation is conversation:
                self._broken(peer, reason)

    def hang_up(self, peer: Peer, reason: str) -> None:
        """End the stream that carries this peer's link, if any does."""
        conversation = peer.conversation
        if conversation is not None:
            self._broken(peer, reason)
            conversation.end()

    def _broken(self, peer: Peer, reason: str) -> None:
        peer.conversation = None
        peer.link.broken()
        peer.connected.clear()
        peer.broken_at = self._loop.time()
        peer.nudge.set()
        self._on_event(StreamBroken(peer.name, reason))

    # ── ends ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def replaced(self, peer: Peer, hello: Hello) -> None:
        """The two ends do not fit: begin a new one here."""
        if peer.rename():
            return
        if peer.link.instance == hello.end.rpartition("-")[0]:
            reason = "it had forgotten this process"
        else:
            reason = "another process has its name now"
        self.hang_up(peer, reason)
        self._on_event(PeerGone(peer.name, reason, peer.renew()))

    def forget(self, name: str, reason: str) -> None:
        """Have nothing to do with this peer any more."""
        peer = self._peers.pop(name, None)
        if peer is not None:
            self._on_event(PeerGone(name, reason, self._end(peer, reason)))

    def _end(self, peer: Peer, reason: str) -> int:
        conversation, peer.conversation = peer.conversation, None
        unconfirmed = peer.end(reason)
        if peer.dialler is not None:
            peer.dialler.cancel()
        if conversation is not None:
            conversation.end()
        return unconfirmed

    async def _sweep(self) -> None:
        """Forget peers that stay away, as what is held for them must not be held for ever; let the others hear of us.

        A peer holds what it sent until it hears that it arrived. While messages come this is said along with others;
        of the last ones it is said here. And who hears nothing for long knows that the stream leads nowhere.
        """
        while True:
            await asyncio.sleep(_SWEEP_S)
            limit = self._loop.time() - self._forget_after_s
            for peer in self.all():
                conversation = peer.conversation
                if conversation is None:
                    if peer.broken_at < limit:
                        self.forget(peer.name, f"not heard of for {self._forget_after_s:g} s")
                    continue
                # Sweeps are counted and not the clock: if this process was stopped, frames wait to be read.
                conversation.silent_s = 0.0 if conversation.read_frames else conversation.silent_s + _SWEEP_S
                conversation.read_frames = 0
                if conversation.silent_s > self._silent_after_s:
                    self.hang_up(peer, f"nothing was heard for {self._silent_after_s:g} s")
                else:
                    peer.beat()

    async def close(self, flush_s: float) -> int:
        """Say to all that are connected what is queued for them, and leave. How many messages were not confirmed."""
        self.closed = True
        self._sweeper.cancel()
        reason = "its process is leaving"
        diallers = [peer.dialler for peer in self.all() if peer.dialler is not None]
        for peer in self.all():
            if peer.conversation is not None:
                peer.conversation.leave(reason)
            elif peer.dialler is not None:
                peer.dialler.cancel()
        give_up_at = self._loop.time() + flush_s
        for peer in self.all():
            while peer.conversation is not None and self._loop.time() < give_up_at:
                peer.nudge.clear()
                try:
                    async with asyncio.timeout_at(give_up_at):
                        await peer.nudge.wait()
                except TimeoutError:
                    break
        unconfirmed = sum(self._end(peer, "this process is leaving") for peer in self.all())
        if diallers:
            await asyncio.wait(diallers)
        return unconfirmed
