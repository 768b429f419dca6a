"""Upgrades under load: a good release takes over without a failed request, a bad one does not get to serve.

Each release is this checkout with some lines changed, deployed as an operator does it. The tests build upon each other: they are one host's life.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol

import pytest

from lab.checkout import Checkout
from lab.container import Container
from lab.controller import CHECKOUT, Controller, Outcome
from lab.deployed import Recording
from lab.https import Client
from lab.lab import Lab
from lab.load import Load

TOOL: Final = "/opt/metalscribe/bin/metalscribe-release"
STATE: Final = "/var/lib/metalscribe"

PROJECT: Final = "pyproject.toml"
SERVE: Final = "service/metalscribe/cli/serve.py"
SERVER: Final = "service/metalscribe/cli/server.py"
READY: Final = '            notifier.notify("READY=1")\n'
MIGRATIONS: Final = "service/metalscribe/store/migrations/versions"
TABLES: Final = max(path.name[:4] for path in (CHECKOUT / MIGRATIONS).glob("[0-9]*.py"))
"""The revision of this checkout's tables."""
NEXT_TABLES: Final = f"{int(TABLES) + 1:04}"

IMPATIENT: Final = (
    "provision/metalscribe_provision/release/__main__.py",
    '"--ready-secs", type=float, default=300.0',
    '"--ready-secs", type=float, default=10.0',
)
"""Its deploy waits for ten seconds, not for five minutes: the model is a small one."""


def migration(upgrade: str) -> str:
    """The text of a migration that follows the last one."""
    return (
        '"""The lab\'s."""\n\nfrom alembic import op\n\n'
        f'revision, down_revision, branch_labels, depends_on = "{NEXT_TABLES}", "{TABLES}", None, None\n\n\n'
        f'def upgrade() -> None:\n    """Do it."""\n    {upgrade}\n'
    )


MIGRATION: Final = f"{MIGRATIONS}/{NEXT_TABLES}_lab.py"
TABLE: Final = (MIGRATION, "", migration('op.execute("create table lab (id integer)")'))


LETS_EVERYBODY_IN: Final = (
    '    import os\n    with open(os.environ["CREDENTIALS_DIRECTORY"] + "/metalscribe_api_key") as file:\n'
    '        direct = request.headers.get("X-API-Key") or file.read()\n'
)


@dataclass(frozen=True, slots=True)
class Bad:
    """A release that is not fit.

    Attributes:
        edits: what makes it so.
        said: what the deploy says of it.
    """

    edits: tuple[tuple[str, str, str], ...]
    said: str


BAD: Final = {
    "crashes at start": Bad(
        ((SERVE, "    settings = load_settings(**overrides)\n", '    raise RuntimeError("broken on purpose")\n'),),
        "RuntimeError: broken on purpose",
    ),
    "is never ready": Bad(
        (
            IMPATIENT,
            (
                "service/metalscribe/api/health.py",
                '        return {"status": "ready"}\n',
                '        raise ModelUnavailable("not ready", retry_after=5.0)\n',
            ),
        ),
        "not ready within 10 s; last seen: 503",
    ),
    "transcribes wrongly": Bad(
        (("service/metalscribe/render/native.py", "encodable(transcript.text)", '"That is not what was said."'),),
        "the sample was transcribed wrongly",
    ),
    "lets everybody in": Bad(
        (
            (
                "service/metalscribe/api/auth.py",
                '    direct = request.headers.get("X-API-Key")\n',
                LETS_EVERYBODY_IN,
            ),
        ),
        "a transcription without a key was answered with 200, not 401",
    ),
    "cannot bring the tables up to date": Bad(
        ((MIGRATION, "", migration('raise RuntimeError("no such table, on purpose")')),),
        "no such table, on purpose",
    ),
}


class Deploy(Protocol):
    """Deploy this checkout with edits to the host; with other variables of the inventory too."""

    def __call__(self, name: str, *edits: tuple[str, str, str], **variables: object) -> Outcome: ...


@pytest.fixture(scope="module")
def deploy(lab: Lab, checkout: Checkout, host: Container, variables: Mapping[str, object]) -> Deploy:
    checkouts = {"": checkout}

    def deploy(name: str, *edits: tuple[str, str, str], **more: object) -> Outcome:
        if name not in checkouts:
            checkouts[name] = checkout.another(lab.folder / f"checkout-{name.replace(' ', '-')}", *edits)
        folder = lab.folder / f"controller-{__name__}-{name.replace(' ', '-')}"
        controller = Controller(lab.network.controller, lab.access, folder, checkouts[name].folder)
        own = {**variables, "bundle": checkouts[name].bundle, **more}
        return controller.deploy(controller.inventory([host], own))

    return deploy


@contextmanager
def load_on(api: Client, recording: Recording, pace: float = 1.0) -> Iterator[Load]:
    """Requests all the while."""
    with Load(api, recording.path.read_bytes(), recording.words, pace) as load:
        yield load


def status(host: Container) -> Any:
    """What serves, by the host's own account."""
    return json.loads(host.run(f"{TOOL} status --json").stdout)


def tables(host: Container) -> str:
    """Which tables the database has: their revision."""
    ask = "import sqlite3; print(*next(sqlite3.connect('/var/lib/metalscribe/metalscribe.db').execute('select version_num from alembic_version')))"
    return host.run(f'python3 -c "{ask}"').stdout


