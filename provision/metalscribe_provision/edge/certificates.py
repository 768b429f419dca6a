"""The operator's own certificate (``tls=files``), examined before anything is done to a host."""

from __future__ import annotations

import hashlib
import ipaddress
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID
from pydantic import SecretStr
from pyinfra.api.exceptions import DeployError

from metalscribe_provision.edge.site import is_address

_SOON: Final = timedelta(days=30)
_SHORTEST_RSA_BITS: Final = 2048


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate with its chain, and its key.

    Attributes:
        certificate: PEM, leaf first.
        digest: SHA-256 of ``certificate``, hexadecimal.
        warnings: what is well for now only.
    """

    certificate: str
    key: SecretStr
    digest: str
    warnings: tuple[str, ...]


def read_pair(certificate: Path, key: Path, names: Sequence[str], now: datetime) -> Pair:
    """The operator's certificate and key.

    Raises:
        DeployError: what a client, or nginx, would object to; all of it at once.
    """
    chain, secret = _chain(certificate), _key(key)
    problems = [*_about_key(chain, secret, key), *_about_order(chain), *_about_leaf(chain[0], names)]
    problems += [text for place, each in enumerate(chain, start=1) if (text := _about_time(place, each, now))]
    if problems:
        raise DeployError(f"tls_certificate {certificate}: " + "; ".join(problems))
    end = min(each.not_valid_after_utc for each in chain)
    warnings = (
        (f"tls_certificate {certificate} ends on {end:%Y-%m-%d}, in {(end - now).days} days",)
        if end - now < _SOON
        else ()
    )
    text = "".join(each.public_bytes(serialization.Encoding.PEM).decode() for each in chain)
    return Pair(
        text,
        SecretStr(
            secret.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ).decode()
        ),
        hashlib.sha256(text.encode()).hexdigest(),
        warnings,
    )


def uncovered(certificate: x509.Certificate, names: Sequence[str]) -> list[str]:
    """Those of ``names`` that a client would not find in the certificate (RFC 6125: a ``*`` stands for one label)."""
    try:
        alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return list(names)
    dns = {name.lower() for name in alternatives.get_values_for_type(x509.DNSName)}
    addresses = set(alternatives.get_values_for_type(x509.IPAddress))

    def covered(name: str) -> bool:
        if is_address(name):
            return ipaddress.ip_address(name) in addresses
        _, _, parent = name.lower().partition(".")
        return name.lower() in dns or f"*.{parent}" in dns

    return [name for name in names if not covered(name)]


def _chain(path: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except OSError as error:
        raise DeployError(f"tls_certificate {path} cannot be read: {(error.strerror or str(error)).lower()}") from None
    except ValueError:
        raise DeployError(f"tls_certificate {path} holds no certificate in PEM (-----BEGIN CERTIFICATE-----)") from None


def _key(path: Path) -> PrivateKeyTypes:
    try:
        return serialization.load_pem_private_key(path.read_bytes(), None)
    except OSError as error:
        raise DeployError(
            f"tls_certificate_key {path} cannot be read: {(error.strerror or str(error)).lower()}"
        ) from None
    except TypeError:
        raise DeployError(
            f"tls_certificate_key {path} has a passphrase, which nginx could not be asked for; "
            f"take it off with: openssl pkey -in {path} -out NEW"
        ) from None
    except ValueError:
        raise DeployError(f"tls_certificate_key {path} holds no private key in PEM") from None


def _about_key(chain: Sequence[x509.Certificate], key: PrivateKeyTypes, path: Path) -> list[str]:
    public = key.public_key()
    if chain[0].public_key() == public:
        short = isinstance(public, rsa.RSAPublicKey) and public.key_size < _SHORTEST_RSA_BITS
        return [f"its RSA key is shorter than {_SHORTEST_RSA_BITS} bits"] if short else []
    place = next((place for place, each in enumerate(chain, start=1) if each.public_key() == public), None)
    if place is not None:
        return [f"the host's own certificate must come first, it is number {place} in the file"]
    return [f"{path} is not its key"]


def _about_order(chain: Sequence[x509.Certificate]) -> list[str]:
    problems = []
    for place, (each, issuer) in enumerate(itertools.pairwise(chain), start=1):
        try:
            each.verify_directly_issued_by(issuer)
        except (ValueError, TypeError, InvalidSignature):
            problems.append(
                f"certificate {place} in the file was not signed by certificate {place + 1}, which must follow it"
            )
    return problems


def _about_leaf(leaf: x509.Certificate, names: Sequence[str]) -> list[str]:
    problems = []
    missing = uncovered(leaf, names)
    if missing:
        problems.append(f"it does not cover {', '.join(missing)} (server_names)")
    for extension in leaf.extensions:
        value = extension.value
        # One that signed itself may well say so too: `openssl req -x509` makes such.
        if isinstance(value, x509.BasicConstraints) and value.ca and leaf.issuer != leaf.subject:
            problems.append("it is an authority's certificate, not a host's")
        if isinstance(value, x509.ExtendedKeyUsage) and not {
            ExtendedKeyUsageOID.SERVER_AUTH,
            ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,
        }.intersection(value):
            problems.append("it is not for servers (extended key usage)")
        if isinstance(value, x509.TLSFeature):
            problems.append(
                "it demands OCSP stapling (must-staple), which nginx is not set up for; ask for one without"
            )
    return problems


def _about_time(place: int, certificate: x509.Certificate, now: datetime) -> str | None:
    which = "it" if place == 1 else f"certificate {place} in the file"
    if certificate.not_valid_after_utc <= now:
        return f"{which} has expired on {certificate.not_valid_after_utc:%Y-%m-%d}"
    if certificate.not_valid_before_utc > now:
        return f"{which} is not valid before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
    return None
