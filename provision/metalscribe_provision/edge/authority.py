"""The internal certificate authority: a key and a certificate in a folder on the machine that deploys.

The folder is the operator's treasure: whoever has ``ca.key`` can be any host to every client that believes ``ca.crt``.
It is made once, file by file, each written aside and renamed; a lock keeps two deploys apart.

The certificate carries no name constraints (RFC 5280, section 4.2.1.10): they would have to know the names of hosts that do
not exist yet, and clients would have to be told of a new authority for each name beyond them. Its path length is 0: it
signs hosts, no other authorities.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import os
import stat
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from pyinfra.api.exceptions import DeployError

from metalscribe_provision.edge.site import is_address

KEY: Final = "ca.key"
CERTIFICATE: Final = "ca.crt"

LIFE: Final = timedelta(days=3650)
LEAF_LIFE: Final = timedelta(days=365)
"""Mozilla's intermediate profile takes 366 days at most."""

HostKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey

_BACKDATED: Final = timedelta(hours=1)  # a client's clock may be behind
_LONGEST_COMMON_NAME: Final = 64  # RFC 5280, appendix A.1, ub-common-name


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate authority that can sign."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def issue(self, public_key: HostKey, names: Sequence[str], now: datetime) -> x509.Certificate:
        """A host's certificate over a key that the host has made and keeps.

        Valid from an hour ago for a year, or until the authority itself ends.
        """
        begin = now - _BACKDATED
        common_name = [names[0]] if len(names[0]) <= _LONGEST_COMMON_NAME else []
        authority_key = self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in common_name]))
            .issuer_name(self.certificate.subject)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(min(begin + LEAF_LIFE, self.certificate.not_valid_after_utc))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage("digital_signature"), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(
                x509.SubjectAlternativeName(sorted(alternative_names(names), key=str)), critical=not common_name
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(authority_key), critical=False
            )
        )
        return builder.sign(self.key, hashes.SHA384())


def opened(folder: Path, now: datetime) -> Authority:
    """The authority in ``folder``; made there if there is none.

    Raises:
        DeployError: as :func:`found`, or the folder cannot be written to.
    """
    with _readable(folder), _locked(folder):
        key = _key(folder) or _new_key(folder)
        certificate = _certificate(folder) or _signed_by_itself(folder, key, now)
    _check(folder, certificate, key, now)
    return Authority(certificate, key)


def found(folder: Path, now: datetime) -> x509.Certificate | None:
    """The authority's certificate, if there is one: what planning looks at, and changes nothing.

    Raises:
        DeployError: the folder cannot be read, or what is in it is incomplete, exposed or expired.
    """
    with _readable(folder):
        key, certificate = _key(folder), _certificate(folder)
    if certificate is not None:
        _check(folder, certificate, key, now)
    return certificate


def why_renew(
    certificate: x509.Certificate | None,
    *,
    public_key: HostKey,
    names: Sequence[str],
    authority: x509.Certificate,
    now: datetime,
) -> str | None:
    """Why a host needs another certificate than the one it has; None if it does not."""
    if certificate is None:
        return "there is none"
    if certificate.public_key() != public_key:
        return "it is for another key"
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return "another authority has signed it"
    if names_of(certificate) != alternative_names(names):
        return "it is for other names"
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if end - now < (end - begin) / 3:
        return f"it ends on {end:%Y-%m-%d}"
    return None


def alternative_names(names: Sequence[str]) -> set[x509.GeneralName]:
    """Server names as a certificate has them."""
    return {
        x509.IPAddress(ipaddress.ip_address(name)) if is_address(name) else x509.DNSName(name.lower()) for name in names
    }


def names_of(certificate: x509.Certificate) -> set[x509.GeneralName]:
    """The names that a certificate is for."""
    try:
        return set(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        return set()


def pem(certificate: x509.Certificate) -> str:
    """A certificate as text."""
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


@contextlib.contextmanager
def _readable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise DeployError(f"the internal CA in {folder} cannot be used: {error.filename}: {reason}") from None


def _check(folder: Path, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey | None, now: datetime) -> None:
    if key is None:
        raise DeployError(f"{folder / KEY} is missing beside {CERTIFICATE}; restore it from its backup")
    if certificate.public_key() != key.public_key():
        raise DeployError(f"{folder / KEY} is not the key of {folder / CERTIFICATE}; restore both from one backup")
    if certificate.not_valid_after_utc <= now:
        raise DeployError(
            f"the internal CA in {folder} has expired on {certificate.not_valid_after_utc:%Y-%m-%d}; move the folder away, "
            f"deploy again to make a new one, and give its {CERTIFICATE} to the clients"
        )


def _key(folder: Path) -> ec.EllipticCurvePrivateKey | None:
    path = folder / KEY
    if not path.exists():
        return None
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise DeployError(
            f"{path} can be read by others than its owner; chmod 600 {path}, and think of who may have it"
        )
    try:
        loaded = serialization.load_pem_private_key(path.read_bytes(), None)
    except (ValueError, TypeError):
        raise DeployError(
            f"{path} is not a private key in PEM without a passphrase; restore it from its backup"
        ) from None
    if not isinstance(loaded, ec.EllipticCurvePrivateKey):
        raise DeployError(f"{path} is not an elliptic curve key, so not of the internal CA's making")
    return loaded


def _new_key(folder: Path) -> ec.EllipticCurvePrivateKey:
    if (folder / CERTIFICATE).exists():
        raise DeployError(f"{folder / KEY} is missing beside {CERTIFICATE}; restore it from its backup")
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    _write(folder / KEY, private, 0o600)
    return key


def _certificate(folder: Path) -> x509.Certificate | None:
    path = folder / CERTIFICATE
    if not path.exists():
        return None
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except ValueError:
        raise DeployError(f"{path} is not a certificate in PEM; restore it from its backup") from None


def _signed_by_itself(folder: Path, key: ec.EllipticCurvePrivateKey, now: datetime) -> x509.Certificate:
    # The date tells it from an earlier one in a client's list.
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"metalscribe internal CA {now:%Y-%m-%d}")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage("key_cert_sign", "crl_sign"), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA384())
    )
    _write(folder / CERTIFICATE, pem(certificate).encode(), 0o644)
    return certificate


def _usage(*purposes: str) -> x509.KeyUsage:
    known = (
        *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
        *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
    )
    return x509.KeyUsage(**{purpose: purpose in purposes for purpose in known})


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    ignore = folder / ".gitignore"
    if not ignore.exists():
        _write(ignore, b"*\n", 0o644)  # a copy of the folder in a repository of the operator's own stays out of it
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _write(path: Path, content: bytes, mode: int) -> None:
    """Write a file as a whole or not at all, never readable by more than ``mode`` says."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
