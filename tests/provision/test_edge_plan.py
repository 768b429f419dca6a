"""The edge's deploy as planned for hosts that are fresh, finished, or neither; its facts on real tools."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from edge_nginx import NAME, SITE, Edge, running, write
from fakes import DEBIAN_12, DISTRIBUTIONS, Responses, commands, files, installed, named, plan
from pyinfra.api.exceptions import DeployError
from pyinfra.api.facts import FactBase

from metalscribe_provision.common import CHECKOUT
from metalscribe_provision.edge import acme, authority
from metalscribe_provision.edge.deploy import edge
from metalscribe_provision.edge.facts import Healthz, Ipv6, NginxVersion, PairIn, Running, RunningIn
from metalscribe_provision.edge.names import server_names
from metalscribe_provision.edge.site import configuration_id, render_site, site_for
from metalscribe_provision.hostdata import HostData, parse_host_data

_DATA = {"driver": "none", "server_names": "stt.example.org"}
_ACME = {**_DATA, "tls": "acme", "acme_email": "ops@example.org"}
_DNS = {"acme_challenge": "dns-01", "acme_dns_plugin": "rfc2136"}


def _host(**variables: Any) -> HostData:
    return parse_host_data("gpu1", {"driver": "none", **variables}, {})


# --- a fresh host ---


@pytest.mark.parametrize(
    ("distribution", "http2"),
    [("debian-12", " http2"), ("debian-13", ""), ("ubuntu-22.04", " http2"), ("ubuntu-24.04", " http2")],
)
def test_a_fresh_host_is_planned_for_the_nginx_it_will_have(tmp_path: Path, distribution: str, http2: str) -> None:
    ca = tmp_path / "ca"
    planned = plan(edge, {**_DATA, "ca_dir": str(ca)}, DISTRIBUTIONS[distribution])
    assert not ca.exists(), "planning has made a CA"
    assert "ca-certificates curl nginx openssl" in commands(planned)
    site = next(text for path, text in files(planned).items() if path.endswith("/site.conf"))
    assert f"listen 443 ssl{http2};" in site
    assert "openssl genpkey" in named(planned, "Sign the host's certificate").commands[0]
    assert named(planned, "Let nginx read its configuration and certificate").changes is False, (
        "it runs what is there: nothing"
    )
    assert "certbot" not in commands(planned)


def test_an_acme_host_gets_a_certificate_to_begin_with_then_a_real_one() -> None:
    planned = plan(edge, _ACME, DEBIAN_12)
    assert " certbot" in "".join(named(planned, "Install nginx").commands)
    assert "req -x509" in named(planned, "Make a certificate to begin with").commands[0]
    assert files(planned)[acme.HOOK].startswith("#!/bin/sh\n")
    order = [operation.name for operation in planned]
    assert order.index("Edge | Let nginx read its configuration and certificate") < order.index(
        "Edge | Get a certificate"
    )
    (command,) = named(planned, "Get a certificate").commands
    assert "--webroot --webroot-path /var/www/metalscribe-acme" in command
    assert command.endswith("--domain stt.example.org")
    assert "systemctl start certbot.timer" in commands(planned)


def test_dns_credentials_reach_the_host_unseen(tmp_path: Path) -> None:
    credentials = tmp_path / "rfc2136.ini"
    credentials.write_text("dns_rfc2136_secret = sesame\n", encoding="utf-8")
    planned = plan(edge, {**_ACME, **_DNS, "acme_dns_credentials": str(credentials)}, DEBIAN_12)
    assert " python3-certbot-dns-rfc2136" in "".join(named(planned, "Install nginx").commands)
    (command,) = named(planned, "Get a certificate").commands
    assert "--dns-rfc2136 --dns-rfc2136-credentials /etc/metalscribe/credentials/acme_dns.ini" in command
    assert "sesame" not in commands(planned)
    assert list(named(planned, "Store the DNS provider's credentials").files.values()) == [
        credentials.read_text("utf-8")
    ]
    with pytest.raises(DeployError, match=r"acme_dns_credentials .* cannot be read"):
        plan(edge, {**_ACME, **_DNS, "acme_dns_credentials": str(tmp_path / "none")}, DEBIAN_12)


def test_an_operators_certificate_is_examined_before_anything_is_done(tmp_path: Path) -> None:
    write(replace(SITE, names=("stt.example.org",)), tmp_path)
    current = tmp_path / "tls" / "current"
    given = {"tls_certificate": str(current / "fullchain.pem"), "tls_certificate_key": str(current / "privkey.pem")}
    planned = plan(edge, {**_DATA, "tls": "files", **given}, DEBIAN_12)
    (key,) = named(planned, "Store the certificate's key").files.values()
    assert key == (current / "privkey.pem").read_text("utf-8")
    assert "PRIVATE KEY" not in commands(planned)
    assert re.search(
        r"ln -sfn /etc/metalscribe/tls/files-[0-9a-f]{16} ", named(planned, "Show that certificate").commands[0]
    )
    with pytest.raises(DeployError, match=r"does not cover other\.example\.org"):
        plan(edge, {**_DATA, "tls": "files", **given, "server_names": "other.example.org"}, DEBIAN_12)


# --- a host that is as it should be, and what makes it differ ---


def _stat(path: Path, mode: str, target: str = "") -> dict[Any, Any]:
    """Response for pyinfra's facts File, Directory and Link."""
    told = f"user=root group=root mode={mode} atime=1 mtime=1 ctime=1 size=1 '{path}'{target}"
    return {re.compile(rf"stat -c.* {path} "): told}


