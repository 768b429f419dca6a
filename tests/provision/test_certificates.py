"""The internal CA, and what is said of an operator's own certificate; real keys, real handshakes."""

from __future__ import annotations

import ipaddress
import multiprocessing
import socket
import ssl
import stat
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from pyinfra.api.exceptions import DeployError

from metalscribe_provision.edge import authority
from metalscribe_provision.edge.authority import CERTIFICATE, KEY, LEAF_LIFE, found, opened, why_renew
from metalscribe_provision.edge.certificates import Pair, read_pair, uncovered

NOW = datetime.now(UTC).replace(microsecond=0)
NAMES = ("stt.example.org", "192.0.2.7", "2001:db8::7")


def _key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, passphrase: bytes | None = None) -> bytes:
    encryption = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


# --- the internal CA ---


def test_a_client_that_believes_the_ca_believes_the_host(tmp_path: Path) -> None:
    key = _key()
    ca = opened(tmp_path / "ca", NOW)
    (tmp_path / "leaf").write_text(authority.pem(ca.issue(key.public_key(), NAMES, NOW)), encoding="utf-8")
    (tmp_path / "key").write_bytes(_pem(key))
    for name in NAMES:
        _handshake(tmp_path / "leaf", tmp_path / "key", tmp_path / "ca" / CERTIFICATE, name)
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        _handshake(tmp_path / "leaf", tmp_path / "key", tmp_path / "ca" / CERTIFICATE, "other.example.org")
    opened(tmp_path / "another", NOW)
    with pytest.raises(ssl.SSLCertVerificationError, match="unable to get local issuer"):
        _handshake(tmp_path / "leaf", tmp_path / "key", tmp_path / "another" / CERTIFICATE, NAMES[0])


def test_the_ca_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "ca"
    assert found(folder, NOW) is None
    assert not folder.exists(), "planning has made something"
    first = opened(folder, NOW)
    assert opened(folder, NOW + timedelta(days=1)).certificate == first.certificate
    assert found(folder, NOW) == first.certificate
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (folder, folder / KEY, folder / CERTIFICATE)}
    assert modes == {"ca": 0o700, KEY: 0o600, CERTIFICATE: 0o644}
    assert (folder / ".gitignore").read_text(encoding="utf-8") == "*\n"
    constraints = first.certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (constraints.critical, constraints.value.ca, constraints.value.path_length) == (True, True, 0)


def test_a_ca_that_was_cut_off_between_key_and_certificate_is_finished(tmp_path: Path) -> None:
    first = opened(tmp_path, NOW)
    (tmp_path / CERTIFICATE).unlink()
    assert found(tmp_path, NOW) is None
    assert opened(tmp_path, NOW).key.private_numbers() == first.key.private_numbers()


def _open_and_tell(folder: Path, answers: multiprocessing.Queue[bytes]) -> None:
    answers.put(opened(folder, NOW).certificate.fingerprint(hashes.SHA256()))