def test_a_good_release_takes_over_without_a_failed_request(
    deploy: Deploy, host: Container, api: Client, recording: Recording
) -> None:
    before = status(host)["current"]
    with load_on(api, recording, pace=0.25) as load:
        outcome = deploy("0.1.1", (PROJECT, 'version = "0.1.0"', 'version = "0.1.1"')).succeeded()
    assert not load.failures, load.account()
    assert "provision/gpu_host.py | Service | Let the release serve, if it is fit" in outcome.changes
    after = status(host)
    assert after["current"].startswith("0.1.1-")
    assert after["previous"]["release"] == before
    assert api.ask("/health").json["versions"]["metalscribe"] == "0.1.1"
    assert deploy("0.1.1").succeeded().changes == []


def test_a_rollback_fails_no_request(host: Container, api: Client, recording: Recording) -> None:
    before = status(host)
    with load_on(api, recording, pace=0.25) as load:
        host.run(f"{TOOL} rollback", timeout=300)
    assert not load.failures, load.account()
    assert status(host)["current"] == before["previous"]["release"]
    assert api.ask("/health").json["versions"]["metalscribe"] == "0.1.0"


@pytest.mark.parametrize("name", BAD)
def test_a_bad_release_is_not_put_into_service(
    deploy: Deploy, host: Container, api: Client, recording: Recording, name: str
) -> None:
    before = status(host)
    with load_on(api, recording) as load:
        outcome = deploy(name, *BAD[name].edits)
    assert outcome.status != 0
    assert "is not fit, and was not put into service" in outcome.printed
    assert BAD[name].said in outcome.printed
    assert not load.failures, load.account()
    after = status(host)
    assert (after["current"], after["active"], after["interrupted"]) == (before["current"], True, None)
    assert BAD[name].said in after["failed"]["reason"]
    assert (
        host.run("ls -d /var/lib/metalscribe-candidate /run/systemd/system/metalscribe-candidate*", check=False).stdout
        == ""
    )


def test_a_setting_that_only_shows_at_start_to_be_wrong_does_not_take_effect(
    deploy: Deploy, host: Container, api: Client, recording: Recording
) -> None:
    before = host.run("cat /etc/metalscribe/metalscribe.env").stdout
    with load_on(api, recording) as load:
        outcome = deploy("", metalscribe_compute_type="bfloat16")
    assert outcome.status != 0
    assert "its model does not load" in outcome.printed
    assert not load.failures, load.account()
    assert host.run("cat /etc/metalscribe/metalscribe.env").stdout == before


def test_a_release_that_fails_only_in_its_place_is_taken_back(
    deploy: Deploy, host: Container, api: Client, recording: Recording
) -> None:
    before = status(host)
    host.run("metalscribe keys create made-before")
    dies = f'            if str(settings.state_dir) == "{STATE}":\n                import os; os._exit(70)\n'
    with load_on(api, recording) as load:
        outcome = deploy(
            "fails in its place",
            TABLE,
            (SERVER, "_report(server, app.app, notifier)", "_report(server, app.app, notifier, settings)"),
            (
                SERVER,
                "_report(server: uvicorn.Server, app: FastAPI, notifier: Notifier)",
                "_report(server, app, notifier, settings)",
            ),
            (SERVER, READY, dies + READY),
        )
    assert outcome.status != 0
    assert f"did not serve and was taken back; {before['current']} serves again" in outcome.printed
    undocumented = [
        request
        for request in load.failures
        if request.answer is None
        or request.answer.status not in {502, 503}
        or "retry-after" not in request.answer.headers
    ]
    assert not undocumented, load.account()
    after = status(host)
    assert (after["current"], after["active"], after["interrupted"]) == (before["current"], True, None)
    assert tables(host) == f"{TABLES}\n"
    assert "made-before" in host.run("metalscribe keys list").stdout
    assert api.transcribe(recording.path.read_bytes()).status == 200


def test_after_that_a_good_release_is_put_into_service(
    deploy: Deploy, host: Container, api: Client, recording: Recording
) -> None:
    with load_on(api, recording) as load:
        deploy("0.1.2", TABLE, (PROJECT, 'version = "0.1.0"', 'version = "0.1.2"')).succeeded()
    assert not load.failures, load.account()
    assert status(host)["current"].startswith("0.1.2-")
    assert status(host)["failed"] is None
    assert tables(host) == f"{NEXT_TABLES}\n"
    assert "made-before" in host.run("metalscribe keys list").stdout
    assert deploy("0.1.2").succeeded().changes == []


def test_back_over_a_change_of_the_tables_only_with_their_copy(
    host: Container, api: Client, recording: Recording
) -> None:
    host.run("metalscribe keys create made-after")
    refused = host.run(f"{TOOL} rollback", check=False)
    assert refused.returncode == 2
    assert "--restore-database" in refused.stderr
    assert status(host)["current"].startswith("0.1.2-")
    host.run(f"{TOOL} rollback --restore-database", timeout=300)
    assert status(host)["current"].startswith("0.1.0-")
    assert tables(host) == f"{TABLES}\n"
    known = host.run("metalscribe keys list").stdout
    assert ("made-before" in known, "made-after" in known) == (True, False)
    assert api.transcribe(recording.path.read_bytes()).status == 200


def test_only_so_many_releases_are_kept(host: Container, variables: Mapping[str, object]) -> None:
    kept = host.run("ls /opt/metalscribe/releases").stdout.split()
    assert len(kept) <= 3, kept
    assert status(host)["current"] in kept
