"""What the edge changes on a host; each operation is decided by what the host has, so that one that was cut off goes on."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path, PurePosixPath
from typing import Final

from cryptography import x509
from pyinfra.api.command import FileUploadCommand, PyinfraCommand, QuoteString, StringCommand
from pyinfra.api.exceptions import DeployError
from pyinfra.api.operation import operation
from pyinfra.context import host, state
from pyinfra.facts.files import FileContents, Link
from pyinfra.operations import files

from metalscribe_provision.common import CHECKOUT, TLS_DIR
from metalscribe_provision.edge import acme, authority
from metalscribe_provision.edge.facts import NGINX, DefaultSite, Leftovers, OnDisk, PairIn, RunningIn, StoredPair
from metalscribe_provision.edge.site import Site, configuration_id, render_site
from metalscribe_provision.hostdata import AcmeChallenge, HostData, Tls

CURRENT: Final = TLS_DIR / "current"
INTERNAL: Final = TLS_DIR / "internal"
BOOTSTRAP: Final = TLS_DIR / "bootstrap"
AUTHORITY: Final = TLS_DIR / "ca.crt"

_RELOAD: Final = StringCommand("systemctl reload-or-restart nginx.service")

Commands = Generator[PyinfraCommand]


@operation()
def signed(names: Sequence[str], ca_dir: Path) -> Commands:
    """A certificate by the internal CA, over a key that the host makes and that never leaves it."""
    now = datetime.now(UTC)
    ca = authority.found(ca_dir, now)
    if ca is not None:
        yield from _put(AUTHORITY, authority.pem(ca))
    pair = host.get_fact(PairIn, folder=str(INTERNAL))
    reason = _why_sign(pair, names, ca, now)
    if reason is None:
        host.noop("the certificate is as it should be")
        return
    if pair.public_key is None:
        key = f"{INTERNAL}/privkey.pem"
        yield StringCommand(
            f"umask 077 && mkdir -p {INTERNAL} &&",
            f"openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out {key}.new && mv -f {key}.new {key}",
        )
        pair = host.get_fact(PairIn, folder=str(INTERNAL)) if state.is_executing else pair
    if not state.is_executing:
        # The CA signs, and is made, when there is a key to sign; a plan leaves it alone.
        yield StringCommand(":", QuoteString(f"a certificate for {', '.join(names)}: {reason}"))
        return
    if pair.public_key is None:
        yield _failure(f"{INTERNAL}/privkey.pem cannot be read by openssl pkey; remove it, and a new one is made")
        return
    try:
        opened = authority.opened(ca_dir, now)
    except DeployError as error:
        yield _failure(str(error))
        return
    host.log(f"signing a certificate for {', '.join(names)}: {reason}")
    yield from _put(AUTHORITY, authority.pem(opened.certificate))
    yield from _written(INTERNAL / "fullchain.pem", authority.pem(opened.issue(pair.public_key, names, now)))


@operation()
def self_signed(server: str) -> Commands:
    """A certificate that nobody believes, so that nginx can start and answer the ACME server's questions."""
    if host.get_fact(PairIn, folder=acme.LIVE).certificate or host.get_fact(PairIn, folder=str(BOOTSTRAP)).certificate:
        host.noop("there is a certificate to begin with")
        return
    aside = f"{BOOTSTRAP}.new"
    yield StringCommand(
        f"umask 077 && rm -rf {aside} {BOOTSTRAP} && mkdir -p {aside} &&",
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 90 -subj /CN=bootstrap -addext",
        QuoteString(f"subjectAltName=DNS:{server}"),
        f"-keyout {aside}/privkey.pem -out {aside}/fullchain.pem 2>/dev/null && mv -T {aside} {BOOTSTRAP}",
    )


@operation()
def obtained(data: HostData, names: Sequence[str]) -> Commands:
    """A certificate by the ACME server; certbot's own timer renews it."""
    certificate = host.get_fact(PairIn, folder=acme.LIVE).certificate
    renewal = acme.parse_renewal(host.get_fact(FileContents, path=acme.RENEWAL) or [])
    reason = acme.why_obtain(data, names, certificate, renewal)
    if reason is None:
        host.noop("the certificate is as it should be")
        return
    host.log(f"asking for a certificate for {', '.join(names)}: {reason}")
    yield StringCommand(*(QuoteString(word) for word in acme.arguments(data, names)))


