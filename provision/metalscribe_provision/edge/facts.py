"""What a host says about its nginx and its certificates; every fact copes with a host that has none of it yet."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from pyinfra.api.command import QuoteString, StringCommand
from pyinfra.api.facts import FactBase

from metalscribe_provision.common import TLS_DIR
from metalscribe_provision.edge.acme import ARCHIVE, DNS_CREDENTIALS, HOOK, LIVE, RENEWAL
from metalscribe_provision.edge.authority import HostKey
from metalscribe_provision.edge.site import Version, is_address, parse_version

NGINX: Final = "/etc/nginx"

_PEM: Final = re.compile(r"-----BEGIN ([A-Z ]+)-----\n.+?\n-----END \1-----\n", re.DOTALL)
_LOOPBACK: Final = "127.0.0.1"

# The same certificates give the same digest, however their lines are broken and whatever is said between them.
_DIGEST: Final = "sed -n '/-BEGIN CERTIFICATE-/,/-END CERTIFICATE-/p' | tr -d '\\r\\n' | sha256sum | cut -d ' ' -f 1"
_NO_CERTIFICATE: Final = hashlib.sha256().hexdigest()


class NginxVersion(FactBase[Version | None]):
    """The version of nginx; None where it is not installed."""

    def requires_command(self) -> str:
        """The binary."""
        return "nginx"

    def command(self) -> str:
        """nginx tells on the standard error."""
        return "nginx -v 2>&1"

    def process(self, output: Sequence[str]) -> Version | None:
        """Read it."""
        return parse_version("\n".join(output))


class Ipv6(FactBase[bool]):
    """Whether the kernel has IPv6, so that a socket of that family can be opened."""

    def command(self) -> str:
        """``yes`` or nothing."""
        return "[ ! -e /proc/net/if_inet6 ] || echo yes"

    def process(self, output: Sequence[str]) -> bool:
        """The answer."""
        return list(output) == ["yes"]

    @staticmethod
    def default() -> bool:
        """Nothing was said."""
        return False


@dataclass(frozen=True, slots=True)
class StoredPair:
    """A key and a certificate on a host, as far as they are there and well-formed; the key itself stays there."""

    public_key: HostKey | None = None
    certificate: x509.Certificate | None = None


class PairIn(FactBase[StoredPair]):
    """What is in a folder's ``privkey.pem`` and ``fullchain.pem``."""

    def requires_command(self, folder: str) -> str:  # noqa: ARG002
        """What reads both."""
        return "openssl"

    def command(self, folder: str) -> StringCommand:
        """The public half of the key, then the first certificate; nothing for what cannot be read."""
        key, certificate = QuoteString(f"{folder}/privkey.pem"), QuoteString(f"{folder}/fullchain.pem")
        return StringCommand(
            "openssl pkey -pubout -in", key, "2>/dev/null; openssl x509 -in", certificate, "2>/dev/null; true"
        )

    def process(self, output: Sequence[str]) -> StoredPair:
        """Read both."""
        blocks = {found[1]: found[0].encode() for found in _PEM.finditer("\n".join([*output, ""]))}
        key = serialization.load_pem_public_key(blocks["PUBLIC KEY"]) if "PUBLIC KEY" in blocks else None
        return StoredPair(
            key if isinstance(key, (ec.EllipticCurvePublicKey, rsa.RSAPublicKey)) else None,
            x509.load_pem_x509_certificate(blocks["CERTIFICATE"]) if "CERTIFICATE" in blocks else None,
        )

    @staticmethod
    def default() -> StoredPair:
        """Neither."""
        return StoredPair()


@dataclass(frozen=True, slots=True)
class Running:
    """What nginx runs, or would run: the configuration's id, and the SHA-256 of the certificate with its chain."""

    configuration: str | None = None
    chain: str | None = None


class OnDisk(FactBase[Running]):
    """What nginx would run if it read its files now."""

    def command(self) -> StringCommand:
        """The id, then the chain's digest; a line is empty where there is none."""
        return StringCommand(
            f'echo "$(basename "$(readlink {NGINX}/metalscribe)")";',
            f"cat {TLS_DIR}/current/fullchain.pem 2>/dev/null | {_DIGEST}",
        )

    def process(self, output: Sequence[str]) -> Running:
        """Read both."""
        return _running(output)

    @staticmethod
    def default() -> Running:
        """Nothing was said."""
        return Running()