def test_two_deploys_at_once_make_one_ca(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    answers: multiprocessing.Queue[bytes] = context.Queue()
    deploys = [context.Process(target=_open_and_tell, args=(tmp_path, answers)) for _ in range(4)]
    for each in deploys:
        each.start()
    told = {answers.get(timeout=30) for _ in deploys}
    for each in deploys:
        each.join(30)
    assert len(told) == 1


def test_a_damaged_ca_is_not_replaced_but_named(tmp_path: Path) -> None:
    def problem(at: datetime = NOW) -> str:
        with pytest.raises(DeployError) as planning:
            found(tmp_path, at)
        with pytest.raises(DeployError) as executing:
            opened(tmp_path, at)
        assert str(planning.value) == str(executing.value)
        return str(planning.value)

    opened(tmp_path, NOW)
    key, certificate = tmp_path / KEY, tmp_path / CERTIFICATE
    good = key.read_bytes(), certificate.read_bytes()
    assert "has expired" in problem(NOW + timedelta(days=3651))
    key.chmod(0o640)
    assert f"chmod 600 {key}" in problem()
    key.chmod(0o600)
    key.write_bytes(_pem(_key()))
    assert "is not the key of" in problem()
    key.write_bytes(b"nonsense")
    assert "is not a private key" in problem()
    key.write_bytes(_pem(rsa.generate_private_key(public_exponent=65537, key_size=2048)))
    assert "is not an elliptic curve key" in problem()
    key.unlink()
    assert "is missing beside ca.crt" in problem()
    key.write_bytes(good[0])
    key.chmod(0o600)
    certificate.write_bytes(b"nonsense")
    assert "is not a certificate" in problem()
    certificate.write_bytes(good[1])
    assert found(tmp_path, NOW) is not None


def test_an_unusable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(DeployError, match=r"file/ca.* cannot be used: .*not a directory"):
        opened(tmp_path / "file" / "ca", NOW)


def test_a_leaf_is_as_mozilla_wants_it(tmp_path: Path) -> None:
    ca = opened(tmp_path, NOW)
    leaf = ca.issue(_key().public_key(), NAMES, NOW)
    assert leaf.not_valid_after_utc - leaf.not_valid_before_utc == LEAF_LIFE < timedelta(days=366)
    assert leaf.not_valid_before_utc < NOW
    usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert uncovered(leaf, NAMES) == []
    late = ca.issue(_key().public_key(), NAMES, ca.certificate.not_valid_after_utc - timedelta(days=9))
    assert late.not_valid_after_utc == ca.certificate.not_valid_after_utc
    long = "a" * 63 + ".example.org"
    assert uncovered(ca.issue(_key().public_key(), [long], NOW), [long]) == []


def test_a_certificate_is_renewed_for_a_reason(tmp_path: Path) -> None:
    ca, key = opened(tmp_path / "ca", NOW), _key()
    leaf = ca.issue(key.public_key(), NAMES, NOW)

    def why(
        *,
        certificate: x509.Certificate | None = leaf,
        names: Sequence[str] = NAMES,
        at: timedelta = timedelta(),
        ca: x509.Certificate = ca.certificate,
        key: ec.EllipticCurvePrivateKey = key,
    ) -> str | None:
        return why_renew(certificate, public_key=key.public_key(), names=names, authority=ca, now=NOW + at)

    assert why() is None
    assert why(names=[NAMES[2], NAMES[0].upper(), NAMES[1]]) is None
    assert why(at=timedelta(days=243)) is None
    assert why(at=timedelta(days=244)) == f"it ends on {leaf.not_valid_after_utc:%Y-%m-%d}"
    assert why(certificate=None) == "there is none"
    assert why(names=[*NAMES, "more.example.org"]) == "it is for other names"
    assert why(names=NAMES[:1]) == "it is for other names"
    assert why(key=_key()) == "it is for another key"
    assert why(ca=opened(tmp_path / "another", NOW).certificate) == "another authority has signed it"


def _handshake(certificate: Path, key: Path, ca: Path, name: str) -> None:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)
    client = ssl.create_default_context(cafile=str(ca))
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    ours, theirs = socket.socketpair()

    def serve() -> None:
        try:
            server.wrap_socket(theirs, server_side=True).close()
        except OSError:  # the client has turned away; what it thinks of us is asserted on its side
            theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        client.wrap_socket(ours, server_hostname=name).close()
    finally:
        ours.close()
        thread.join(20)


# --- the operator's own ---


