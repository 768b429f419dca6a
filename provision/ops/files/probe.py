"""Ask one host over HTTPS, as its clients do: is it the right certificate, and what does the service answer?

Runs on the machine that the playbooks run on. It connects to the host's own address whatever its names resolve to, since
behind a load balancer they lead to any host, but asks for the name and checks the certificate by the name.

The certificate is read even if it is wrong or has expired; a request is sent only where it is right. Prints one line:
``{"verified": true, "problem": null, "serial": "2F…", "not_after": "2031-01-31T12:00:00Z", "days_left": 89, "status": 200, "body": "…"}``;
what could not be had is null. Exit status: 0 the expected answer came, 1 it did not, and the standard error says what did.
An API key is read from the standard input (``--with-key``), where no process list shows it.
"""

from __future__ import annotations

import argparse
import http.client
import json
import socket
import ssl
import sys
import time
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime

from cryptography import x509

_TIMEOUT_SECONDS = 10.0
_POLL_SECONDS = 0.5
_MOST_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Answer:
    """What a host showed: its certificate, and the answer to the request if one was sent."""

    verified: bool
    problem: str | None = None
    serial: str | None = None
    not_after: str | None = None
    days_left: int | None = None
    status: int | None = None
    body: str | None = None


def main() -> int:
    """Ask until the expected answer comes or the time is over; see the module's text."""
    options = _options()
    key = sys.stdin.readline().strip() if options.with_key else None
    deadline = time.monotonic() + options.wait
    while True:
        answer = ask(options.address, options.port, options.name, authority=options.ca, path=options.path, key=key)
        problem = _problem(answer, options)
        if problem is None or time.monotonic() >= deadline:
            break
        time.sleep(_POLL_SECONDS)
    sys.stdout.write(json.dumps(asdict(answer)) + "\n")
    if problem is None:
        return 0
    where = f"https://{options.name}:{options.port}{options.path}"
    if options.name != options.address:
        where += f" at {options.address}"
    waited = f", after {options.wait:g} s" if options.wait else ""
    sys.stderr.write(f"{where}: {problem}{waited}\n")
    return 1


def _problem(answer: Answer, options: argparse.Namespace) -> str | None:
    if answer.problem is not None:
        return answer.problem
    if options.serial is not None and answer.serial != options.serial:
        return f"shows the certificate {answer.serial}, not {options.serial}"
    if answer.status != options.expect:
        return f"answers {answer.status} instead of {options.expect}"
    return None


def ask(
    address: str, port: int, name: str, *, authority: str | None = None, path: str = "/readyz", key: str | None = None
) -> Answer:
    """Connect to ``address`` as a client of ``name`` and GET ``path``.

    Args:
        address: host name or address to connect to.
        port: TCP port.
        name: DNS name or address that the certificate must be for.
        authority: PEM file of the certificate authority to believe; by default those of the system.
        path: what to ask for.
        key: API key to send along.
    """
    try:
        context = ssl.create_default_context(cafile=authority)
    except OSError as error:
        return Answer(verified=False, problem=f"the authority's certificate {authority} cannot be read: {error}")
    try:
        with _connected(address, port, name, context) as tls:
            answer = _about(tls.getpeercert(binary_form=True), verified=True)
            try:
                status, body = _get(tls, name, port, path, key)
            except (OSError, http.client.HTTPException) as error:
                return replace(answer, problem=_no_answer(error))
            return replace(answer, status=status, body=body)
    except ssl.SSLCertVerificationError as error:
        problem = f"the certificate is not accepted: {error.verify_message}"
        return replace(_about(_unverified_certificate(address, port, name), verified=False), problem=problem)
    except OSError as error:
        return Answer(verified=False, problem=_no_answer(error))


def _about(der: bytes | None, *, verified: bool) -> Answer:
    """What there is to say of a certificate."""
    if der is None:
        return Answer(verified=False)
    certificate = x509.load_der_x509_certificate(der)
    not_after = certificate.not_valid_after_utc
    return Answer(
        verified=verified,
        serial=_hexadecimal(certificate.serial_number),
        not_after=f"{not_after:%Y-%m-%dT%H:%M:%SZ}",
        days_left=(not_after - datetime.now(UTC)).days,
    )


def _hexadecimal(serial: int) -> str:
    """As openssl prints a serial number: whole bytes."""
    return serial.to_bytes((serial.bit_length() + 7) // 8 or 1).hex().upper()


def _no_answer(error: Exception) -> str:
    return f"no answer: {str(error) or type(error).__name__}"


def _connected(address: str, port: int, name: str, context: ssl.SSLContext) -> ssl.SSLSocket:
    raw = socket.create_connection((address, port), timeout=_TIMEOUT_SECONDS)
    try:
        return context.wrap_socket(raw, server_hostname=name)
    except BaseException:
        raw.close()
        raise


def _get(tls: ssl.SSLSocket, name: str, port: int, path: str, key: str | None) -> tuple[int, str]:
    connection = http.client.HTTPConnection(name, port)
    connection.sock = tls
    host = f"[{name}]" if ":" in name else name
    headers = {"Host": host if port == 443 else f"{host}:{port}", "Connection": "close"}
    if key is not None:
        headers["X-API-Key"] = key
    connection.request("GET", path, headers=headers)
    response = connection.getresponse()
    return response.status, response.read(_MOST_BYTES).decode(errors="replace")


def _unverified_certificate(address: str, port: int, name: str) -> bytes | None:
    """The certificate as it is; nothing is sent over this connection."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with _connected(address, port, name, context) as tls:
            return tls.getpeercert(binary_form=True)
    except OSError:
        return None  # gone between two connections; what was wrong before is reported


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", required=True, help="where to connect to")
    parser.add_argument("--port", type=int, default=443)
    parser.add_argument("--name", required=True, help="whose certificate it must be")
    parser.add_argument("--ca", help="PEM file of the authority to believe, instead of the system's")
    parser.add_argument("--path", default="/readyz")
    parser.add_argument("--expect", type=int, default=200, help="HTTP status to wait for")
    parser.add_argument(
        "--serial", help="serial number that the certificate must have, as openssl x509 -serial prints it"
    )
    parser.add_argument("--wait", type=float, default=0.0, help="seconds to go on asking")
    parser.add_argument("--with-key", action="store_true", help="read an API key from the standard input")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
