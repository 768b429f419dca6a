"""The nginx of Debian 13, unpacked beside this machine's own system, takes what is rendered for it, and this Debian's would be warned of it.

The hosts of the lab are Debian 12; what other nginx versions want differently is small, and only they can say whether it is right.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from lab import sources
from lab.image import SUITE
from lab.lab import Lab
from metalscribe_provision.edge import authority
from metalscribe_provision.edge.site import Site, parse_version, render_site

NEWER: Final = "trixie"

SITE: Final = Site(
    names=("edge.test", "192.0.2.1"),
    nginx=(1, 26, 3),
    ipv6=True,
    max_upload_mb=2048,
    metrics_allow=("127.0.0.1", "2001:db8::/32"),
    admin_allow=("10.0.0.0/8",),
    exporters=(("node", 9100), ("gpu", 9400)),
    acme_webroot="/srv/acme",
    tls_dir="/srv/tls",
)


@pytest.fixture(scope="module")
def root(lab: Lab) -> Path:
    """A folder with Debian 13's nginx and what it needs to run, unpacked and not set up."""
    folder = lab.folder / NEWER
    mirrors = []
    for number, text in enumerate(sources.sources_for(SUITE)):
        mirror = lab.folder / f"{NEWER}-{number}.sources"
        mirror.write_text(text.replace(SUITE, NEWER), encoding="utf-8")
        mirrors.append(str(mirror))
    dump = subprocess.run(["apt-config", "dump", "Acquire"], check=True, capture_output=True, text=True).stdout
    options = [f"--aptopt={line}" for line in sources.carried_options(dump)]
    command = ["mmdebstrap", "--variant=extract", "--include=nginx,libc-bin", *options, NEWER, str(folder), *mirrors]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    for name in ("bin", "lib", "lib64", "sbin"):  # what the package of merged folders would have done
        if not (folder / name).exists():
            (folder / name).symlink_to(f"usr/{name}")
    (folder / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\nwww-data:x:33:33::/:/bin/sh\n", encoding="ascii")
    (folder / "etc/group").write_text("root:x:0:\nwww-data:x:33:\n", encoding="ascii")
    for name in ("dev", "run", "srv/acme", "srv/tls/current", "var/log/nginx", "var/lib/nginx"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    now = datetime.now(UTC)
    key = ec.generate_private_key(ec.SECP256R1())
    leaf = authority.opened(lab.folder / f"{NEWER}-ca", now).issue(key.public_key(), SITE.names, now)
    current = folder / "srv/tls/current"
    (current / "fullchain.pem").write_text(authority.pem(leaf), encoding="ascii")
    encoding = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (current / "privkey.pem").write_bytes(key.private_bytes(*encoding))
    return folder


def judged(root: Path, site: Site) -> subprocess.CompletedProcess[str]:
    """Let it judge the site, within the configuration that its package brings."""
    shutil.rmtree(root / "etc/nginx/metalscribe", ignore_errors=True)
    (root / "etc/nginx/metalscribe").mkdir()
    for name, text in render_site(site).items():
        (root / "etc/nginx/metalscribe" / name).write_text(text, encoding="utf-8")
    enabled = root / "etc/nginx/sites-enabled"
    shutil.rmtree(enabled, ignore_errors=True)
    enabled.mkdir()
    (enabled / "metalscribe.conf").symlink_to("../metalscribe/site.conf")
    return subprocess.run(
        ["chroot", str(root), "/usr/sbin/nginx", "-t", "-q"], check=False, capture_output=True, text=True, timeout=60
    )


def test_it_is_the_version_that_the_deploy_expects(root: Path) -> None:
    told = subprocess.run(["chroot", str(root), "/usr/sbin/nginx", "-v"], check=True, capture_output=True, text=True)
    version = parse_version(told.stderr)
    assert version is not None
    assert version[:2] == SITE.nginx[:2]


@pytest.mark.parametrize(
    "site",
    [SITE, replace(SITE, ipv6=False, acme_webroot=None, exporters=(), hsts_seconds=0), replace(SITE, https_port=8443)],
    ids=["everything", "little", "another port"],
)
def test_it_takes_what_is_rendered_for_it_without_a_warning(root: Path, site: Site) -> None:
    done = judged(root, site)
    assert (done.returncode, done.stderr) == (0, "")


def test_it_would_warn_of_what_is_rendered_for_an_older_one(root: Path) -> None:
    done = judged(root, replace(SITE, nginx=(1, 22, 1)))
    assert done.returncode == 0
    assert 'the "listen ... http2" directive is deprecated' in done.stderr
