"""The doctor as a client of its own host: the certificate, and a transcription by HTTPS.

A real TLS server with real certificates stands in for nginx with the service behind it: what it answers is the test's choice.
"""

from __future__ import annotations

import ipaddress
import json
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from metalscribe.cli.commands import Completed
from metalscribe.cli.findings import Status
from metalscribe.cli.host import edge
from metalscribe.cli.host.certificate import Certificate, certificate, judge_certificate, parse_certificate
from metalscribe.cli.host.deployment import Host, HostDocument
from metalscribe.errors import ConfigurationError

NAMES = ("speech.example", "10.0.0.5")
KEY = "a-key-that-nobody-guesses"
SPOKEN = (Path(edge.__file__).parents[2] / "samples" / "sample.txt").read_text()
TRANSCRIPT = {"text": SPOKEN, "processing_time": 0.4, "model": "tiny.en"}
NOW = datetime.now(UTC)

# openssl x509 -noout -startdate -enddate -issuer -nameopt multiline,utf8,-esc_msb -ext subjectAltName
# (OpenSSL 3.0 and 3.5 print the same)
OPENSSL = """\
notBefore=Nov 20 09:12:12 2026 GMT
notAfter=Dec 20 09:12:12 2026 GMT
issuer=
    organizationName          = Example, Inc
    commonName                = metalscribe internal CA 2026-11-20
X509v3 Subject Alternative Name: 
    DNS:a.example, DNS:*.b.example, IP Address:10.0.0.1, IP Address:2001:DB8:0:0:0:0:0:1
"""  # noqa: W291


@dataclass
class Authority:
    """A certificate authority, and what it has signed."""

    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    @property
    def name(self) -> x509.Name:
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "metalscribe internal CA")])

    def sign(
        self,
        names: tuple[str, ...],
        *,
        begins: timedelta = timedelta(hours=-1),
        ends: timedelta = timedelta(days=365),
        is_ca: bool = False,
    ) -> tuple[str, str]:
        """A certificate and its key, as PEM."""
        key = self.key if is_ca else ec.generate_private_key(ec.SECP256R1())
        subject = self.name if is_ca else x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, names[0])])
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW + begins)
            .not_valid_after(NOW + ends)
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName([*map(_alternative, names)]), critical=False)
        made = builder.sign(self.key, hashes.SHA256())
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return made.public_bytes(serialization.Encoding.PEM).decode(), private.decode()

    @property
    def pem(self) -> str:
        return self.sign((), is_ca=True)[0]


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


@dataclass
class Deployed:
    """A host with a certificate, and a server that shows it."""

    host: Host
    authority: Authority
    served: list[str]
    """Of the last request: path, Host, key."""

    def describe(self, **fields: object) -> None:
        path = self.host.at(Path("/etc/metalscribe/host.json"))
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    def install(self, pem: str) -> None:
        self.host.at(Path("/etc/metalscribe/tls/current/fullchain.pem")).write_text(pem)


Answer = tuple[int, Mapping[str, str], bytes]


def transcript(**fields: object) -> Answer:
    return 200, {"Content-Type": "application/json"}, json.dumps(TRANSCRIPT | fields).encode()


def problem(status: int, detail: str, **headers: str) -> Answer:
    body = json.dumps({"detail": detail, "status": status}).encode()
    return status, {"Content-Type": "application/problem+json", **headers}, body


