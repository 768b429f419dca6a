"""Secrets are where they belong and nowhere else: not in what is printed or logged, nor in a process list, nor in a file that others can read.

While a host is deployed to, somebody without rights watches it, and another one the machine that deploys; afterwards both machines are searched
for files that have a secret in them, and there must be those that are meant to and no others. The last test lets everything leak on purpose: the
same search finds it.
"""

from __future__ import annotations

import base64
import json
import os
import re
import secrets
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Final
from urllib.parse import quote

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from lab.checkout import PYTHON, Checkout
from lab.container import Container
from lab.controller import BIN, Controller
from lab.deployed import Deployed
from lab.exposure import Places, Secret, Seen, named, stored_here, stored_on, watched_controller, watched_host
from lab.lab import Lab

KEY: Final = "/etc/metalscribe/credentials/metalscribe_api_key"
HANDED_OVER: Final = "/run/credentials/metalscribe.service/metalscribe_api_key"
"""systemd's copy for the service."""

VERBOSE: Final = ("-vvv", "--diff")

LEAKY: Final = """\
import subprocess
import sys
from io import StringIO
from pathlib import Path
from pyinfra import host
from pyinfra.operations import files, server

key = host.data.metalscribe_api_key
(Path.home() / "leaked").write_text(key)
subprocess.run([sys.executable, "-c", "", key], check=True)
files.put(name="Put", src=StringIO(key), dest="/root/leaked", mode="600")
server.shell(name="Say", commands=["echo " + key, "logger " + key, "true " + key + " | base64"])
"""


@dataclass(frozen=True, slots=True)
class Account:
    """What came of a deploy or a playbook, as far as it may have given something away.

    Attributes:
        known: what was secret about it.
        printed: by it.
        logged: the host's journal, with all fields, and its console.
        on_host: what a user without rights saw there.
        on_controller: the same on the machine that it was run from.
        stored: files on the host with secrets in them.
        kept: the same on the controller.
    """

    known: Sequence[Secret]
    printed: str
    logged: str
    on_host: Seen
    on_controller: Seen
    stored: Places
    kept: Places


@dataclass(frozen=True, slots=True)
class Scene:
    """A deployed host, and the machine that deploys to it."""

    lab: Lab
    host: Container
    controller: Controller

    def account(self, run: Callable[[], str], known: Callable[[], Sequence[Secret]]) -> Account:
        """Watch what ``run`` does; what was secret about it is known afterwards."""
        here = [self.controller.checkout, self.controller.folder]
        with (
            watched_host(self.host, self.lab.network.controller) as on_host,
            watched_controller(*here) as on_controller,
        ):
            printed = run()
        found = known()
        logged = json.dumps(self.host.journal()) + self.host.console.read_text(encoding="utf-8", errors="replace")
        return Account(
            found,
            printed,
            logged,
            on_host.seen,
            on_controller.seen,
            stored_on(self.host, found),
            stored_here(here, found),
        )


@pytest.fixture(scope="module")
def scene(lab: Lab, host: Container, controller: Controller) -> Scene:
    (controller.folder / "tmp").mkdir()
    return Scene(lab, host, controller)


@pytest.fixture(scope="module")
def temporary(scene: Scene) -> Mapping[str, str]:
    """The controller's own temporary folder, where it is watched."""
    return {"TMPDIR": str(scene.controller.folder / "tmp")}


@pytest.fixture(scope="module")
def ca(scene: Scene) -> Path:
    """Another internal CA than the one of the session's other hosts, not there yet."""
    return scene.controller.folder / "ca"


@pytest.fixture(scope="module")
def inventory(scene: Scene, variables: Mapping[str, object], ca: Path) -> Path:
    return scene.controller.inventory([scene.host], {**variables, "ca_dir": ca})


def own_key(host: Container) -> Secret:
    return Secret("the host's own API key", host.run(f"cat {KEY}").stdout)


def token(name: str) -> Secret:
    return Secret(name, secrets.token_urlsafe(24))


# --- what is deployed ---


