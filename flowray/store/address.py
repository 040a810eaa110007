"""Where the PostgreSQL server is, without showing a password.

`store.url` is a URL without a password, or `env:NAME` or `file:PATH` for where the whole URL is: that is read anew for
each connection, so that a changed password needs no restart. Without one in the URL libpq looks for it as `psql` does:
PGPASSWORD, then PGPASSFILE or `~/.pgpass` or the URL's `passfile`.
https://www.postgresql.org/docs/15/libpq-connect.html#LIBPQ-CONNSTRING
"""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from flowray.errors import ConfigError

FIELD = "store.url"
_SCHEMES = ("postgresql", "postgres")
_REFERENCES = ("env:", "file:")
_SECRET_PARAMETERS = ("password", "sslpassword")
_WAY_OUT = "put the URL into an environment variable (env:NAME) or a file (file:PATH), or the password into ~/.pgpass"


def check(reference: str) -> None:
    """Is this a reference, or a URL of PostgreSQL that holds no secret? Raises ConfigError, without it."""
    if reference.startswith(_REFERENCES):
        if not reference.partition(":")[2]:
            raise ConfigError(FIELD, "names nothing after the colon", "env:NAME or file:PATH")
    elif _secrets(reference):
        raise ConfigError(FIELD, "holds a password, which must not stand in a configuration", _WAY_OUT)


class Address:
    """Reads the URL when it is needed, and takes what is secret out of texts."""

    def __init__(self, reference: str) -> None:
        self._reference = reference
        self._hidden: set[str] = set()  # of the URL read last

    def read(self) -> str:
        """The URL. Raises ConfigError when it is not there or is none; never shows it."""
        scheme, _, where = self._reference.partition(":")
        if scheme == "env":
            text = os.environ.get(where, "")
            if not text:
                raise ConfigError(FIELD, f"the environment variable {where} is not set here")
        elif scheme == "file":
            try:
                text = Path(where).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(FIELD, f"{where} cannot be read: {type(error).__name__}") from None
        else:
            text = self._reference
        secrets = _secrets(text)
        self._hidden = {text, *secrets, *map(unquote, secrets)} if secrets else set()
        return text

    def hide(self, text: str) -> str:
        """The text without a URL that has a password, and without that."""
        for secret in sorted(self._hidden, key=len, reverse=True):
            text = text.replace(secret, "***")
        return text

    def __str__(self) -> str:
        """For people: the host and the database, or where the URL is."""
        if self._reference.startswith(_REFERENCES):
            return f"PostgreSQL ({self._reference})"
        parts = urlsplit(self._reference)
        return f"PostgreSQL {parts.netloc.rpartition('@')[2]}{parts.path}"


def _secrets(text: str) -> list[str]:
    """The passwords in it. Raises ConfigError without any part of the text."""
    try:
        parts = urlsplit(text)
        scheme, password, query = parts.scheme, parts.password, parse_qsl(parts.query)
    except ValueError:
        scheme, password, query = "", None, []
    if scheme not in _SCHEMES:
        raise ConfigError(FIELD, "is not a URL of PostgreSQL", "postgresql://user@host:port/database")
    return [value for value in (password, *(value for name, value in query if name in _SECRET_PARAMETERS)) if value]
