"""Making a bundle: the lock file's wheels for the target Pythons, uv's, metalscribe's own, and models, with checksums."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import ssl
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import httpx
from pyinfra.api.exceptions import DeployError

from metalscribe.engine.catalog import DEMO
from metalscribe_provision.bundle.contents import DESCRIPTION, FORMAT, MODELS, SUMS, WHEELS
from metalscribe_provision.bundle.wheels import GLIBC, PLATFORM, Wheel, wheels_for
from metalscribe_provision.model.local import downloaded_model, model_uploads
from metalscribe_provision.model.pins import pinned
from metalscribe_provision.runtime import uv
from metalscribe_provision.runtime.digests import sha256_of
from metalscribe_provision.runtime.release import build_wheel
from metalscribe_provision.runtime.source import source_commit, source_digest, source_files

_AT_ONCE: Final = 6
_ATTEMPTS: Final = 3
_BLOCK: Final = 1 << 20
_TIMEOUT: Final = httpx.Timeout(30.0)


def make_bundle(
    folder: Path, pythons: Sequence[str], extras: Iterable[str], models: Sequence[str], report: Callable[[str], None]
) -> None:
    """Make a bundle, or renew one: what is in the folder and right is kept, the rest is downloaded or removed.

    Args:
        folder: where it is to be.
        pythons: of the hosts, such as 3.11.
        extras: of the package that any of the hosts needs.
        models: names of the catalogue or ``owner/name@commit``; ``demo`` is the extra of that name.
        report: told what is going on, a line at a time.

    Raises:
        DeployError: something cannot be had, or arrived with a wrong checksum.
    """
    for model in models:
        if model != DEMO:
            pinned(model)  # a wrong name is told before anything is downloaded
    extras = tuple(sorted({*extras, *([DEMO] if DEMO in models else [])}))
    document = uv.locked(extras)
    wanted = {wheel for python in pythons for wheel in wheels_for(document, python)}
    uv_wheel = _uv_wheel(folder / WHEELS)
    source, commit = source_digest(source_files()), source_commit()
    own = build_wheel()
    description = {
        "format": FORMAT,
        "version": own.name.split("-")[1],
        "source": source,
        **(asdict(commit) if commit is not None else {"commit": None, "modified": None}),
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "platform": f"linux {PLATFORM}, glibc {GLIBC[0]}.{GLIBC[1]} or later",
        "pythons": list(pythons),
        "extras": list(extras),
        "wheel": own.name,
        "uv": uv_wheel.filename,
    }
    _begin(folder, json.dumps(description, indent=2) + "\n")
    _copy(own, folder / WHEELS / own.name)
    _remove_others(folder / WHEELS, {own.name, uv_wheel.filename, *(wheel.filename for wheel in wanted)})
    download_wheels([uv_wheel, *sorted(wanted)], folder / WHEELS, report)
    _put_models(folder / MODELS, [model for model in models if model != DEMO], report)
    _write(folder / SUMS, _sums(folder))


def _begin(folder: Path, description: str) -> None:
    """Until its sums are written, the folder is no complete bundle."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / DESCRIPTION).is_file():
        raise DeployError(f"{folder} has other things in it; name an empty folder, or one with a bundle")
    (folder / WHEELS).mkdir(parents=True, exist_ok=True)
    (folder / SUMS).unlink(missing_ok=True)
    _write(folder / DESCRIPTION, description)


def download_wheels(wheels: Sequence[Wheel], folder: Path, report: Callable[[str], None]) -> None:
    """Bring wheels into a folder, several at a time; one that is there with the right checksum is left alone.

    Raises:
        DeployError: one cannot be had, or is not what the lock file says.
    """
    missing = [wheel for wheel in wheels if not _is(folder / wheel.filename, wheel.sha256)]
    report(f"{len(wheels) - len(missing)} wheels are here, {len(missing)} to download")
    with (
        httpx.Client(verify=_certificates(), timeout=_TIMEOUT, follow_redirects=True) as client,
        ThreadPoolExecutor(_AT_ONCE) as pool,
    ):
        for wheel, size in zip(missing, pool.map(lambda wheel: _download(client, wheel, folder), missing), strict=True):
            report(f"  {wheel.filename} ({size / 1e6:.1f} MB)")


