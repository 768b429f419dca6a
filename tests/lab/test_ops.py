"""The playbooks for day 2, on one deployed host and then on two: what they promise in their headings."""

from __future__ import annotations

import http.client
import json
import re
import select
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from lab.checkout import Checkout
from lab.conftest import MakeContainer
from lab.container import Container
from lab.controller import Controller
from lab.deployed import Deployed, Recording
from lab.exposure import Secret, named
from lab.https import Answer, Client
from lab.lab import Lab
from lab.load import Load
from lab.waiting import wait_for
from metalscribe_provision.edge import authority

KEY: Final = "/etc/metalscribe/credentials/metalscribe_api_key"
TLS: Final = "/etc/metalscribe/tls/internal"
VERSION: Final = "pyproject.toml", 'version = "0.1.0"'

LISTED: Final = ("/etc", "/opt", "/usr/local", "/var/backups", "/var/lib/metalscribe")
"""Where on a host a deploy has something to do with."""


@dataclass(frozen=True, slots=True)
class Played:
    """What a playbook came to."""

    status: int
    printed: str

    def succeeded(self) -> Played:
        """Itself, if it did.

        Raises:
            AssertionError: it failed; says what was printed.
        """
        assert self.status == 0, self.printed
        return self

    def changes(self, host: str) -> int:
        """How many of its tasks have changed something for a host, by its recap."""
        found = re.search(rf"^{host}\s+: ok=\d+\s+changed=(\d+)\s", self.printed, re.MULTILINE)
        assert found is not None, self.printed
        return int(found[1])

    @property
    def said(self) -> str:
        """What was printed, with one blank instead of each line's end and all blanks around it: long lines are folded."""
        return " ".join(self.printed.split())

    @property
    def hosts(self) -> set[str]:
        """The hosts in its recap: those that it has come to."""
        return set(re.findall(r"^(\S+)\s+: ok=\d+", self.printed, re.MULTILINE))


def play(
    controller: Controller, playbook: str, inventory: Path, *options: str, environment: Mapping[str, str] | None = None
) -> Played:
    done = controller.playbook(f"{playbook}.yml", inventory, *options, environment=environment)
    return Played(done.returncode, done.stdout + done.stderr)


def contents(host: Container) -> dict[str, str]:
    """All files of a host that a deploy has to do with, but for those that change by themselves."""
    by_itself = re.compile(r"/var/lib/metalscribe(/metalscribe\.db|/uploads|$)|/etc/(mtab|resolv\.conf)$")
    return {path: about for path, about in host.listing(*LISTED).items() if not by_itself.match(path)}


def process(host: Container) -> str:
    """What is another one after each start of the service."""
    return host.run("systemctl show --property=InvocationID metalscribe.service").stdout


def release(host: Container) -> str:
    """The release that serves."""
    status = json.loads(host.run("/opt/metalscribe/bin/metalscribe-release status --json").stdout)
    assert status["active"], status
    assert status["fingerprint"] == status["live_fingerprint"], status
    return str(status["current"])


def shown(printed: str) -> list[str]:
    """The lines of a list that a playbook shows, the first of each if it is folded."""
    return [line.strip("'") for line in re.findall(r"^\s+- (.*)$", printed, re.MULTILINE)]


def with_key(client: Client, key: str) -> Client:
    return Patient(client.namespace, client.host, client.authority, key)


def serial(client: Client) -> str:
    """The number of the certificate that a host shows, to a client that checks it."""
    connection = client.connection()
    connection.connect()
    try:
        shown = connection.sock.getpeercert()
    finally:
        connection.close()
    assert shown is not None
    return str(shown["serialNumber"])


class Patient(Client):
    """Opens a kept connection anew that the server has closed meanwhile, as every client of HTTP does (RFC 9112, section 9.5).

    nginx closes those that are idle when it reads its configuration again.
    """

    def ask(self, path: str, *, connection: http.client.HTTPSConnection | None = None, **more: Any) -> Answer:
        if connection is not None and connection.sock is not None and select.select([connection.sock], [], [], 0)[0]:
            connection.close()
        return super().ask(path, connection=connection, **more)


@pytest.fixture(scope="module")
def laptop(host: Container, api: Client) -> Client:
    """A client with a key of its own, which the rotation of the host's key does not concern."""
    return with_key(api, new_key(host, "laptop"))


def new_key(host: Container, name: str) -> str:
    return str(json.loads(host.run(f"metalscribe keys create {name} --json").stdout)["key"])


# --- one host ---


