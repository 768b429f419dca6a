"""nginx's configuration as text: pure rendering of the templates in ``nginx/``, for the nginx that a host has."""

from __future__ import annotations

import hashlib
import ipaddress
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import jinja2

from metalscribe.settings import Settings
from metalscribe_provision.common import CHECKOUT, PORT, TLS_DIR
from metalscribe_provision.hostdata import AcmeChallenge, HostData, Tls
from metalscribe_provision.monitoring.exporters import wanted

Version = tuple[int, int, int]

ACME_WEBROOT: Final = "/var/www/metalscribe-acme"

PACKAGED: Final[dict[tuple[str, str], Version]] = {
    ("debian", "12"): (1, 22, 1),
    ("debian", "13"): (1, 26, 3),
    ("ubuntu", "22.04"): (1, 18, 0),
    ("ubuntu", "24.04"): (1, 24, 0),
}
"""What each release packages: what a plan supposes where nginx is not installed yet."""

HTTPS: Final = 443

_HTTP2_DIRECTIVE: Final = (1, 25, 1)  # before, it is a parameter of listen
_REJECT_HANDSHAKE: Final = (1, 19, 4)

_FORM_MIB: Final = 16
"""Room above the service's limit: it takes 64 fields of 64 KiB beside the file, and says itself when a file is too large."""


_TEMPLATES: Final = jinja2.Environment(
    loader=jinja2.FileSystemLoader(CHECKOUT / "nginx"),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    autoescape=False,  # noqa: S701  (nginx's language, not HTML)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What the configuration depends on.

    Attributes:
        names: DNS names and addresses that are served; the first one is the host's own.
        nginx: its version.
        ipv6: whether the host's kernel has IPv6; nginx does not start where it cannot open a socket.
        max_upload_mb: the service's own limit, in MiB.
        exporters: name under ``/metrics/`` → port on loopback.
        acme_webroot: where the ACME server's questions are answered from; None keeps port 80 closed.
        requests_per_second: of one address, on average; ``request_burst`` above that at once.
        connections: of one address at a time, requests on the same HTTP/2 connection counted singly.
    """

    names: tuple[str, ...]
    nginx: Version
    ipv6: bool
    max_upload_mb: float
    metrics_allow: tuple[str, ...]
    admin_allow: tuple[str, ...]
    exporters: tuple[tuple[str, int], ...] = ()
    acme_webroot: str | None = None
    hsts_seconds: int = 63072000
    https_port: int = HTTPS
    http_port: int = 80
    service_port: int = PORT
    tls_dir: str = str(TLS_DIR)
    log_socket: str = "/dev/log"
    requests_per_second: int = 20
    request_burst: int = 100
    connections: int = 128


def site_for(data: HostData, names: tuple[str, ...], *, nginx: Version, ipv6: bool) -> Site:
    """The site that a host's operator wants."""
    answers_acme = data.tls is Tls.ACME and data.acme_challenge is AcmeChallenge.HTTP_01
    return Site(
        names=names,
        nginx=nginx,
        ipv6=ipv6,
        max_upload_mb=float(data.settings.get("max_upload_mb", Settings.model_fields["max_upload_mb"].default)),
        metrics_allow=data.metrics_allow,
        admin_allow=data.admin_allow,
        exporters=tuple((exporter.path.rpartition("/")[2], exporter.port) for exporter in wanted(data)),
        acme_webroot=ACME_WEBROOT if answers_acme else None,
        hsts_seconds=data.hsts_seconds,
        https_port=data.https_port,
    )


def render_site(site: Site) -> dict[str, str]:
    """File name → text, for the folder ``metalscribe`` beside ``nginx.conf``; ``site.conf`` includes the others.

    The configuration's id, a digest of all of it, stands in ``site.conf`` itself, and nginx tells it: see
    :func:`configuration_id`.
    """
    draft = _render(site, "")
    digest = hashlib.sha256("\0".join(f"{name}\0{text}" for name, text in sorted(draft.items())).encode())
    return _render(site, digest.hexdigest()[:16])


def configuration_id(files: dict[str, str]) -> str:
    """The id of a rendered configuration.

    Raises:
        ValueError: it has none.
    """
    found = re.search(r"configuration ([0-9a-f]{16});", files["site.conf"])
    if found is None:
        raise ValueError("site.conf does not tell its configuration's id")
    return found[1]


def parse_version(text: str) -> Version | None:
    """The version in ``nginx -v``'s answer, such as ``nginx version: nginx/1.18.0 (Ubuntu)``."""
    found = re.search(r"\bnginx/(\d+)\.(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2]), int(found[3])) if found else None


def packaged_version(release: Mapping[str, Any]) -> Version:
    """What a host without nginx will have, by its ``/etc/os-release``."""
    return PACKAGED.get((str(release.get("ID")), str(release.get("VERSION_ID"))), min(PACKAGED.values()))


def is_address(name: str) -> bool:
    """Whether a server name is an IP address."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _render(site: Site, configuration: str) -> dict[str, str]:
    has_address = any(map(is_address, site.names))
    values = {
        "configuration": configuration,
        "names": [_host_header(name) for name in site.names],
        "has_address": has_address,
        "listen_http2": "" if site.nginx >= _HTTP2_DIRECTIVE else " http2",
        "reject_handshake": site.nginx >= _REJECT_HANDSHAKE and not has_address,
        "ipv6": site.ipv6,
        "max_upload_mb": f"{site.max_upload_mb:g}",
        "body_limit_mb": math.ceil(site.max_upload_mb) + _FORM_MIB,
        "metrics_allow": site.metrics_allow,
        "admin_allow": site.admin_allow,
        "exporters": site.exporters,
        "acme_webroot": site.acme_webroot,
        "hsts_seconds": site.hsts_seconds,
        "https_port": site.https_port,
        "url_port": "" if site.https_port == HTTPS else f":{site.https_port}",
        "http_port": site.http_port,
        "service_port": site.service_port,
        "tls_dir": site.tls_dir,
        "log_socket": site.log_socket,
        "requests_per_second": site.requests_per_second,
        "request_burst": site.request_burst,
        "connections": site.connections,
    }
    return {
        template.removesuffix(".j2"): _TEMPLATES.get_template(template).render(values)
        for template in _TEMPLATES.list_templates(filter_func=lambda name: name.endswith(".conf.j2"))
    }


def _host_header(name: str) -> str:
    """A name as it stands in a request's ``Host``, and so in ``server_name``: lower case, IPv6 short and in brackets."""
    if not is_address(name):
        return name.lower()
    address = ipaddress.ip_address(name)
    return f"[{address}]" if address.version == 6 else str(address)
