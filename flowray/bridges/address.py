"""The server's URL, whose password stands elsewhere and is never shown.

`url: env:ORDERS_REDIS` and `url: file:/run/secrets/orders` name where the whole URL is; it is read anew at each
connection, so that a changed password needs no restart. A URL without a password may stand in the configuration itself.
"""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from flowray.errors import ConfigError

SCHEMES = {
    "redis-streams": ("redis", "rediss", "unix"),
    "redis-pubsub": ("redis", "rediss", "unix"),
    "rabbitmq": ("amqp", "amqps"),
}
_REFERENCES = ("env:", "file:")
_SECRET_PARAMETERS = ("password", "passwd", "secret", "token")
_WAY_OUT = "put the URL into an environment variable (env:NAME) or a file (file:PATH)"


def check(reference: str, kind: str) -> None:
    """Is this a reference, or a URL for this kind of server that holds no secret? Raises ConfigError, without it."""
    if reference.startswith(_REFERENCES):
        if not reference.partition(":")[2]:
            raise ConfigError("url", "names nothing after the colon", "env:NAME or file:PATH")
        return
    password = _check_url(reference, kind, "url")
    if password:
        raise ConfigError("url", "holds a password, which must not stand in a configuration", _WAY_OUT)


class Address:
    """Reads the URL when it is needed, and takes what is secret out of texts."""

    def __init__(self, reference: str, kind: str) -> None:
        self._reference, self._kind = reference, kind
        self._hidden: set[str] = set()  # of the URL read last, so it does not grow with rotations

    def __repr__(self) -> str:
        shown = self._reference if self._reference.startswith(_REFERENCES) else f"{self._kind} server"
        return f"Address({shown!r})"

    def read(self) -> str:
        """The URL. Raises ConfigError when it is not there or is none for this kind of server; never shows it."""
        scheme, _, where = self._reference.partition(":")
        field = "url"
        if scheme == "env":
            text = os.environ.get(where, "")
            if not text:
                raise ConfigError(field, f"the environment variable {where} is not set")
        elif scheme == "file":
            try:
                text = Path(where).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(field, f"{where} cannot be read: {type(error).__name__}") from None
        else:
            text = self._reference
        password = _check_url(text, self._kind, field)
        self._hidden = {text, password, unquote(password)} - {""}
        return text

    def hide(self, text: str) -> str:
        """The text without the URL and its password: what libraries say in errors goes through here."""
        for secret in sorted(self._hidden, key=len, reverse=True):
            text = text.replace(secret, "***")
        return text


def _check_url(text: str, kind: str, field: str) -> str:
    """The password in it, or "". Raises ConfigError without any part of the text beyond the scheme."""
    schemes = SCHEMES[kind]
    try:
        parts = urlsplit(text)
        fits = parts.scheme in schemes and bool(parts.hostname or parts.path) and (parts.port is None or parts.port > 0)
    except ValueError:
        fits = False
    if not fits:
        raise ConfigError(
            field, f"is not a URL for {kind}", f"it begins with {' or '.join(f'{s}://' for s in schemes)}"
        )
    secrets = [value for name, value in parse_qsl(parts.query) if name.lower() in _SECRET_PARAMETERS]
    return parts.password or (secrets[0] if secrets else "")
