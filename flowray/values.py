"""Values to bytes and back.

Plain data (None, bool, int, float, str, bytes, and lists and string-keyed dicts of these) becomes msgpack, anything
else a pickle. A value comes back equal and of the same type, so a tuple or a subclass of str is not plain.
"""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Callable
from typing import Any

import msgspec

from flowray.errors import PayloadError

_SCALARS = (str, int, float, bool, type(None), bytes)
_MAX_INT = 1 << 63
_MAX_DEPTH = 50  # deeper nesting is left to pickle


def _pickled(value: Any) -> bytes:
    return pickle.dumps(value, protocol=5)


def encode_value(value: Any, field: str, pickled: Callable[[Any], bytes] = _pickled) -> tuple[str, bytes]:
    """(codec, bytes). `pickled` is for what is not plain.

    Raises:
        PayloadError: it cannot be pickled; names `field`.
    """
    if _is_plain(value, 0):
        with contextlib.suppress(OverflowError, msgspec.MsgspecError, UnicodeEncodeError):
            return "msgpack", msgspec.msgpack.encode(value)
    try:
        return "pickle", pickled(value)
    except Exception as error:  # pickling calls arbitrary __reduce__ methods
        kind = type(value).__name__
        raise PayloadError(field, f"a {kind} that cannot be pickled: {type(error).__name__}: {error}") from error


def decode_value(codec: str, data: Any) -> Any:
    """The inverse of `encode_value`, from bytes or any buffer."""
    return msgspec.msgpack.decode(data) if codec == "msgpack" else pickle.loads(data)


def _is_plain(value: Any, depth: int) -> bool:
    """Would msgpack give back exactly this?"""
    kind = type(value)
    if kind in _SCALARS:
        return kind is not int or -_MAX_INT <= value < 2 * _MAX_INT
    if depth > _MAX_DEPTH:
        return False
    if kind is list:
        return all(_is_plain(item, depth + 1) for item in value)
    if kind is dict:
        return all(type(key) is str and _is_plain(item, depth + 1) for key, item in value.items())
    return False