@dataclass
class Made:
    """A certificate with its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def _made(
    *extensions: x509.ExtensionType,
    issuer: Made | None = None,
    names: Sequence[str] = ("stt.example.org",),
    ca: bool = False,
    begin: datetime = NOW - timedelta(days=1),
    end: datetime = NOW + timedelta(days=60),
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | None = None,
) -> Made:
    key = key or _key()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{names[0]} {ca}")])
    alternatives: list[x509.GeneralName] = []
    for name in names:
        try:
            alternatives.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            alternatives.append(x509.DNSName(name))
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return Made(builder.sign((issuer.key if issuer else key), hashes.SHA256()), key)


@pytest.fixture(scope="module")
def root() -> Made:
    return _made(names=["root"], ca=True)


@pytest.fixture(scope="module")
def intermediate(root: Made) -> Made:
    return _made(names=["intermediate"], ca=True, issuer=root)


@dataclass
class Files:
    """The two files of ``tls=files``."""

    certificate: Path
    key: Path

    def read(self, *names: str) -> Pair:
        return read_pair(self.certificate, self.key, names or ("stt.example.org",), NOW)

    def problem(self, *names: str) -> str:
        with pytest.raises(DeployError) as refused:
            self.read(*names)
        return str(refused.value)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path / "chain.pem", tmp_path / "key.pem")


def _write(files: Files, *chain: Made, key: Made | None = None) -> Files:
    encoded = (each.certificate.public_bytes(serialization.Encoding.PEM) for each in chain)
    files.certificate.write_bytes(b"".join(encoded))
    files.key.write_bytes(_pem((key or chain[0]).key))
    return files


def test_a_chain_is_taken_as_it_should_be(files: Files, root: Made, intermediate: Made) -> None:
    leaf = _made(issuer=intermediate)
    digests = set()
    for chain in ((leaf, intermediate), (leaf, intermediate, root)):
        pair = _write(files, *chain).read()
        assert pair.certificate.encode() == files.certificate.read_bytes()
        assert pair.key.get_secret_value().encode() == files.key.read_bytes()
        digests.add(pair.digest)
        assert pair.warnings == ()
    assert len(digests) == 2, "another chain is another certificate to nginx"
    _write(files, _made(ca=True)).read()  # openssl req -x509 makes such
    assert "BEGIN PRIVATE" not in repr(pair)


def test_whatever_is_wrong_is_said_at_once(files: Files, root: Made, intermediate: Made) -> None:
    leaf = _made(issuer=intermediate, end=NOW)
    problem = _write(files, leaf, root, key=root).problem("stt.example.org", "x.example.org", "192.0.2.1")
    assert problem == (
        f"tls_certificate {files.certificate}: the host's own certificate must come first, it is number 2 in the file; "
        "certificate 1 in the file was not signed by certificate 2, which must follow it; "
        "it does not cover x.example.org, 192.0.2.1 (server_names); "
        f"it has expired on {NOW:%Y-%m-%d}"
    )


def test_what_does_not_fit_is_told(files: Files, intermediate: Made) -> None:
    leaf = _made(issuer=intermediate)
    assert f"{files.key} is not its key" in _write(files, leaf, intermediate, key=_made()).problem()
    future = _made(begin=NOW + timedelta(hours=1))
    assert "it is not valid before" in _write(files, future).problem()
    old = _made(names=["intermediate"], ca=True, key=intermediate.key, end=NOW - timedelta(minutes=1))
    assert "certificate 2 in the file has expired" in _write(files, _made(issuer=old), old).problem()
    assert "authority's certificate" in _write(files, _made(ca=True, issuer=intermediate)).problem()
    clients = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
    assert "it is not for servers" in _write(files, _made(clients)).problem()
    stapled = x509.TLSFeature([x509.TLSFeatureType.status_request])
    assert "must-staple" in _write(files, _made(stapled)).problem()
    weak = _made(key=rsa.generate_private_key(public_exponent=65537, key_size=1024))
    assert "shorter than 2048 bits" in _write(files, weak).problem()


def test_files_that_are_none_are_told(files: Files) -> None:
    assert f"tls_certificate {files.certificate} cannot be read: no such file" in files.problem()
    _write(files, made := _made())
    files.certificate.write_bytes(b"nonsense")
    assert "holds no certificate in PEM" in files.problem()
    _write(files, made)
    files.key.write_bytes(b"nonsense")
    assert "holds no private key in PEM" in files.problem()
    files.key.write_bytes(_pem(made.key, b"sesame"))
    assert "has a passphrase" in files.problem()
    files.key.unlink()
    assert f"tls_certificate_key {files.key} cannot be read: no such file" in files.problem()


def test_an_end_that_is_near_is_warned_of(files: Files, root: Made) -> None:
    soon = _made(issuer=root, end=NOW + timedelta(days=29, hours=1))
    (warning,) = _write(files, soon, root).read().warnings
    assert warning.endswith(f"ends on {NOW + timedelta(days=29, hours=1):%Y-%m-%d}, in 29 days")


@pytest.mark.parametrize(
    ("names", "asked", "missing"),
    [
        (["*.example.org"], ["a.example.org", "A.Example.Org"], []),
        (["*.example.org"], ["a.b.example.org", "example.org"], ["a.b.example.org", "example.org"]),
        (["2001:db8::1"], ["2001:DB8:0:0::1"], []),
        (["192.0.2.1.example.org"], ["192.0.2.1"], ["192.0.2.1"]),
        (["a.example.org"], ["b.example.org"], ["b.example.org"]),
    ],
)
def test_names_are_covered_as_clients_see_it(names: list[str], asked: list[str], missing: list[str]) -> None:
    assert uncovered(_made(names=names).certificate, asked) == missing
