"""The parts of an X.509 certificate, as the authority wants them."""

from __future__ import annotations

import datetime
import ipaddress

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from flowray.errors import ConfigError


def builder(
    key: ec.EllipticCurvePrivateKey, subject: x509.Name, begins_at_utc: float, ends_at_utc: float
) -> x509.CertificateBuilder:
    """A certificate for this key, without its issuer and extensions; times in seconds since the epoch."""
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.datetime.fromtimestamp(int(begins_at_utc), datetime.UTC))
        .not_valid_after(datetime.datetime.fromtimestamp(int(ends_at_utc), datetime.UTC))
    )


def key_usage(*, signs: bool) -> x509.KeyUsage:
    """To sign certificates, or to be shown in handshakes; never both."""
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def common_name(text: str) -> x509.Name:
    """A subject of just this."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def ip(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Raises ConfigError for what is no IP address."""
    try:
        return ipaddress.ip_address(address.strip("[]"))
    except ValueError:
        raise ConfigError(
            "addresses", f"wants IP addresses, got {address!r}", "callers check the name; a host name is not needed"
        ) from None


def pem(certificate: x509.Certificate) -> str:
    """As text."""
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def key_pem_of(key: ec.EllipticCurvePrivateKey) -> str:
    """As text, not encrypted: for a file that only its owner may read."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
