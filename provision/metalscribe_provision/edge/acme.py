"""Certificates by an ACME server (RFC 8555), through certbot: which packages, which command, and when. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from cryptography import x509

from metalscribe_provision.common import ETC
from metalscribe_provision.edge import authority
from metalscribe_provision.edge.site import ACME_WEBROOT
from metalscribe_provision.hostdata import AcmeChallenge, HostData

LINEAGE: Final = "metalscribe"
LIVE: Final = f"/etc/letsencrypt/live/{LINEAGE}"
ARCHIVE: Final = f"/etc/letsencrypt/archive/{LINEAGE}"
RENEWAL: Final = f"/etc/letsencrypt/renewal/{LINEAGE}.conf"
HOOK: Final = "/etc/letsencrypt/renewal-hooks/deploy/metalscribe"
DNS_CREDENTIALS: Final = ETC / "credentials" / "acme_dns.ini"


def packages_for(data: HostData) -> list[str]:
    """Debian's packages."""
    if data.acme_challenge is AcmeChallenge.DNS_01:
        return ["certbot", f"python3-certbot-dns-{data.acme_dns_plugin}"]
    return ["certbot"]


def arguments(data: HostData, names: Sequence[str]) -> list[str]:
    """certbot's command line for a first or another certificate."""
    words = ["certbot", "certonly", "--non-interactive", "--agree-tos", "--email", data.acme_email or ""]
    words += ["--cert-name", LINEAGE, "--key-type", "ecdsa", "--elliptic-curve", "secp256r1"]
    # Whether there is a need is decided here, by why_obtain; certbot itself would keep what is not about to expire.
    words += ["--renew-with-new-domains", "--force-renewal"]
    if data.acme_server:
        words += ["--server", data.acme_server]
    if data.acme_challenge is AcmeChallenge.DNS_01:
        words += [f"--dns-{data.acme_dns_plugin}"]
        if data.acme_dns_credentials:
            words += [f"--dns-{data.acme_dns_plugin}-credentials", str(DNS_CREDENTIALS)]
    else:
        words += ["--webroot", "--webroot-path", ACME_WEBROOT]
    return [*words, *(word for name in names for word in ("--domain", name))]


def why_obtain(
    data: HostData, names: Sequence[str], certificate: x509.Certificate | None, renewal: Mapping[str, str]
) -> str | None:
    """Why certbot has to get a certificate now; None where its timer has no more to do than renew the one that is there.

    Args:
        data: what the operator wants.
        names: that the certificate has to be for.
        certificate: the lineage's present one.
        renewal: the settings in certbot's renewal file.
    """
    if certificate is None or not renewal:
        return "there is none"
    if authority.names_of(certificate) != authority.alternative_names(names):
        return "it is for other names"
    if data.acme_server and renewal.get("server") != data.acme_server:
        return "it is from another ACME server"
    authenticator = "webroot" if data.acme_challenge is AcmeChallenge.HTTP_01 else f"dns-{data.acme_dns_plugin}"
    if renewal.get("authenticator") != authenticator:
        return "it would be renewed by another challenge"
    return None


def parse_renewal(lines: Sequence[str]) -> dict[str, str]:
    """The settings in certbot's renewal file: ``name = value``, sections left out."""
    pairs = (line.partition("=") for line in lines if "=" in line and not line.lstrip().startswith("#"))
    return {name.strip(): value.strip() for name, _, value in pairs}
