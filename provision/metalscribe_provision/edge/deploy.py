"""nginx with TLS in front of the service."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from io import StringIO
from pathlib import Path, PurePosixPath

from pyinfra import logger
from pyinfra.api.deploy import deploy
from pyinfra.api.exceptions import DeployError
from pyinfra.context import host
from pyinfra.facts.server import LinuxDistribution
from pyinfra.operations import files, systemd

from metalscribe_provision.common import CHECKOUT, TLS_DIR, applied, packages, proven, secret_file
from metalscribe_provision.edge import acme, authority
from metalscribe_provision.edge.certificates import Pair, read_pair
from metalscribe_provision.edge.facts import Healthz, Ipv6, NginxVersion, OnDisk, PairIn, RunningIn
from metalscribe_provision.edge.names import server_names
from metalscribe_provision.edge.operations import (
    AUTHORITY,
    BOOTSTRAP,
    INTERNAL,
    configured,
    obtained,
    pointed,
    reloaded,
    self_signed,
    signed,
    tidied,
)
from metalscribe_provision.edge.site import ACME_WEBROOT, Site, packaged_version, site_for
from metalscribe_provision.hostdata import HostData, Tls

_DROP_IN = PurePosixPath("/etc/systemd/system/nginx.service.d/metalscribe.conf")


@deploy("Edge")
def edge(data: HostData) -> None:
    """From packages to an HTTPS answer of the service; what runs is compared with what is wanted at the end."""
    names = server_names(data, host.name, host.data.get("ansible_host") or host.data.get("ssh_hostname"))
    pair = _operators_pair(data, names)
    _warn_of_authority(data)

    extra = acme.packages_for(data) if data.tls is Tls.ACME else []
    packages(name="Install nginx", names=["ca-certificates", "curl", "nginx", "openssl", *extra])
    files.directory(name=f"Make {TLS_DIR}", path=str(TLS_DIR), mode="755", user="root", group="root")
    if data.tls is Tls.INTERNAL_CA:
        signed(name="Sign the host's certificate", names=names, ca_dir=_here(data.ca_dir))
        pointed(name="Show the internal CA's certificate", target=lambda: INTERNAL)
    elif pair is not None:
        _install(pair)
    else:
        _prepare_acme(data, names)
    _serve(data, names)
    if data.tls is Tls.ACME:
        obtained(name="Get a certificate", data=data, names=names)
        pointed(name="Show the ACME server's certificate", target=_acme_pair)
        reloaded(name="Let nginx read it", server=names[0], port=data.https_port)
        systemd.service(name="Renew it in time", service="certbot.timer", running=True, enabled=True)
    tidied(name="Remove what is no longer used", data=data)
    proven(name="nginx serves what was written", problem=partial(_problem, data, names[0]))


def _operators_pair(data: HostData, names: tuple[str, ...]) -> Pair | None:
    if data.tls is not Tls.FILES or data.tls_certificate is None or data.tls_certificate_key is None:
        return None
    pair = read_pair(_here(data.tls_certificate), _here(data.tls_certificate_key), names, datetime.now(UTC))
    for warning in pair.warnings:
        logger.warning("%s: %s", host.name, warning)
    return pair


def _warn_of_authority(data: HostData) -> None:
    if data.tls is not Tls.INTERNAL_CA:
        return
    now = datetime.now(UTC)
    ca = authority.found(_here(data.ca_dir), now)
    if ca is not None and ca.not_valid_after_utc - now < authority.LEAF_LIFE:
        logger.warning(
            "the internal CA in %s ends on %s; make its successor in another ca_dir, and let the clients believe both until then",
            _here(data.ca_dir),
            f"{ca.not_valid_after_utc:%Y-%m-%d}",
        )


def _install(pair: Pair) -> None:
    # Named after what is in it, so that key and chain change together, by one link.
    folder = TLS_DIR / f"files-{pair.digest[:16]}"
    secret_file(
        name="Store the certificate's key", path=folder / "privkey.pem", content=pair.key.get_secret_value().encode()
    )
    files.put(
        name="Store the certificate",
        src=StringIO(pair.certificate),
        dest=str(folder / "fullchain.pem"),
        mode="644",
        user="root",
        group="root",
    )
    pointed(name="Show that certificate", target=lambda: folder)


def _prepare_acme(data: HostData, names: tuple[str, ...]) -> None:
    if data.acme_dns_credentials is not None:
        path = _here(data.acme_dns_credentials)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DeployError(
                f"acme_dns_credentials {path} cannot be read: {(error.strerror or str(error)).lower()}"
            ) from None
        secret_file(name="Store the DNS provider's credentials", path=acme.DNS_CREDENTIALS, content=content)
    files.directory(name="Make the folder of the challenges", path=ACME_WEBROOT, mode="755", user="root", group="root")
    files.put(
        name="Reload nginx after each renewal",
        src=str(CHECKOUT / "nginx" / "acme-hook.sh"),
        dest=acme.HOOK,
        mode="755",
        user="root",
        group="root",
    )
    self_signed(name="Make a certificate to begin with", server=names[0])
    pointed(name="Show a certificate", target=_acme_pair)


def _serve(data: HostData, names: tuple[str, ...]) -> None:
    files.put(
        name="Let systemd start nginx again when it fails",
        src=str(CHECKOUT / "nginx" / "unit.conf"),
        dest=str(_DROP_IN),
        mode="644",
        user="root",
        group="root",
    )
    applied(name="systemd reads it", stamp="nginx-unit", paths=[_DROP_IN], commands=["systemctl daemon-reload"])
    configured(name="Configure nginx", site=partial(_site, data, names))
    systemd.service(name="Start nginx with the machine", service="nginx.service", running=True, enabled=True)
    reloaded(name="Let nginx read its configuration and certificate", server=names[0], port=data.https_port)


def _site(data: HostData, names: tuple[str, ...]) -> Site:
    version = host.get_fact(NginxVersion) or packaged_version(host.get_fact(LinuxDistribution)["release_meta"])
    return site_for(data, names, nginx=version, ipv6=host.get_fact(Ipv6))


def _acme_pair() -> PurePosixPath:
    """The lineage's folder as soon as there is a certificate in it."""
    return PurePosixPath(acme.LIVE) if host.get_fact(PairIn, folder=acme.LIVE).certificate else BOOTSTRAP


def _problem(data: HostData, name: str) -> str | None:
    expected = host.get_fact(OnDisk)
    running = host.get_fact(RunningIn, server=name, port=data.https_port, expected=expected)
    if running.configuration != expected.configuration:
        return (
            f"nginx runs configuration {running.configuration} on port {data.https_port}, not {expected.configuration}; "
            "journalctl -u nginx tells why"
        )
    if running.chain != expected.chain:
        return f"nginx shows another certificate than {TLS_DIR}/current/fullchain.pem; journalctl -u nginx tells why"
    believed = str(AUTHORITY) if data.tls is Tls.INTERNAL_CA else None
    answer = host.get_fact(Healthz, server=name, port=data.https_port, authority=believed)
    if answer != "200":
        return f"https://{name}:{data.https_port}/healthz on the host answers {answer or 'nothing'}; see systemctl status metalscribe"
    return None


def _here(path: Path) -> Path:
    """A path of the operator's: relative to the checkout, wherever the deploy is run from."""
    return CHECKOUT / path.expanduser()