@operation()
def pointed(target: Callable[[], PurePosixPath]) -> Commands:
    """Let nginx's certificate be the one in ``target``, which is asked for when the operation runs; key and chain together."""
    wanted = str(target())
    link = host.get_fact(Link, path=str(CURRENT))
    if link and link["link_target"] == wanted:
        host.noop(f"{CURRENT} points to {wanted}")
        return
    yield StringCommand("ln -sfn", QuoteString(wanted), f"{CURRENT}.new && mv -fT {CURRENT}.new {CURRENT}")


@operation()
def configured(site: Callable[[], Site]) -> Commands:
    """nginx's configuration on the disk, tried before it is live.

    Args:
        site: what it depends on, asked for when the operation runs: on a fresh host nginx's version shows only then.
    """
    rendered = render_site(site())
    configuration = configuration_id(rendered)
    repaired = False
    for name, text in rendered.items():
        for command in _put(PurePosixPath(NGINX, "metalscribe.d", configuration, name), text):
            repaired = True
            yield command
    if not _arranged(configuration):
        script = (CHECKOUT / "nginx" / "activate.sh").read_text(encoding="utf-8")
        yield StringCommand("sh -c", QuoteString(script), "activate.sh", configuration)
    elif repaired and state.is_executing:
        # Somebody had changed it by hand, and nginx may have read that; it would tell the same id.
        yield _RELOAD


@operation()
def reloaded(server: str, port: int) -> Commands:
    """Let nginx read configuration and certificate, unless what it runs is what is on the disk."""
    if host.get_fact(RunningIn, server=server, port=port) == host.get_fact(OnDisk):
        host.noop("nginx runs what is on the disk")
        return
    yield _RELOAD


@operation()
def tidied(data: HostData) -> Commands:
    """Remove configurations, certificates and credentials that nothing uses any more."""
    with_acme = data.tls is Tls.ACME
    by_dns = with_acme and data.acme_challenge is AcmeChallenge.DNS_01 and data.acme_dns_credentials is not None
    leftovers = host.get_fact(Leftovers, acme=with_acme, dns_credentials=by_dns)
    if not leftovers:
        host.noop("there is nothing to remove")
        return
    yield StringCommand("rm -rf --", *(QuoteString(path) for path in leftovers))


def _why_sign(pair: StoredPair, names: Sequence[str], ca: x509.Certificate | None, now: datetime) -> str | None:
    if pair.public_key is None or ca is None:
        return "there is none"
    return authority.why_renew(pair.certificate, public_key=pair.public_key, names=names, authority=ca, now=now)


def _put(path: PurePosixPath, text: str) -> Commands:
    """A file, if it is not there already; pyinfra's own operation, nested."""
    yield from files.put._inner(src=StringIO(text), dest=str(path), mode="644", user="root", group="root")  # noqa: SLF001  (its way to nest)


def _written(path: PurePosixPath, text: str) -> Commands:
    """A file as a whole or not at all."""
    aside = f"{path}.new"
    yield FileUploadCommand(StringIO(text), aside, remote_temp_filename=host.get_temp_filename(aside))
    yield StringCommand(f"chown root:root {aside} && chmod 644 {aside} && mv -f {aside} {path}")


def _failure(text: str) -> StringCommand:
    return StringCommand("printf '%s\\n'", QuoteString(text), ">&2; exit 1")


def _arranged(configuration: str) -> bool:
    """Whether the links are as ``nginx/activate.sh`` makes them."""
    wanted = {
        f"{NGINX}/metalscribe": f"metalscribe.d/{configuration}",
        f"{NGINX}/sites-enabled/metalscribe.conf": "../metalscribe/site.conf",
    }
    links = {path: host.get_fact(Link, path=path) for path in wanted}
    return not host.get_fact(DefaultSite) and all(
        link and link["link_target"] == wanted[path] for path, link in links.items()
    )
