"""The site as text: by nginx version, by certificate, by wish; and what gixy says of it."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from edge_nginx import SITE, write

from metalscribe_provision.edge.site import (
    PACKAGED,
    Site,
    Version,
    configuration_id,
    packaged_version,
    parse_version,
    render_site,
    site_for,
)
from metalscribe_provision.hostdata import parse_host_data

_VERSIONS = sorted(PACKAGED.values())
_ACME = {"tls": "acme", "acme_email": "ops@example.org", "server_names": "stt.example.org"}


def _servers(text: str) -> list[str]:
    """The server blocks, in order."""
    return re.findall(r"^server \{\n(.+?)^\}", text, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("nginx", _VERSIONS)
def test_http2_is_said_in_the_words_of_each_version(nginx: Version) -> None:
    text = render_site(replace(SITE, nginx=nginx, ipv6=True))["site.conf"]
    listens = re.findall(r"^    listen (.+);", text, re.MULTILINE)
    assert len(listens) == 4
    assert all((" http2" in listen) is (nginx < (1, 25, 1)) for listen in listens)
    assert text.count("http2 on;") == (2 if nginx >= (1, 25, 1) else 0)


@pytest.mark.parametrize("nginx", _VERSIONS)
@pytest.mark.parametrize("names", [("stt.example.org",), ("stt.example.org", "192.0.2.1")])
def test_a_handshake_for_another_name_is_refused_where_it_can_be(nginx: Version, names: tuple[str, ...]) -> None:
    default = _servers(render_site(replace(SITE, nginx=nginx, names=names))["site.conf"])[0]
    assert ("ssl_reject_handshake on;" in default) is (nginx >= (1, 19, 4) and len(names) == 1)
    assert "return 421;" in default


def test_only_the_first_server_of_a_port_has_its_options() -> None:
    default, *others = _servers(render_site(replace(SITE, ipv6=True, acme_webroot="/srv/acme"))["site.conf"])
    assert default.count("default_server") == 2
    assert "so_keepalive" in default
    assert not any("so_keepalive" in other for other in others)


def test_port_80_is_open_for_the_http_challenge_alone() -> None:
    for changes, answers in (
        ({}, False),
        (_ACME, True),
        ({**_ACME, "acme_challenge": "dns-01", "acme_dns_plugin": "rfc2136"}, False),
    ):
        data = parse_host_data("gpu1", {"driver": "none", **changes}, {})
        text = render_site(site_for(data, ("stt.example.org",), nginx=(1, 22, 1), ipv6=True))["site.conf"]
        assert ("listen 80;" in text) is answers
        assert ("/.well-known/acme-challenge/" in text) is answers


def test_addresses_stand_as_a_request_names_them() -> None:
    text = render_site(replace(SITE, names=("STT.Example.org", "192.0.2.1", "2001:DB8:0::1")))["site.conf"]
    assert "server_name stt.example.org 192.0.2.1 [2001:db8::1];" in text


def test_uploads_are_limited_above_the_service() -> None:
    for setting, limit in ((None, 2064), ("0.5", 17), ("10240", 10256)):
        variables = {"driver": "none", **({"metalscribe_max_upload_mb": setting} if setting else {})}
        data = parse_host_data("gpu1", variables, {})
        limits = render_site(site_for(data, ("a",), nginx=(1, 22, 1), ipv6=True))["limits.conf"]
        assert f"client_max_body_size {limit}m;" in limits


def test_exporters_are_reached_only_where_there_are_some() -> None:
    without = parse_host_data("gpu1", {"driver": "none"}, {})
    both = parse_host_data("gpu1", {"driver": "none", "node_exporter": "true", "gpu_exporter": "nvml"}, {})
    assert "/metrics/" not in render_site(site_for(without, ("a",), nginx=(1, 22, 1), ipv6=True))["site.conf"]
    text = render_site(site_for(both, ("a",), nginx=(1, 22, 1), ipv6=True))["site.conf"]
    assert "proxy_pass http://127.0.0.1:9100/metrics;" in text
    assert "proxy_pass http://127.0.0.1:9400/metrics;" in text


def test_the_id_changes_with_whatever_is_configured() -> None:
    variants = [
        SITE,
        replace(SITE, hsts_seconds=0),
        replace(SITE, max_upload_mb=2),
        replace(SITE, nginx=(1, 26, 3)),
        replace(SITE, names=("other.test",)),
        replace(SITE, request_burst=7),
    ]
    ids = [configuration_id(render_site(site)) for site in variants]
    assert len(set(ids)) == len(variants)
    assert configuration_id(render_site(SITE)) == ids[0]
    with pytest.raises(ValueError, match="does not tell"):
        configuration_id({"site.conf": "server {}"})


def test_every_line_is_meant(tmp_path: Path) -> None:
    for nginx, names, webroot in itertools.product(_VERSIONS, (("a.test",), ("192.0.2.1",)), (None, str(tmp_path))):
        for name, text in render_site(replace(SITE, nginx=nginx, names=names, acme_webroot=webroot)).items():
            assert "\n\n\n" not in text, name
            assert not re.search(r"[ \t]+$", text, re.MULTILINE), name
            assert text.endswith("\n"), name


@pytest.mark.parametrize(
    ("told", "version"),
    [
        ("nginx version: nginx/1.22.1", (1, 22, 1)),
        ("nginx version: nginx/1.18.0 (Ubuntu)", (1, 18, 0)),
        ("nginx version: openresty/1.25.3.1", None),
        ("", None),
    ],
)
def test_versions_are_read(told: str, version: Version | None) -> None:
    assert parse_version(told) == version


def test_a_host_without_nginx_will_have_what_its_release_packages() -> None:
    assert packaged_version({"ID": "debian", "VERSION_ID": "13"}) == (1, 26, 3)
    assert packaged_version({"ID": "ubuntu", "VERSION_ID": "22.04"}) == (1, 18, 0)
    assert packaged_version({"ID": "plan9"}) == (1, 18, 0)


@pytest.mark.parametrize(
    "site",
    [
        replace(SITE, ipv6=True, acme_webroot="/srv/acme", exporters=(("node", 9100),)),
        replace(SITE, nginx=(1, 26, 3), names=("a.test", "192.0.2.1")),
    ],
    ids=["1.22", "1.26"],
)
def test_gixy_finds_nothing(site: Site, tmp_path: Path) -> None:
    write(site, tmp_path)
    assert _gixy(tmp_path) == (0, "")
    proxy = tmp_path / "metalscribe" / "proxy.conf"
    proxy.write_text(proxy.read_text(encoding="utf-8").replace(" $host", " $http_host"), encoding="utf-8")
    status, found = _gixy(tmp_path)
    assert status == 1, "gixy has not read what the site includes"
    assert "host_spoofing" in found


def _gixy(folder: Path) -> tuple[int, str]:
    gixy = Path(sys.executable).parent / "gixy"
    command = [str(gixy), "--format", "text", str(folder / "nginx.conf")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert "Total issues" in done.stdout, done.stdout + done.stderr
    return done.returncode, "" if "No issues found" in done.stdout else done.stdout