class RunningIn(FactBase[Running]):
    """What nginx on this host answers with; ``expected`` is waited for, for some seconds: a reload takes effect at leisure."""

    def requires_command(self, server: str, port: int, expected: Running | None = None) -> str:  # noqa: ARG002
        """What is asked with."""
        return "openssl"

    def command(self, server: str, port: int, expected: Running | None = None) -> StringCommand:
        """The id, then the digest of the chain that is shown; a line is empty where there was no answer."""
        sni = (
            StringCommand("-noservername") if is_address(server) else StringCommand("-servername", QuoteString(server))
        )
        ask = StringCommand(
            *("ask() {", curl(server, port, "/edge-configuration"), "--insecure 2>/dev/null || echo;"),
            *(
                f"openssl s_client -showcerts -connect {_LOOPBACK}:{port}",
                sni,
                f"</dev/null 2>/dev/null | {_DIGEST}; }};",
            ),
        )
        if expected is None:
            return StringCommand(ask, "ask")
        wanted = QuoteString(f"{expected.configuration}\n{expected.chain}")
        return StringCommand(
            *(ask, "left=50; while answer=$(ask);", '[ "$answer" !=', wanted, "] && [ $left -gt 0 ];"),
            *("do left=$((left - 1)); sleep 0.2; done;", "printf '%s\\n' \"$answer\""),
        )

    def process(self, output: Sequence[str]) -> Running:
        """Read both."""
        return _running(output)

    @staticmethod
    def default() -> Running:
        """Nothing runs."""
        return Running()


class Healthz(FactBase[str]):
    """What ``/healthz`` answers through nginx: the HTTP status, or why there is none."""

    def command(self, server: str, port: int, authority: str | None) -> StringCommand:
        """``authority`` is the file of the CA to believe; without it the certificate is proven otherwise."""
        believed = StringCommand("--cacert", QuoteString(authority)) if authority else StringCommand("--insecure")
        return StringCommand(
            curl(server, port, "/healthz"),
            believed,
            "--show-error --output /dev/null --write-out '%{http_code}' 2>&1; true",
        )


class Leftovers(FactBase[list[str]]):
    """Configurations and certificates that nothing points to any more, and what is of no use without ACME.

    That is what certbot would go on renewing, and the credentials for somebody's DNS.
    """

    def command(self, acme: bool, dns_credentials: bool) -> StringCommand:
        """Their paths, one per line."""
        left_by_acme = [] if acme else [HOOK, RENEWAL, LIVE, ARCHIVE]
        left_by_acme += [] if dns_credentials else [str(DNS_CREDENTIALS)]
        return StringCommand(
            "unused() { for each in $1; do",
            '[ ! -d "$each" ] || [ "$(basename "$each")" = "$(basename "$(readlink "$2")")" ] || echo "$each"; done; };',
            f"unused '{NGINX}/metalscribe.d/*' {NGINX}/metalscribe;",
            f"unused '{TLS_DIR}/files-* {TLS_DIR}/bootstrap' {TLS_DIR}/current;",
            *(f"[ ! -e {path} ] || echo {path};" for path in left_by_acme),
        )

    default = list

    def process(self, output: Sequence[str]) -> list[str]:
        """As they are."""
        return list(output)


class DefaultSite(FactBase[bool]):
    """Whether the site that Debian's package brings is enabled."""

    def command(self) -> str:
        """``yes`` or nothing; a link that leads nowhere counts."""
        return f"[ ! -L {NGINX}/sites-enabled/default ] && [ ! -e {NGINX}/sites-enabled/default ] || echo yes"

    def process(self, output: Sequence[str]) -> bool:
        """The answer."""
        return list(output) == ["yes"]

    @staticmethod
    def default() -> bool:
        """Nothing was said."""
        return False


def _running(output: Sequence[str]) -> Running:
    configuration = next((line for line in output if re.fullmatch(r"[0-9a-f]{16}", line)), None)
    chain = next((line for line in output if re.fullmatch(r"[0-9a-f]{64}", line)), None)
    return Running(configuration, chain if chain != _NO_CERTIFICATE else None)


def curl(server: str, port: int, path: str) -> StringCommand:
    """Ask nginx on loopback as a client of ``server`` would."""
    host = f"[{server}]" if ":" in server else server
    return StringCommand(
        *("curl --silent --max-time 10 --noproxy '*' --connect-to", QuoteString(f"::{_LOOPBACK}:{port}")),
        QuoteString(f"https://{host}:{port}{path}"),
    )
