"""URLs that may hold a password, and so stand elsewhere: `env:NAME` and `file:PATH` say where.

They are read anew each time they are needed, so that a changed password needs no restart, and never shown.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from pathlib import Path

from flowray.errors import ConfigError

_KINDS = ("env:", "file:")


def is_reference(text: str, field: str) -> bool:
    """Does this say where a URL is, instead of being one? Raises ConfigError where it names nothing."""
    if not text.startswith(_KINDS):
        return False
    if not text.partition(":")[2]:
        raise ConfigError(field, "names nothing after the colon", "env:NAME or file:PATH")
    return True


class SecretUrl(ABC):
    """Reads the URL when it is needed, and takes what is secret out of texts."""

    def __init__(self, reference: str, field: str) -> None:
        """`reference` is a reference or the URL itself; `field` is what errors call it."""
        self._reference, self._field = reference, field
        self._hidden: set[str] = set()  # of the URL read last, so it does not grow with rotations

    @abstractmethod
    def secrets_of(self, url: str) -> set[str]:
        """What must not be shown of it. Raises ConfigError, without any part of it, when it is not such a URL."""

    @property
    def is_elsewhere(self) -> bool:
        """Is it a reference? That may be shown."""
        return self._reference.startswith(_KINDS)

    def read(self) -> str:
        """The URL. Raises ConfigError when it is not there or is none of its kind; never shows it."""
        scheme, _, where = self._reference.partition(":")
        if scheme == "env":
            text = os.environ.get(where, "")
            if not text:
                raise ConfigError(self._field, f"the environment variable {where} is not set here")
        elif scheme == "file":
            try:
                text = Path(where).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(self._field, f"{where} cannot be read: {type(error).__name__}") from None
        else:
            text = self._reference
        self._hidden = self.secrets_of(text)
        return text

    def hide(self, text: str) -> str:
        """The text without what is secret of the URL: what libraries say in errors goes through here."""
        for secret in sorted(self._hidden, key=len, reverse=True):
            text = text.replace(secret, "***")
        return text