@contextmanager
def deployed(
    tmp_path: Path,
    answer: Answer,
    names: tuple[str, ...] = NAMES,
    *,
    begins: timedelta = timedelta(hours=-1),
    ends: timedelta = timedelta(days=365),
) -> Iterator[Deployed]:
    root = tmp_path / "host"
    tls = root / "etc/metalscribe/tls/current"
    tls.mkdir(parents=True)
    authority = Authority()
    chain, key = authority.sign(names, begins=begins, ends=ends)
    (tls / "fullchain.pem").write_text(chain)
    (tls / "privkey.pem").write_text(key)
    (root / "etc/metalscribe/tls/ca.crt").write_text(authority.pem)
    (root / "etc/metalscribe/credentials").mkdir()
    (root / "etc/metalscribe/credentials/metalscribe_api_key").write_text(f"{KEY}\n")
    seen: list[str] = []

    class Nginx(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen[:] = [self.path, self.headers["Host"], self.headers["X-API-Key"]]
            body = self.rfile.read(int(self.headers["Content-Length"]))
            assert b"fLaC" in body
            status, headers, text = answer
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Nginx)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls / "fullchain.pem", tls / "privkey.pem")

    def show(connection: ssl.SSLSocket | ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> int | None:
        return None if name == names[0] else ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME  # as nginx's other server does

    context.sni_callback = show
    server.socket = context.wrap_socket(server.socket, server_side=True)
    document = {
        "server_names": list(names),
        "https_port": server.server_port,
        "tls": "internal_ca",
        "certificate": "/etc/metalscribe/tls/current/fullchain.pem",
        "ca": "/etc/metalscribe/tls/ca.crt",
        "gpu": False,
        "firewall": True,
    }
    (root / "etc/metalscribe/host.json").write_text(json.dumps(document))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield Deployed(Host(root), authority, seen)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


# --- a transcription ---


def test_the_words_come_back(tmp_path: Path) -> None:
    with deployed(tmp_path, transcript()) as there:
        finding = edge.https(there.host)
        port = there.host.document().https_port
    assert finding.status is Status.OK, finding
    assert "31 words" in finding.detail
    assert "0.4 s at work" in finding.detail
    assert there.served == ["/transcribe", f"speech.example:{port}", KEY]


def test_a_small_models_mistakes_are_forgiven_and_other_words_are_not(tmp_path: Path) -> None:
    with deployed(tmp_path, transcript(text=SPOKEN.replace("weather", "whether").replace("train", "rain"))) as there:
        assert edge.https(there.host).status is Status.OK
    with deployed(tmp_path / "other", transcript(text="you " * 20)) as there:
        finding = edge.https(there.host)
        assert (finding.status, "not what was said" in finding.detail) == (Status.FAIL, True)
        there.describe(words=False)
        assert edge.https(there.host).status is Status.OK


@pytest.mark.parametrize(
    ("answer", "status", "said", "hint"),
    [
        (problem(401, "The API key is not known."), Status.FAIL, "401: The API key is not known.", "restart"),
        (problem(502, "The service does not answer."), Status.FAIL, "502", "systemctl status metalscribe"),
        (problem(503, "The model is loading.", **{"Retry-After": "7"}), Status.WARN, "model is loading", "in 7 s"),
        (problem(429, "Too many requests."), Status.WARN, "429", "busy"),
        ((404, {}, b""), Status.FAIL, "404: Not Found", "another site"),
        ((200, {}, b"<html>It works!</html>"), Status.FAIL, "no transcript", "another site"),
        ((200, {}, b"[]"), Status.FAIL, "no transcript", "another site"),
    ],
)
def test_other_answers(tmp_path: Path, answer: Answer, status: Status, said: str, hint: str) -> None:
    with deployed(tmp_path, answer) as there:
        finding = edge.https(there.host)
    assert (finding.status, said in finding.detail, hint in finding.hint) == (status, True, True), finding
    assert KEY not in finding.detail + finding.hint


def test_another_authoritys_certificate_fails(tmp_path: Path) -> None:
    with deployed(tmp_path, transcript()) as there:
        there.host.at(Path("/etc/metalscribe/tls/ca.crt")).write_text(Authority().pem)
        finding = edge.https(there.host)
    assert (finding.status, "cannot trust the certificate" in finding.detail) == (Status.FAIL, True)
    assert there.served == [], "the key was not sent"


def test_an_authority_that_is_none_is_named(tmp_path: Path) -> None:
    with deployed(tmp_path, transcript()) as there:
        file = there.host.at(Path("/etc/metalscribe/tls/ca.crt"))
        for spoil, said in (
            (lambda: file.write_text("-----BEGIN"), "holds no certificate in PEM"),
            (file.unlink, "is missing"),
        ):
            spoil()
            with pytest.raises(ConfigurationError, match=f"/etc/metalscribe/tls/ca.crt {said}: run the deploy again"):
                edge.https(there.host)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        # nginx -t -q, 1.22 and 1.26: with a log of its own, and before it has one
        (
            'nginx: [emerg] unknown directive "nonsense" in /etc/nginx/conf.d/x.conf:1\nnginx: configuration file /etc/nginx/nginx.conf test failed\n',
            'unknown directive "nonsense" in /etc/nginx/conf.d/x.conf:1',
        ),
        (
            '2026/11/20 09:36:45 [emerg] 3416#3416: unknown directive "nonsense" in /etc/nginx/conf.d/x.conf:1\nnginx: configuration file /etc/nginx/nginx.conf test failed\n',
            'unknown directive "nonsense" in /etc/nginx/conf.d/x.conf:1',
        ),
        ("nginx: nothing of note\n", "nginx: nothing of note"),
    ],
)
def test_nginxs_complaint_is_the_line_that_says_what_is_wrong(said: str, told: str) -> None:
    assert edge._emergency(Completed(1, "", said)) == told


@pytest.mark.parametrize(
    ("names", "times", "said"),
    [
        (("speech.example",), {"ends": timedelta(minutes=-1)}, "expired"),
        (("speech.example",), {"begins": timedelta(days=1)}, "not yet valid"),
    ],
)
def test_a_certificate_out_of_its_time_fails(
    tmp_path: Path, names: tuple[str, ...], times: dict[str, timedelta], said: str
) -> None:
    with deployed(tmp_path, transcript(), names, **times) as there:
        finding = edge.https(there.host)
    assert (finding.status, said in finding.detail) == (Status.FAIL, True), finding
    assert there.served == []


def test_the_name_is_verified_and_not_the_loopback_address(tmp_path: Path) -> None:
    with deployed(tmp_path, transcript(), ("other.example", "127.0.0.1")) as there:
        there.describe(server_names=["speech.example"])
        finding = edge.https(there.host)
    assert finding.status is Status.FAIL
    assert there.served == []