def _finished(tmp_path: Path, **changes: str) -> tuple[dict[str, Any], dict[Any, Any]]:
    """Data and responses of a host on which nothing is left to do."""
    data = {**_DATA, "ca_dir": str(tmp_path / "ca")}
    now = datetime.now(UTC)
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    leaf = authority.opened(tmp_path / "ca", now).issue(key, ["stt.example.org"], now)
    public = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()
    pair = (public + authority.pem(leaf)).splitlines()
    rendered = render_site(site_for(_host(**_DATA), ("stt.example.org",), nginx=(1, 22, 1), ipv6=True))
    configuration = configuration_id(rendered)
    chain = hashlib.sha256(authority.pem(leaf).replace("\n", "").encode()).hexdigest()
    responses: dict[Any, Any] = {
        **installed("ca-certificates", "curl", "nginx", "openssl"),
        "nginx -v": "nginx version: nginx/1.22.1",
        "/proc/net/if_inet6": "yes",
        "s_client": [configuration, chain],
        'echo "$(basename': [configuration, chain],
        "openssl pkey": pair,
        "stamps/nginx-unit": "yes",
        "--property SubState": ["Id=nginx.service", "SubState=running"],
        "--property UnitFileState": ["Id=nginx.service", "UnitFileState=enabled"],
    }
    ca = authority.found(tmp_path / "ca", now)
    assert ca is not None
    folder = Path("/etc/nginx/metalscribe.d", configuration)
    contents = {folder / name: text.encode() for name, text in rendered.items()}
    contents[Path("/etc/systemd/system/nginx.service.d/metalscribe.conf")] = (CHECKOUT / "nginx/unit.conf").read_bytes()
    contents[Path("/etc/metalscribe/tls/ca.crt")] = authority.pem(ca).encode()
    for path, content in contents.items():
        responses |= _stat(path, "-rw-r--r--") | _stat(path.parent, "drwxr-xr-x")
        responses[re.compile(rf"sha1sum {path} ")] = f"{hashlib.sha1(content).hexdigest()}  {path}"
    responses |= _stat(Path("/etc/metalscribe/tls"), "drwxr-xr-x")
    links = {
        "/etc/metalscribe/tls/current": "/etc/metalscribe/tls/internal",
        "/etc/nginx/metalscribe": f"metalscribe.d/{configuration}",
        "/etc/nginx/sites-enabled/metalscribe.conf": "../metalscribe/site.conf",
    } | changes
    for link, target in links.items():
        responses |= _stat(Path(link), "lrwxrwxrwx", f" -> '{target}'")
    return data, {**responses, **DEBIAN_12}