@dataclass(frozen=True, slots=True)
class State:
    """What a playbook that changes nothing leaves as it is: files on the host, the service's process, files of the checkout."""

    host: Mapping[str, str]
    process: str
    checkout: frozenset[str]

    @classmethod
    def of(cls, host: Container, checkout: Checkout) -> State:
        caches = {".cache", "__pycache__"}
        here = (str(path) for path in checkout.folder.rglob("*") if not caches & set(path.parts))
        return cls(contents(host), process(host), frozenset(here))

    def changes(self, before: State) -> list[str]:
        """What is another than before."""
        paths = self.host.keys() | before.host.keys()
        files = {path for path in paths if self.host.get(path) != before.host.get(path)}
        started = {"the service was started"} if self.process != before.process else set()
        return sorted(files | started | (self.checkout ^ before.checkout))


@pytest.fixture(scope="module")
def states(host: Container, checkout: Checkout, laptop: Client) -> list[State]:
    """The state after each of the checks, the latest last."""
    return [State.of(host, checkout)]


@pytest.mark.parametrize(
    "command",
    [
        *("status", "restart", "rollback", "rotate-keys", "rotate-keys -e named_keys=laptop"),
        *("renew-certificates", "support-bundle", "upgrade"),
    ],
)
def test_check_changes_nothing(
    controller: Controller, checkout: Checkout, inventory: Path, host: Container, states: list[State], command: str
) -> None:
    playbook, *options = command.split()
    play(controller, playbook, inventory, "--check", "--diff", *options).succeeded()
    states.append(State.of(host, checkout))
    assert states[-1].changes(states[-2]) == []


def test_status_is_a_line_for_each_host(controller: Controller, inventory: Path, host: Container) -> None:
    printed = play(controller, "status", inventory).succeeded().printed
    heading, line = shown(printed)
    assert heading.split() == ["HOST", "RELEASE", "UNIT", "HEALTH", "MODEL", "DEVICE", "CERT", "DISK", "DOCTOR"]
    assert re.sub(r"\d+ d|\d+\.\d+ GiB", "…", line).split() == [
        *(host.name, release(host), "active", "healthy", "demo", "cpu", "…", "…", "ok")
    ]


def test_a_restart_fails_no_request(
    controller: Controller, inventory: Path, host: Container, api: Client, recording: Recording
) -> None:
    before, serves = process(host), release(host)
    with Load(api, recording.path.read_bytes(), recording.words) as load:
        said = play(controller, "restart", inventory).succeeded().said
    assert load.failures == [], load.account()
    assert f"restarted release {serves}" in said
    assert process(host) != before


def test_the_hosts_key_is_rotated_and_no_request_fails(
    controller: Controller, inventory: Path, host: Container, laptop: Client, recording: Recording
) -> None:
    old = host.run(f"cat {KEY}").stdout.strip()
    with Load(laptop, recording.path.read_bytes(), recording.words) as load:
        printed = play(controller, "rotate-keys", inventory).succeeded().printed
    assert load.failures == [], load.account()
    new = host.run(f"cat {KEY}").stdout.strip()
    assert with_key(laptop, new).transcribe(recording.path.read_bytes()).status == 200
    assert with_key(laptop, old).transcribe(recording.path.read_bytes()).status == 401
    assert named([Secret("old", old), Secret("new", new)], printed.encode()) == []

    running = process(host)
    again = play(controller, "rotate-keys", inventory, environment={"METALSCRIBE_API_KEY": new}).succeeded()
    assert again.changes(host.name) == 0, "it is the operator's key already"
    assert process(host) == running


