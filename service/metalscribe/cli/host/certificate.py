"""The certificate: what is on the disk, what nginx serves, for which names, and for how long."""

from __future__ import annotations

import re
import socket
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from metalscribe.cli.commands import run
from metalscribe.cli.findings import Finding, Status
from metalscribe.cli.host.deployment import Host, HostDocument
from metalscribe.errors import MetalscribeError

_SECONDS: Final = 10.0
_HANDSHAKE_SECONDS: Final = 5.0
_DAY: Final = 86_400.0
_WARN_SECONDS: Final = 21 * _DAY
_WARN_SHARE: Final = 0.25
"""For certificates of a few weeks or days: what renews them acts when a third of their time is left, not before."""

_BEGIN: Final = "-----BEGIN CERTIFICATE-----"
_END: Final = "-----END CERTIFICATE-----"


@dataclass(frozen=True, slots=True)
class Certificate:
    """What is of interest in a certificate; times in seconds since 1970."""

    names: tuple[str, ...]
    addresses: tuple[IPv4Address | IPv6Address, ...]
    begins: float
    ends: float
    issuer: str

    def covers(self, name: str) -> bool:
        """Whether it is for a DNS name, a wildcard standing for one label (RFC 9525, section 6.3), or an address."""
        try:
            return ip_address(name) in self.addresses
        except ValueError:
            wanted = name.lower().rstrip(".")
            return any(known in {wanted, f"*.{wanted.partition('.')[2]}"} for known in map(str.lower, self.names))


def certificate(host: Host) -> Finding:
    """Whether the certificate is good for all names, for a while to come, and is the one that nginx serves."""
    document = host.document()
    try:
        served = served_certificate(document)
    except OSError as error:  # ssl.SSLError is one
        served, problem = None, f"nginx serves none: {error.strerror or error}"
    else:
        problem = ""
    try:
        file = host.at(document.certificate).read_text("ascii")
    except FileNotFoundError:
        return Finding(Status.FAIL, f"{document.certificate} is missing", "Run the deploy again.")
    except PermissionError:
        if served is None:
            raise
        file = served  # which everybody may see
    leaf = first_pem(file)
    if served is not None and ssl.PEM_cert_to_DER_cert(served) != ssl.PEM_cert_to_DER_cert(leaf):
        problem = "nginx still serves another one than the file's"
    return judge_certificate(read_certificate(leaf), document, problem, time.time())


def judge_certificate(found: Certificate, document: HostDocument, problem: str, now: float) -> Finding:
    """The finding for a certificate; ``problem`` is what is wrong with how it is served, if anything."""
    left = found.ends - now
    renew = {
        "internal_ca": "The deploy renews it.",
        "files": "Put the new one into the inventory's tls_certificate and tls_certificate_key, and deploy.",
        "acme": "`systemctl list-timers certbot.timer`, then `certbot renew`, and /var/log/letsencrypt.",
    }[document.tls]
    until = f"{datetime.fromtimestamp(found.ends, UTC):%Y-%m-%d}"
    if left <= 0:
        return Finding(Status.FAIL, f"expired on {until}", renew)
    if now < found.begins:
        begins = f"{datetime.fromtimestamp(found.begins, UTC):%Y-%m-%d %H:%M} UTC"
        return Finding(Status.FAIL, f"not valid before {begins}", "Is this machine's clock right?")
    missing = [name for name in document.server_names if not found.covers(name)]
    if missing:
        return Finding(Status.FAIL, f"not good for {', '.join(missing)}: it names {_listed(found)}", renew)
    days = int(left // _DAY)
    detail = f"good for {_listed(found)} until {until} ({'1 day' if days == 1 else f'{days} days'}), by {found.issuer}"
    if problem:
        return Finding(Status.WARN, f"{detail}; {problem}", "`nginx -t && systemctl reload-or-restart nginx`.")
    if left < min(_WARN_SECONDS, _WARN_SHARE * (found.ends - found.begins)):
        return Finding(Status.WARN, detail, renew)
    return Finding(Status.OK, detail)


def served_certificate(document: HostDocument) -> str:
    """The certificate, as PEM, that nginx serves to who asks for the first name; whether it is any good is not asked.

    Raises:
        OSError: nothing serves one.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", document.https_port), timeout=_HANDSHAKE_SECONDS) as raw,
        context.wrap_socket(raw, server_hostname=document.server_names[0]) as tls,
    ):
        found = tls.getpeercert(binary_form=True)
    if not found:
        raise ConnectionError("no certificate was sent")
    return ssl.DER_cert_to_PEM_cert(found)


def first_pem(text: str) -> str:
    """The first certificate in a PEM file, which is the leaf.

    Raises:
        MetalscribeError: there is none.
    """
    begin, end = text.find(_BEGIN), text.find(_END)
    if not 0 <= begin < end:
        raise MetalscribeError("The certificate's file holds no certificate. Run the deploy again.")
    return text[begin : end + len(_END)] + "\n"


def read_certificate(pem: str) -> Certificate:
    """Have OpenSSL read a certificate.

    Raises:
        MetalscribeError: it cannot.
    """
    command = ["openssl", "x509", "-noout", "-startdate", "-enddate", "-issuer", "-nameopt", "multiline,utf8,-esc_msb"]
    answer = run([*command, "-ext", "subjectAltName"], seconds=_SECONDS, text=pem)
    if answer.status != 0:
        raise MetalscribeError(f"The certificate cannot be read: {answer.complaint}")
    return parse_certificate(answer.out)


def parse_certificate(text: str) -> Certificate:
    """Read what ``openssl x509 -startdate -enddate -issuer -nameopt multiline -ext subjectAltName`` prints."""
    head, _, subject = text.partition("X509v3 Subject Alternative Name:")
    dates = dict(re.findall(r"^not(Before|After)=(.+)$", head, re.MULTILINE))
    issuer = dict(re.findall(r"^ +(\w+) *= (.+)$", head, re.MULTILINE))
    return Certificate(
        names=tuple(re.findall(r"DNS:([^,\s]+)", subject)),
        addresses=tuple(map(ip_address, re.findall(r"IP Address:([0-9A-Fa-f.:]+)", subject))),
        begins=float(ssl.cert_time_to_seconds(dates["Before"])),
        ends=float(ssl.cert_time_to_seconds(dates["After"])),
        issuer=issuer.get("commonName") or issuer.get("organizationName") or "an issuer without a name",
    )


def _listed(found: Certificate) -> str:
    names: Sequence[str] = (*found.names, *map(str, found.addresses))
    return ", ".join(names) or "nobody"