def _changing(data: dict[str, Any], responses: Responses) -> list[str]:
    return [operation.name.removeprefix("Edge | ") for operation in plan(edge, data, responses) if operation.changes]


def test_a_finished_host_is_left_alone(tmp_path: Path) -> None:
    assert _changing(*_finished(tmp_path)) == []


_READ = "Let nginx read its configuration and certificate"


def test_what_was_cut_off_goes_on(tmp_path: Path) -> None:
    data, finished = _finished(tmp_path)
    configuration, chain = finished["s_client"]
    assert _changing(data, finished | {"s_client": ["", hashlib.sha256().hexdigest()]}) == [_READ]
    assert _changing(data, finished | {"s_client": ["0" * 16, chain]}) == [_READ]
    assert _changing(data, finished | {"s_client": [configuration, "0" * 64]}) == [_READ]
    # The link was not switched yet: on the disk is still another configuration, which is the one that runs.
    old = {"s_client": ["0" * 16, chain], 'echo "$(basename': ["0" * 16, chain]}
    data, before = _finished(tmp_path, **{"/etc/nginx/metalscribe": f"metalscribe.d/{'0' * 16}"})
    assert _changing(data, before | old) == ["Configure nginx"]
    data, before = _finished(tmp_path, **{"/etc/metalscribe/tls/current": "/etc/metalscribe/tls/files-0"})
    assert _changing(data, before) == ["Show the internal CA's certificate"]


def test_each_wish_changes_what_it_is_about(tmp_path: Path) -> None:
    data, finished = _finished(tmp_path)
    changed = _changing({**data, "server_names": "stt.example.org,b.example.org"}, finished)
    assert changed == ["Sign the host's certificate", "Configure nginx"]
    assert _changing({**data, "hsts_seconds": "0"}, finished) == ["Configure nginx"]
    assert _changing({**data, "ca_dir": str(tmp_path / "other")}, finished) == ["Sign the host's certificate"]
    assert _changing(data, {"sites-enabled/default": "yes", **finished}) == ["Configure nginx"]
    unused = "/etc/nginx/metalscribe.d/0123456789abcdef"
    planned = plan(edge, data, {"unused": unused, **finished})
    assert named(planned, "Remove what is no longer used").commands == (f"rm -rf -- {unused}",)


@pytest.mark.parametrize("variables", [_DATA, _ACME, {**_ACME, **_DNS}])
def test_credentials_for_somebodys_dns_go_when_nothing_uses_them(tmp_path: Path, variables: dict[str, Any]) -> None:
    path = "/etc/metalscribe/credentials/acme_dns.ini"
    responses = {f"[ ! -e {path} ]": path} | DEBIAN_12
    planned = plan(edge, {**variables, "ca_dir": str(tmp_path / "ca")}, responses)
    assert named(planned, "Remove what is no longer used").commands == (f"rm -rf -- {path}",)
    (tmp_path / "dns.ini").write_text("dns_rfc2136_secret = sesame\n", encoding="utf-8")
    given = {**_ACME, **_DNS, "acme_dns_credentials": str(tmp_path / "dns.ini")}
    assert not named(plan(edge, given, responses), "Remove what is no longer used").changes


def test_a_ca_that_cannot_be_used_ends_the_plan(tmp_path: Path) -> None:
    data, finished = _finished(tmp_path)
    (tmp_path / "ca" / authority.KEY).chmod(0o644)
    with pytest.raises(DeployError, match="chmod 600"):
        plan(edge, data, finished)


# --- names ---


@pytest.mark.parametrize(
    ("variables", "address", "names"),
    [
        ({"server_names": "a.example.org, 192.0.2.1,a.example.org"}, "192.0.2.9", ("a.example.org", "192.0.2.1")),
        ({}, "192.0.2.9", ("192.0.2.9", "gpu1")),
        ({}, "gpu1", ("gpu1",)),
        ({}, None, ("gpu1",)),
        ({}, "under_score.example.org", ("gpu1",)),
        (_ACME, "192.0.2.9", ("stt.example.org",)),
        ({**_ACME, "server_names": ""}, "stt.example.net", ("stt.example.net",)),
    ],
)
def test_a_host_has_names(variables: dict[str, Any], address: str | None, names: tuple[str, ...]) -> None:
    assert server_names(_host(**variables), "@ssh/gpu1", address) == names