def test_an_authority_that_this_machine_does_not_know_is_a_warning(tmp_path: Path) -> None:
    with deployed(tmp_path, transcript()) as there:
        there.describe(tls="files", ca=None)
        finding = edge.https(there.host)
        assert (finding.status, "does not know the authority" in finding.detail) == (Status.WARN, True), finding
        assert there.served
        # But not any certificate: the one that was deployed.
        there.install(Authority().sign(NAMES)[0])
        there.served.clear()
        assert edge.https(there.host).status is Status.FAIL
        assert there.served == []


def test_a_port_that_nobody_listens_on(tmp_path: Path) -> None:
    with deployed(tmp_path, transcript()) as there:
        pass
    finding = edge.https(there.host)
    assert (finding.status, "nothing answers on port" in finding.detail) == (Status.FAIL, True)


def test_without_its_key_nothing_is_sent(tmp_path: Path) -> None:
    with deployed(tmp_path, transcript()) as there:
        there.host.at(Path("/etc/metalscribe/credentials/metalscribe_api_key")).unlink()
        finding = edge.https(there.host)
    assert (finding.status, "metalscribe_api_key is missing" in finding.detail) == (Status.FAIL, True)


def test_an_answer_that_would_steer_the_terminal_is_made_harmless() -> None:
    body = json.dumps({"detail": "\x1b[2J gone"}).encode()
    answer = httpx.Response(500, headers={"Content-Type": "application/problem+json"}, content=body)
    assert "\x1b" not in edge.judge_answer(answer, SPOKEN).detail


# --- the certificate ---


def test_what_openssl_prints_is_read() -> None:
    found = parse_certificate(OPENSSL)
    assert found.names == ("a.example", "*.b.example")
    assert found.addresses == (ipaddress.ip_address("10.0.0.1"), ipaddress.ip_address("2001:db8::1"))
    assert found.ends - found.begins == 30 * 86_400
    assert found.issuer == "metalscribe internal CA 2026-11-20"


@pytest.mark.parametrize(
    ("name", "covered"),
    [
        ("a.example", True),
        ("A.Example", True),
        ("x.b.example", True),
        ("x.y.b.example", False),
        ("b.example", False),
        ("x.a.example", False),
        ("10.0.0.1", True),
        ("2001:db8:0::1", True),
        ("10.0.0.2", False),
    ],
)
def test_names(name: str, covered: bool) -> None:
    assert parse_certificate(OPENSSL).covers(name) is covered


def test_the_certificate_that_is_deployed_and_served(tmp_path: Path) -> None:
    with deployed(tmp_path, transcript()) as there:
        finding = certificate(there.host)
        assert finding.status is Status.OK, finding
        assert "good for speech.example, 10.0.0.5 until " in finding.detail
        assert "(364 days), by metalscribe internal CA" in finding.detail
        there.describe(server_names=["speech.example", "new.example"])
        renamed = certificate(there.host)
        assert (renamed.status, "not good for new.example" in renamed.detail) == (Status.FAIL, True)
        there.describe(server_names=["speech.example"])
        there.install(there.authority.sign(NAMES)[0])
        stale = certificate(there.host)
        assert (stale.status, "still serves another one" in stale.detail) == (Status.WARN, True)
        assert "systemctl reload-or-restart nginx" in stale.hint
    silent = certificate(there.host)
    assert (silent.status, "nginx serves none" in silent.detail) == (Status.WARN, True)


def test_a_file_without_a_certificate(tmp_path: Path) -> None:
    with deployed(tmp_path, transcript()) as there:
        there.host.at(Path("/etc/metalscribe/tls/current/fullchain.pem")).unlink()
        assert "is missing" in certificate(there.host).detail


DOCUMENT = HostDocument(
    server_names=("a.example",),
    https_port=443,
    tls="acme",
    certificate=Path("/etc/metalscribe/tls/current/fullchain.pem"),
    ca=None,
    gpu=False,
    firewall=True,
)
DAY = 86_400.0


@pytest.mark.parametrize(
    ("life", "left", "status"),
    [
        (365, 100, Status.OK),
        (365, 20.9, Status.WARN),
        (365, 0, Status.FAIL),
        (90, 30, Status.OK),
        (90, 20.9, Status.WARN),
        (45, 15, Status.OK),
        (45, 11, Status.WARN),
        (6, 3, Status.OK),
        (6, 1, Status.WARN),
    ],
)
def test_a_certificate_that_ought_to_have_been_renewed(life: float, left: float, status: Status) -> None:
    now = time.time()
    found = Certificate(("a.example",), (), now - (life - left) * DAY, now + left * DAY, "an ACME server")
    finding = judge_certificate(found, DOCUMENT, "", now)
    assert (finding.status, "certbot" in finding.hint) == (status, status is not Status.OK)


def test_a_certificate_of_the_future() -> None:
    found = Certificate(("a.example",), (), 2e9, 3e9, "an ACME server")
    finding = judge_certificate(found, DOCUMENT, "", 1e9)
    assert (finding.status, "clock" in finding.hint) == (Status.FAIL, True)