def _download(client: httpx.Client, wheel: Wheel, folder: Path) -> int:
    left = _ATTEMPTS
    while True:
        try:
            return _fetch(client, wheel, folder)
        except httpx.HTTPError as error:
            left -= 1
            final = isinstance(error, httpx.HTTPStatusError) and error.response.is_client_error
            if final or not left:
                reason = str(error) or type(error).__name__
                raise DeployError(
                    f"{wheel.filename} could not be downloaded: {reason}; check network and proxy, then try again"
                ) from None


def _fetch(client: httpx.Client, wheel: Wheel, folder: Path) -> int:
    unfinished = folder / f".{wheel.filename}.unfinished"
    digest, size = hashlib.sha256(), 0
    # A compressed transfer would be another content than the one that was hashed.
    with (
        client.stream("GET", wheel.url, headers={"Accept-Encoding": "identity"}) as response,
        unfinished.open("wb") as handle,
    ):
        response.raise_for_status()
        for block in response.iter_raw(_BLOCK):
            digest.update(block)
            size += handle.write(block)
    if digest.hexdigest() != wheel.sha256:
        unfinished.unlink()
        raise DeployError(
            f"{wheel.filename} arrived with another SHA-256 than the lock file's and was deleted; try another network or proxy"
        )
    unfinished.replace(folder / wheel.filename)
    return size


def _certificates() -> ssl.SSLContext:
    """Mozilla's, and the system's, which are the right ones behind a company's proxy."""
    context = httpx.create_ssl_context()
    context.load_default_certs()
    return context


def _uv_wheel(folder: Path) -> Wheel:
    """The wheel of the uv that we pin: the one that is in the folder, else the one that the package index has."""
    version, digests = uv.pinned_uv(uv.BOOTSTRAP.read_text(encoding="utf-8"))
    for here in folder.glob(f"uv-{version}-*.whl"):
        if sha256_of(here) in digests:
            return Wheel(here.name, sha256_of(here), "")
    (wheel,) = wheels_for(uv.locked_uv(), "3.11")
    if wheel.sha256 not in digests:
        raise DeployError(f"the package index has another {wheel.filename} for uv {version} than bootstrap.txt knows")
    return wheel


def _put_models(folder: Path, models: Sequence[str], report: Callable[[str], None]) -> None:
    wanted = {}
    for model in models:
        report(f"model {model}: downloading what is missing of it")
        found = downloaded_model(model)
        wanted[found.name] = found
        for upload in model_uploads(found):
            if isinstance(upload.source, Path):
                _copy(upload.source, folder / found.name / upload.name)
    if folder.is_dir():
        for other in folder.iterdir():
            if other.name not in wanted:
                shutil.rmtree(other)


def _remove_others(folder: Path, names: set[str]) -> None:
    for other in folder.iterdir():
        if other.name not in names:
            other.unlink()


def _copy(source: Path, target: Path) -> None:
    """A hard link where that can be: a model has gigabytes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists() and target.samefile(source):
        return
    target.unlink(missing_ok=True)
    with suppress(OSError):  # another file system, or one without links
        os.link(source, target)
        return
    shutil.copyfile(source, target)


def _is(path: Path, sha256: str) -> bool:
    return path.is_file() and sha256_of(path) == sha256


def _sums(folder: Path) -> str:
    paths = [folder / DESCRIPTION, *(folder / WHEELS).iterdir(), *(folder / MODELS).glob("*/*")]
    names = sorted(path.relative_to(folder).as_posix() for path in paths)
    return "".join(f"{sha256_of(folder / name)}  {name}\n" for name in names)


def _write(path: Path, text: str) -> None:
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)