@pytest.mark.parametrize(
    ("variables", "address", "problem"),
    [
        ({"server_names": "a..example.org"}, None, r"a\.\.example\.org cannot be a host's name"),
        ({"server_names": "192.0.2.300"}, None, r"192\.0\.2\.300 cannot be a host's name"),
        (
            {**_ACME, "server_names": "stt.example.org,192.0.2.1,gpu1"},
            None,
            r"no ACME server certifies 192\.0\.2\.1, gpu1",
        ),
        ({**_ACME, "server_names": ""}, "192.0.2.1", "set server_names"),
    ],
)
def test_what_is_no_name_is_refused(variables: dict[str, Any], address: str | None, problem: str) -> None:
    with pytest.raises(DeployError, match=problem):
        server_names(_host(**variables), "gpu1", address)


# --- ACME ---

_RENEWAL = """
# renew_before_expiry = 30 days
version = 2.1.0
archive_dir = /etc/letsencrypt/archive/metalscribe
[renewalparams]
account = 0123
authenticator = webroot
server = https://acme.example.org/directory
[[webroot_map]]
stt.example.org = /var/www/metalscribe-acme
"""


def test_certbot_is_asked_for_a_reason(tmp_path: Path) -> None:
    now, names = datetime.now(UTC), ["stt.example.org"]
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    certificate = authority.opened(tmp_path, now).issue(key, names, now)
    renewal = acme.parse_renewal(_RENEWAL.splitlines())
    assert renewal["account"] == "0123"
    server = {"acme_server": "https://acme.example.org/directory"}
    assert acme.why_obtain(_host(**_ACME), names, certificate, renewal) is None
    assert acme.why_obtain(_host(**_ACME, **server), names, certificate, renewal) is None
    assert acme.why_obtain(_host(**_ACME), names, None, renewal) == "there is none"
    assert acme.why_obtain(_host(**_ACME), names, certificate, {}) == "there is none"
    assert acme.why_obtain(_host(**_ACME), [*names, "b.example.org"], certificate, renewal) == "it is for other names"
    other = _host(**_ACME, acme_server="https://acme.example.net")
    assert acme.why_obtain(other, names, certificate, renewal) == "it is from another ACME server"
    dns = _host(**_ACME, **_DNS)
    assert acme.why_obtain(dns, names, certificate, renewal) == "it would be renewed by another challenge"


# --- facts, on the tools that they ask ---


