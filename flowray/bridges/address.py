"""The server's URL, whose password stands elsewhere and is never shown.

`url: env:ORDERS_REDIS` and `url: file:/run/secrets/orders` name where the whole URL is; it is read anew at each
connection, so that a changed password needs no restart. A URL without a password may stand in the configuration itself.
"""

from __future__ import annotations

from urllib.parse import parse_qsl, unquote, urlsplit

from flowray.errors import ConfigError
from flowray.references import SecretUrl, is_reference

SCHEMES = {
    "redis-streams": ("redis", "rediss", "unix"),
    "redis-pubsub": ("redis", "rediss", "unix"),
    "rabbitmq": ("amqp", "amqps"),
}
_SECRET_PARAMETERS = ("password", "passwd", "secret", "token")
_WAY_OUT = "put the URL into an environment variable (env:NAME) or a file (file:PATH)"


def check(reference: str, kind: str) -> None:
    """Is this a reference, or a URL for this kind of server that holds no secret? Raises ConfigError, without it."""
    if is_reference(reference, "url"):
        return
    password = _check_url(reference, kind, "url")
    if password:
        raise ConfigError("url", "holds a password, which must not stand in a configuration", _WAY_OUT)


class Address(SecretUrl):
    """The URL of a server of one kind."""

    def __init__(self, reference: str, kind: str) -> None:
        super().__init__(reference, "url")
        self._kind = kind

    def __repr__(self) -> str:
        shown = self._reference if self.is_elsewhere else f"{self._kind} server"
        return f"Address({shown!r})"

    def secrets_of(self, url: str) -> set[str]:
        """See SecretUrl."""
        password = _check_url(url, self._kind, "url")
        return {url, password, unquote(password)} - {""}


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