def test_a_named_key_is_rotated_and_the_old_secret_has_its_grace(
    controller: Controller, checkout: Checkout, inventory: Path, host: Container, api: Client, recording: Recording
) -> None:
    def status(key: str) -> int:
        return with_key(api, key).transcribe(recording.path.read_bytes()).status

    running, first = process(host), new_key(host, "phone")
    kept = checkout.folder / "keys" / host.name / "phone"
    printed = play(controller, "rotate-keys", inventory, "-e", "named_keys=phone").succeeded().printed
    second = kept.read_text(encoding="ascii").strip()
    assert (kept.stat().st_mode & 0o777, kept.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert (status(first), status(second)) == (200, 200)

    at_once = ("-e", "named_keys=phone", "-e", "grace=0s")
    printed += play(controller, "rotate-keys", inventory, *at_once).succeeded().printed
    third = kept.read_text(encoding="ascii").strip()
    assert (status(second), status(third)) == (401, 200)
    known = [Secret("first", first), Secret("second", second), Secret("third", third)]
    assert named(known, printed.encode()) == []
    assert process(host) == running


def test_a_certificate_that_is_due_is_renewed_and_no_request_fails(
    controller: Controller,
    inventory: Path,
    host: Container,
    deployed: Deployed,
    laptop: Client,
    recording: Recording,
) -> None:
    due = let_a_certificate_be_due(host, deployed.authority.parent)
    wait_for(lambda: serial(laptop) == due, "nginx to show the certificate that is due")
    with Load(laptop, recording.path.read_bytes(), recording.words) as load:
        said = play(controller, "renew-certificates", inventory).succeeded().said
    assert load.failures == [], load.account()
    renewed = serial(laptop)
    assert renewed != due
    stored = host.run(f"openssl x509 -noout -serial -in {TLS}/fullchain.pem -checkend {300 * 86400}").stdout
    assert stored.splitlines() == [f"serial={renewed}", "Certificate will not expire"]
    assert re.search(rf"{due} until \S+ -> {renewed} until ", said)

    assert play(controller, "renew-certificates", inventory).succeeded().changes(host.name) == 0
    assert serial(laptop) == renewed


def let_a_certificate_be_due(host: Container, ca: Path) -> str:
    """Give a host a certificate of the internal CA that has less than a third of its life left; returns its number."""
    key = load_pem_public_key(host.run(f"openssl pkey -pubout -in {TLS}/privkey.pem").stdout.encode())
    assert isinstance(key, ec.EllipticCurvePublicKey)
    now = datetime.now(UTC)
    issued = authority.opened(ca, now).issue(key, [host.address, host.name], now - timedelta(days=300))
    host.put(authority.pem(issued), f"{TLS}/fullchain.pem")
    host.run("systemctl reload nginx")
    return f"{issued.serial_number:X}".zfill(40)


def test_a_support_bundle_has_what_helps_and_no_secret(
    controller: Controller,
    checkout: Checkout,
    inventory: Path,
    host: Container,
    laptop: Client,
    recording: Recording,
) -> None:
    known = [
        Secret("the host's key", host.run(f"cat {KEY}").stdout),
        Secret("the TLS key", host.run(f"cat {TLS}/privkey.pem").stdout),
        Secret("a client's key", laptop.key),
    ]
    assert laptop.transcribe(recording.path.read_bytes(), request_id="of-the-support-case").status == 200
    temporary = host.run("ls -A /tmp /var/tmp").stdout
    printed = play(controller, "support-bundle", inventory, "-vvv").succeeded().printed
    (bundle,) = (checkout.folder / "support").iterdir()
    assert (bundle.name.partition("-")[0], bundle.stat().st_mode & 0o777) == (host.name, 0o600)
    texts = read(bundle)
    assert {
        *("system.txt", "resources.txt", "doctor.txt", "settings.txt", "release.txt", "unit.txt", "unit-security.txt"),
        *("journal-metalscribe.txt", "journal-nginx.txt", "nginx.txt", "nginx-errors.txt", "firewall.txt"),
        *("certificates.txt", "gpu.txt", "kernel.txt", "packages.txt", "libraries.txt"),
    } == set(texts)
    assert release(host) in texts["release.txt"]
    assert "of-the-support-case" in texts["journal-metalscribe.txt"]
    assert "faster-whisper" in texts["libraries.txt"]
    assert "server_name" in texts["nginx.txt"]
    assert '"status": "ok"' in texts["doctor.txt"]
    for name, text in texts.items():
        assert text.strip(), f"{name} is empty"
        assert named(known, text.encode()) == [], name
    assert named(known, printed.encode()) == []
    assert host.run("ls -A /tmp /var/tmp").stdout == temporary
    bundle.unlink()

    host.run(f"cat {KEY} >> /var/log/nginx/error.log")
    refused = play(controller, "support-bundle", inventory)
    host.run("truncate --size=0 /var/log/nginx/error.log")
    assert refused.status != 0
    assert "support/nginx-errors.txt: a credential of this host" in refused.said
    assert named(known, refused.printed.encode()) == []
    assert list((checkout.folder / "support").iterdir()) == []


def read(bundle: Path) -> dict[str, str]:
    """The files in a bundle by name."""
    found = {}
    with tarfile.open(bundle) as archive:
        for member in archive:
            content = archive.extractfile(member)
            if content is not None:
                found[Path(member.name).name] = content.read().decode()
    return found


# --- two hosts ---


@dataclass(frozen=True, slots=True)
class Fleet:
    """Two deployed hosts behind a load balancer, and who deploys to them."""

    first: Container
    second: Container
    lab: Lab
    variables: Mapping[str, object]
    balancer: Path

    def upgrade(self, checkout: Checkout, *options: str) -> Played:
        """Bring the hosts to what ``checkout`` is."""
        controller = Controller(
            self.lab.network.controller, self.lab.access, self.lab.folder / "controller-of-a-fleet", checkout.folder
        )
        return play(controller, "upgrade", self.inventory(controller, checkout), *options)

    def inventory(self, controller: Controller, checkout: Checkout) -> Path:
        tell = "echo {} {{{{ inventory_hostname }}}} >> " + str(self.balancer)
        commands = {f"{what}_command": json.dumps(["sh", "-c", tell.format(what)]) for what in ("drain", "undrain")}
        every = {**self.variables, **commands, "bundle": checkout.bundle}
        return controller.inventory([self.first, self.second], every)

    def told(self) -> list[str]:
        """What the load balancer has been told since the last time."""
        lines = self.balancer.read_text(encoding="ascii").splitlines()
        self.balancer.write_text("", encoding="ascii")
        return lines


@pytest.fixture(scope="module")
def fleet(
    lab: Lab, checkout: Checkout, variables: Mapping[str, object], host: Container, make_container: MakeContainer
) -> Fleet:
    """The second host is a fresh one, which only force lets the playbook deploy to."""
    fleet = Fleet(host, make_container("gpu2"), lab, variables, lab.folder / "balancer")
    fleet.balancer.touch()
    refused = fleet.upgrade(checkout, "--limit", "gpu2", "-e", "ready_seconds=1")
    assert refused.status != 0
    assert "not healthy" in refused.said
    assert fleet.told() == []
    fleet.upgrade(checkout, "--limit", "gpu2", "-e", "force=true").succeeded()
    fleet.told()
    return fleet


def test_an_upgrade_to_what_is_there_changes_nothing(fleet: Fleet, checkout: Checkout) -> None:
    before, running = contents(fleet.first), process(fleet.first)
    again = fleet.upgrade(checkout, "--limit", "gpu1").succeeded()
    # The load balancer is told, which counts as a change.
    assert (again.changes("gpu1"), fleet.told()) == (2, ["drain gpu1", "undrain gpu1"])
    assert contents(fleet.first) == before
    assert process(fleet.first) == running


def test_an_upgrade_that_fails_stops_at_the_first_host(
    lab: Lab, fleet: Fleet, checkout: Checkout, laptop: Client, recording: Recording
) -> None:
    serve = "service/metalscribe/cli/serve.py"
    ends = ("    settings = load_settings(**overrides)\n", '    raise SystemExit("not fit on purpose")\n')
    bad = checkout.another(lab.folder / "bad", (*VERSION, 'version = "0.1.1"'), (serve, *ends))
    serves, untouched = release(fleet.first), contents(fleet.second)
    failed = fleet.upgrade(bad)
    assert failed.status != 0
    assert "not fit on purpose" in failed.said
    assert "gpu1 serves. Left alone: gpu2." in failed.said
    assert failed.hosts == {"gpu1"}
    assert fleet.told() == ["drain gpu1", "undrain gpu1"], "it serves, so it is put back"
    assert release(fleet.first) == serves
    assert laptop.transcribe(recording.path.read_bytes()).status == 200
    assert contents(fleet.second) == untouched


def test_an_upgrade_goes_from_host_to_host_and_no_request_fails_and_so_does_the_way_back(
    lab: Lab, fleet: Fleet, checkout: Checkout, controller: Controller, laptop: Client, recording: Recording
) -> None:
    good = checkout.another(lab.folder / "good", (*VERSION, 'version = "0.2.0"'))
    before = release(fleet.first)
    said = fleet.upgrade(good).succeeded().said
    after = release(fleet.first)
    assert after.startswith("0.2.0-")
    assert release(fleet.second) == after
    assert said.count(f"{before} -> {after}") == 2
    assert fleet.told() == ["drain gpu1", "undrain gpu1", "drain gpu2", "undrain gpu2"]

    inventory = fleet.inventory(controller, checkout)
    with Load(laptop, recording.path.read_bytes(), recording.words) as load:
        said = play(controller, "rollback", inventory, "--limit", "gpu1").succeeded().said
    assert load.failures == [], load.account()
    assert f"release {before} serves" in said
    assert (release(fleet.first), release(fleet.second)) == (before, after)


def test_status_knows_a_host_that_is_off(fleet: Fleet, controller: Controller, checkout: Checkout) -> None:
    inventory = fleet.inventory(controller, checkout)
    fleet.second.cut_power()
    printed = play(controller, "status", inventory).succeeded().printed
    _, first, second, *notes = shown(printed)
    assert first.split()[:4] == ["gpu1", release(fleet.first), "active", "healthy"]
    assert second.split()[:4] == ["gpu2", *"---"]
    assert [note.partition(":")[0] for note in notes] == ["gpu2", "gpu2"]
    assert notes[0].startswith("gpu2: cannot be reached over SSH: ")