def _told(fact: FactBase[Any], **arguments: Any) -> Any:
    """What a fact reads here, as pyinfra would have it."""
    done = subprocess.run(
        ["sh", "-c", _raw(fact.command(**arguments))], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    output = done.stdout.splitlines()
    return fact.process(output) if output else fact.default()


def _raw(command: Any) -> str:
    return command if isinstance(command, str) else command.get_raw_value()


def test_a_pair_is_read_as_far_as_it_is_there(tmp_path: Path) -> None:
    write(SITE, tmp_path)
    folder = tmp_path / "tls" / "current"
    pair = _told(PairIn(), folder=str(folder))
    assert pair.certificate.public_key() == pair.public_key
    (folder / "privkey.pem").write_text("half", encoding="utf-8")
    assert _told(PairIn(), folder=str(folder)).public_key is None
    assert _told(PairIn(), folder=str(folder)).certificate == pair.certificate
    assert _told(PairIn(), folder=str(tmp_path / "none")) == PairIn.default()


def _chain(live: Edge) -> str:
    """The digest of nginx's certificate with its chain."""
    text = Path(live.site.tls_dir, "current", "fullchain.pem").read_text(encoding="utf-8")
    return hashlib.sha256(text.replace("\n", "").encode()).hexdigest()


def test_nginx_is_asked_what_it_runs() -> None:
    with running() as live:
        asked = {"server": NAME, "port": live.site.https_port}
        expected = Running(configuration_id(render_site(live.site)), _chain(live))
        assert _told(RunningIn(), **asked) == expected
        assert _told(RunningIn(), **asked, expected=expected) == expected
        certificate = str(live.folder / "ca" / authority.CERTIFICATE)
        assert _told(Healthz(), **asked, authority=certificate) == "200"
        assert _told(Healthz(), **asked, authority=None) == "200"
        authority.opened(live.folder / "other", datetime.now(UTC))
        stranger = str(live.folder / "other" / authority.CERTIFICATE)
        assert "certificate" in _told(Healthz(), **asked, authority=stranger)
        assert _told(NginxVersion()) == live.site.nginx
    assert _told(RunningIn(), **asked) == Running()
    assert isinstance(_told(Ipv6()), bool)


def test_an_address_is_asked_without_a_name() -> None:
    with running(names=("127.0.0.1",)) as live:
        told = _told(RunningIn(), server="127.0.0.1", port=live.site.https_port)
        assert told.configuration == configuration_id(render_site(live.site))
        assert told.chain == _chain(live)


# --- nginx/activate.sh ---


@pytest.fixture
def etc_nginx(tmp_path: Path) -> Path:
    """What the package brings, with a first configuration of ours ready to be activated."""
    if shutil.which("nginx") is None:
        pytest.skip("nginx is not installed (apt-get install nginx)")
    if subprocess.run(["unshare", "-rm", "true"], check=False, stderr=subprocess.DEVNULL).returncode != 0:
        pytest.skip("this user may not make a mount namespace")
    folder = tmp_path / "nginx"
    (folder / "sites-enabled").mkdir(parents=True)
    (folder / "sites-enabled" / "default").write_text("server { listen 80 default_server; }", encoding="utf-8")
    (folder / "nginx.conf").write_text(
        "user root;\npid /run/x.pid;\nerror_log stderr;\nevents {}\nhttp { access_log off; include /etc/nginx/sites-enabled/*; }\n",
        encoding="utf-8",
    )
    (folder / "metalscribe.d" / "good").mkdir(parents=True)
    (folder / "metalscribe.d" / "good" / "site.conf").write_text("server { listen 8443; }\n", encoding="utf-8")
    return folder


def _activate(folder: Path, configuration: str) -> subprocess.CompletedProcess[str]:
    """Run the script as its own root, with this folder as /etc/nginx and a /run and a /var/lib/nginx of its own."""
    script = 'mount -t tmpfs tmpfs /run; mount -t tmpfs tmpfs /var/lib/nginx; mount --bind "$1" /etc/nginx; exec sh "$2" "$3"'
    command = [
        "unshare",
        "-rm",
        "sh",
        "-euc",
        script,
        "sh",
        str(folder),
        str(CHECKOUT / "nginx" / "activate.sh"),
        configuration,
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def _links(folder: Path) -> dict[str, str]:
    paths = (path for path in folder.rglob("*") if path.is_symlink())
    return {str(path.relative_to(folder)): str(path.readlink()) for path in paths}


def test_a_configuration_goes_live_at_one_stroke(etc_nginx: Path) -> None:
    for _ in range(2):  # and again, as after an interruption
        done = _activate(etc_nginx, "good")
        assert done.returncode == 0, done.stderr
        assert _links(etc_nginx) == {
            "metalscribe": "metalscribe.d/good",
            "sites-enabled/metalscribe.conf": "../metalscribe/site.conf",
        }
    assert not (etc_nginx / "sites-enabled" / "default").exists()


def test_a_configuration_that_nginx_refuses_never_goes_live(etc_nginx: Path) -> None:
    bad = etc_nginx / "metalscribe.d" / "bad"
    bad.mkdir()
    (bad / "site.conf").write_text("server { listen 8443; nonsense; }\n", encoding="utf-8")
    done = _activate(etc_nginx, "bad")
    assert done.returncode != 0
    assert 'unknown directive "nonsense"' in done.stderr
    assert _links(etc_nginx) == {}
    assert (etc_nginx / "sites-enabled" / "default").exists()
    assert _activate(etc_nginx, "good").returncode == 0
    assert _activate(etc_nginx, "bad").returncode != 0
    assert _links(etc_nginx)["metalscribe"] == "metalscribe.d/good"
