"""What a bridge has done so far, for looking at."""

from __future__ import annotations

from msgspec import Struct


class Figures(Struct, kw_only=True):
    """Counts since the start of this process's bridge. `Bridge.figures()` returns a copy."""

    messages_in: int = 0  # taken over by flowray
    messages_out: int = 0  # confirmed by the other server
    duplicates_in: int = 0  # arrived again and dropped by their id
    duplicates_out: int = 0
    own: int = 0  # turned back: this bridge itself had brought them
    dead: int = 0  # put to the dead letters, with the reason
    lost: int = 0  # deleted by the server before they were read, or sent by pub/sub into a connection that broke
    refused: int = 0  # publishes that flowray did not take at that time; each was tried again
    reconnects: int = 0  # connections that broke or could not be made
    pending: int = 0  # in this process's hands: read and not acknowledged, or waiting to be sent
    pending_bytes: int = 0  # of those waiting to be sent
    lanes: int = 0  # routes of the configuration
    connected: int = 0  # of these, connected now
    last_error: str = ""  # the last thing that went wrong and is being tried again