@pytest.fixture(scope="module")
def made(scene: Scene, inventory: Path, ca: Path, temporary: Mapping[str, str]) -> Account:
    """All secrets are made by the deploy: the host's API key and TLS key on the host, the internal CA's key here."""
    scene.host.run(f"rm -r {KEY} /etc/metalscribe/tls/internal")

    def known() -> list[Secret]:
        tls = scene.host.run("cat /etc/metalscribe/tls/internal/privkey.pem").stdout
        authority = Secret("the internal CA's key", (ca / "ca.key").read_text(encoding="ascii"))
        return [own_key(scene.host), Secret("the TLS key", tls), authority]

    return scene.account(
        lambda: scene.controller.deploy(inventory, "-v", environment=temporary).succeeded().printed, known
    )


@pytest.fixture(scope="module")
def rotated(scene: Scene, made: Account, inventory: Path, temporary: Mapping[str, str]) -> Account:
    """The operator's next key replaces the host's own."""
    known = [own_key(scene.host), token("the operator's next API key")]
    environment = {**temporary, "METALSCRIBE_API_KEY": known[1].text}

    def run() -> str:
        done = scene.controller.playbook("rotate-keys.yml", inventory, *VERBOSE, environment=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    return scene.account(run, lambda: known)


@pytest.fixture(scope="module")
def given(scene: Scene, rotated: Account, variables: Mapping[str, object], temporary: Mapping[str, str]) -> Account:
    """The operator has an API key in the environment and a certificate in files; the deploy uses sudo."""
    key = token("the operator's API key")
    certificate, private = own_certificate(scene.controller.folder, scene.host)
    tls = {"tls": "files", "tls_certificate": certificate, "tls_certificate_key": private}
    inventory = scene.controller.inventory([scene.host], {**variables, **tls}, user="deployer", name="files.ini")
    environment = {**temporary, "METALSCRIBE_API_KEY": key.text}
    return scene.account(
        lambda: scene.controller.deploy(inventory, *VERBOSE, environment=environment).succeeded().printed,
        lambda: [key, Secret("the TLS key", private.read_text(encoding="ascii"))],
    )


@dataclass(frozen=True, slots=True)
class Vault:
    """A controller that has its secrets in a vault."""

    scene: Scene
    known: Sequence[Secret]
    environment: Mapping[str, str]


@pytest.fixture(scope="module")
def vault(lab: Lab, host: Container, given: Account, checkout: Checkout) -> Vault:
    controller = Controller(lab.network.controller, lab.access, lab.folder / "controller-with-a-vault", checkout.folder)
    key, opens, database, counters = (
        token(name)
        for name in ("the API key", "the vault's password", "the database's password", "the password of redis")
    )
    values = {
        "metalscribe_api_key": key.text,
        "metalscribe_database_url": f"postgresql+psycopg://metalscribe:{database.text}@127.0.0.1:9/metalscribe",
        "metalscribe_rate_limit_storage": f"redis://:{counters.text}@127.0.0.1:9/0",
    }
    password = controller.folder / "vault-password"
    password.touch(mode=0o600)
    password.write_text(opens.text, encoding="ascii")
    file = controller.folder / "group_vars" / "gpu_hosts" / "vault.yml"
    file.parent.mkdir(parents=True)
    subprocess.run(
        [BIN / "ansible-vault", "encrypt", "--vault-password-file", password, "--output", file, "-"],
        input=json.dumps(values),
        check=True,
        capture_output=True,
        text=True,
    )
    (controller.folder / "tmp").mkdir()
    environment = {"TMPDIR": str(controller.folder / "tmp"), "ANSIBLE_VAULT_PASSWORD_FILE": str(password)}
    return Vault(Scene(lab, host, controller), (key, opens, database, counters), environment)


@pytest.fixture(scope="module")
def vaulted(vault: Vault, variables: Mapping[str, object], bundle_with_databases: Path) -> Account:
    """The vault has an API key and the passwords of a database and a redis, neither of which is there: the deploy fails."""
    scene = vault.scene
    every = {**variables, "bundle": bundle_with_databases}
    inventory = scene.controller.inventory([scene.host], every, user="deployer")

    def run() -> str:
        planned = scene.controller.deploy(inventory, "--dry", *VERBOSE, environment=vault.environment).succeeded()
        failed = scene.controller.deploy(inventory, *VERBOSE, environment=vault.environment)
        assert failed.status != 0, failed.printed
        assert "does not serve" in failed.printed, failed.printed
        return planned.printed + failed.printed

    return scene.account(run, lambda: vault.known)


@pytest.fixture(scope="module")
def bundle_with_databases(lab: Lab, checkout: Checkout) -> Path:
    """The checkout's bundle with the clients of PostgreSQL and Redis."""
    bundle = lab.folder / "bundle-with-databases"
    subprocess.run(["cp", "--archive", "--link", checkout.bundle, bundle], check=True)
    command = [sys.executable, "-m", "metalscribe_provision.bundle", "--output", str(bundle), "--python", PYTHON]
    own = os.pathsep.join(str(checkout.folder / part) for part in ("provision", "service"))
    done = subprocess.run(
        [*command, "--model", "demo", "--extra", "postgres", "--extra", "redis"],
        cwd=checkout.folder,
        env={**os.environ, "PYTHONPATH": own},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return bundle


@pytest.fixture(params=["made", "rotated", "given", "vaulted"])
def account(request: pytest.FixtureRequest) -> Account:
    found: Account = request.getfixturevalue(request.param)
    return found


# --- nobody sees it ---


def test_no_secret_is_printed(account: Account) -> None:
    assert named(account.known, account.printed.encode()) == []


def test_no_secret_is_in_the_hosts_journal(account: Account) -> None:
    assert named(account.known, account.logged.encode()) == []


def test_nobody_sees_a_secret_on_the_host(account: Account) -> None:
    assert any("metalscribe-release" in command for command in account.on_host.commands), "nobody has looked"
    assert account.on_host.of(account.known) == []


def test_nobody_sees_a_secret_on_the_controller(account: Account) -> None:
    assert any("provision/" in command for command in account.on_controller.commands), "nobody has looked"
    assert account.on_controller.of(account.known) == []


def test_the_first_deploy_prints_no_secret(deployed: Deployed, made: Account) -> None:
    assert named([Secret("its key", deployed.key)], deployed.outcome.printed.encode()) == []


@pytest.mark.parametrize("variable", ["metalscribe_databse_url", "metalscribe_api_keys", "metalscribe_batch_size"])
def test_a_refusal_prints_no_secret(vault: Vault, variables: Mapping[str, object], variable: str) -> None:
    """Names that are not quite right, and a secret in the wrong place."""
    scene, value = vault.scene, token("the value")
    wrong = {**variables, variable: value.text}
    inventory = scene.controller.inventory([scene.host], wrong, name="wrong.ini")
    refused = scene.controller.deploy(inventory, *VERBOSE, environment=vault.environment)
    assert refused.status != 0
    assert variable in refused.printed
    assert named([value, *vault.known], refused.printed.encode()) == []


# --- it is where it belongs ---


def test_what_the_deploy_makes_is_where_it_belongs(made: Account) -> None:
    key, tls, authority = (secret.name for secret in made.known)
    assert made.stored == {
        KEY: ("600 root", key),
        HANDED_OVER: ("400 metalscribe", key),
        "/etc/metalscribe/tls/internal/privkey.pem": ("600 root", tls),
    }
    assert {Path(path).name: about for path, about in made.kept.items()} == {"ca.key": ("600 root", authority)}


def test_what_a_rotation_brings_is_where_it_belongs_and_what_it_replaces_is_gone(rotated: Account) -> None:
    _, key = (secret.name for secret in rotated.known)
    assert rotated.stored == {KEY: ("600 root", key), HANDED_OVER: ("400 metalscribe", key)}
    assert rotated.kept == {}


def test_what_the_operator_gives_is_where_it_belongs(given: Account) -> None:
    key, tls = (secret.name for secret in given.known)
    (folder,) = {Path(path).parent for path in given.stored if path.startswith("/etc/metalscribe/tls/")}
    assert given.stored == {
        KEY: ("600 root", key),
        HANDED_OVER: ("400 metalscribe", key),
        f"{folder}/privkey.pem": ("600 root", tls),
    }
    assert {Path(path).name: about for path, about in given.kept.items()} == {"own.key": ("600 root", tls)}


def test_what_is_in_the_vault_is_where_it_belongs(vaulted: Account) -> None:
    key, opens, database, counters = (secret.name for secret in vaulted.known)
    assert vaulted.stored == {
        KEY: ("600 root", key),
        HANDED_OVER: ("400 metalscribe", key),
        "/etc/metalscribe/credentials/metalscribe_database_url": ("600 root", database),
        "/etc/metalscribe/credentials/metalscribe_rate_limit_storage": ("600 root", counters),
    }
    assert {Path(path).name: about for path, about in vaulted.kept.items()} == {"vault-password": ("600 root", opens)}


# --- and the search finds what leaks ---


def test_what_leaks_is_found(vault: Vault, lab: Lab, tmp_path: Path) -> None:
    leaky = lab.folder / "leaky"
    (leaky / "provision").mkdir(parents=True)
    (leaky / "provision" / "site.py").write_text(LEAKY, encoding="ascii")
    controller = Controller(lab.network.controller, lab.access, vault.scene.controller.folder, leaky)
    scene = Scene(lab, vault.scene.host, controller)
    inventory = controller.inventory([scene.host], user="deployer", name="leaky.ini")
    leaked = scene.account(
        lambda: controller.deploy(inventory, *VERBOSE, environment=vault.environment).succeeded().printed,
        lambda: vault.known[:1],
    )
    (name,) = (secret.name for secret in leaked.known)
    assert named(leaked.known, leaked.printed.encode()) == [name]
    assert named(leaked.known, leaked.logged.encode()) == [name]
    seen = "\n".join(leaked.on_host.of(leaked.known))
    assert f"{name} in the process list: " in seen
    assert f"{name} in the file /tmp/" in seen
    seen = "\n".join(leaked.on_controller.of(leaked.known))
    assert re.search(rf"^{name} in the process list: \S*python\S* -c ", seen, re.MULTILINE)
    assert f"{name} in the file {controller.folder}/home/leaked" in seen
    assert leaked.stored["/root/leaked"] == ("600 root", name)
    assert leaked.kept[f"{controller.folder}/home/leaked"] == ("644 root", name)


@pytest.mark.parametrize("around", [("", ""), ("x", "x"), ("xy", "xyz")])
def test_a_secret_is_known_in_every_form(around: tuple[str, str]) -> None:
    secret = Secret("it", "p@ssw0rd/with?everything")
    before, after = around
    text = (before + secret.text + after).encode()
    forms = [text, base64.b64encode(text), text.hex().encode(), quote(text, safe="").encode()]
    assert [named([secret], form) for form in forms] == [["it"]] * 4
    assert named([secret], text.replace(b"0", b"o")) == []
    assert named([secret], base64.b64encode(text.replace(b"0", b"o"))) == []


def test_every_line_of_a_key_is_secret() -> None:
    key = private_pem(ec.generate_private_key(ec.SECP256R1()))
    secret = Secret("it", key)
    assert [named([secret], line.encode()) for line in key.splitlines()[1:-1]] == [["it"]] * 3
    assert named([secret], key.splitlines()[0].encode()) == []


# --- a certificate of the operator's own ---


def own_certificate(folder: Path, host: Container) -> tuple[Path, Path]:
    """A certificate for a host, signed by itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host.name)])
    now = datetime.now(UTC)
    names = [x509.DNSName(host.name), x509.IPAddress(ip_address(host.address))]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=90))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    files = folder / "own.crt", folder / "own.key"
    files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files[1].touch(mode=0o600)
    files[1].write_text(private_pem(key), encoding="ascii")
    return files


def private_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
