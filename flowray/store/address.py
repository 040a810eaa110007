"""Where the PostgreSQL server is, without showing a password.

`store.url` is a URL without a password, or `env:NAME` or `file:PATH` for where the whole URL is: that is read anew for
each connection, so that a changed password needs no restart. Without one in the URL libpq looks for it as `psql` does:
PGPASSWORD, then PGPASSFILE or `~/.pgpass` or the URL's `passfile`.
https://www.postgresql.org/docs/15/libpq-connect.html#LIBPQ-CONNSTRING
"""

from __future__ import annotations

from urllib.parse import parse_qsl, unquote, urlsplit

from flowray.errors import ConfigError
from flowray.references import SecretUrl, is_reference

FIELD = "store.url"
_SCHEMES = ("postgresql", "postgres")
_SECRET_PARAMETERS = ("password", "sslpassword")
_WAY_OUT = "put the URL into an environment variable (env:NAME) or a file (file:PATH), or the password into ~/.pgpass"


def check(reference: str) -> None:
    """Is this a reference, or a URL of PostgreSQL that holds no secret? Raises ConfigError, without it."""
    if not is_reference(reference, FIELD) and _secrets(reference):
        raise ConfigError(FIELD, "holds a password, which must not stand in a configuration", _WAY_OUT)


class Address(SecretUrl):
    """The URL of the server."""

    def __init__(self, reference: str) -> None:
        super().__init__(reference, FIELD)

    def secrets_of(self, url: str) -> set[str]:
        """See SecretUrl."""
        secrets = _secrets(url)
        return {url, *secrets, *map(unquote, secrets)} if secrets else set()

    def __str__(self) -> str:
        """For people: the host and the database, or where the URL is."""
        if self.is_elsewhere:
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
