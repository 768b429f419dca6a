"""Bringing a model from the hub to this machine: pinned, resumable, verified.

Until it is complete and verified it grows in a hidden directory beside the others, where an interrupted download is picked
up again; then it appears under its name in one step.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from metalscribe.engine import catalog, hub
from metalscribe.engine.manifest import (
    COMMIT,
    WEIGHTS,
    FileRecord,
    Manifest,
    read_manifest,
    sha256_of,
    verify,
    write_manifest,
)
from metalscribe.engine.weights import ModelFiles, Reference, as_directory, resolve
from metalscribe.errors import InvalidParameter, ModelMissing, StorageFull

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


def download(
    model: str,
    models_dir: Path,
    *,
    revision: str | None = None,
    offline: bool = False,
    progress: Callable[[str, int, int | None], None] | None = None,
    endpoint: str | None = None,
) -> ModelFiles:
    """Bring a model to this machine; when it is there, verify it, and mend it if it is damaged.

    Without a revision the catalogue's pinned commit is taken, else the commit that the hub's default branch is at; either
    is recorded in the manifest. Two downloads of one repository wait for each other. Memory does not grow with the model.

    Args:
        model: a name of the catalogue or ``owner/name``, either with ``@revision``; or ``demo``, which must be installed.
        models_dir: where downloads live; made if need be.
        revision: commit, branch or tag; wins over one in ``model``.
        offline: fail instead of going to the network.
        progress: called with a file's name, the bytes of it that are here, and its size.
        endpoint: base URL of the hub instead of ``HF_ENDPOINT``.

    Raises:
        ModelMissing: offline, not found, no access, hub unreachable, wrong checksum.
        InvalidParameter: ``model`` is a directory.
        StorageFull: not enough space.
        ConfigurationError: the models directory cannot be written.
    """
    if model == catalog.DEMO:
        return resolve(model, models_dir)
    if as_directory(model) is not None:
        raise InvalidParameter(f"{model} is a directory, so there is nothing to download", "model")
    reference = Reference.parse(model, revision)
    with hub.explained(reference.repository, reference.revision, endpoint):
        if reference.revision is not None and COMMIT.fullmatch(reference.revision):
            intact = _intact(reference.directory(models_dir, reference.revision), reference)
            if intact is not None:
                return intact
        if offline:
            raise ModelMissing(f"METALSCRIBE_OFFLINE forbids downloading {reference.name}; unset it for the download.")
        models_dir.mkdir(parents=True, exist_ok=True)
        with _locked(models_dir / f".{reference.slug}.lock"):
            return _download(reference, models_dir, progress, endpoint)


def _download(
    reference: Reference,
    models_dir: Path,
    progress: Callable[[str, int, int | None], None] | None,
    endpoint: str | None,
) -> ModelFiles:
    snapshot = hub.look_up(reference.repository, reference.revision, endpoint=endpoint)
    _check_pins(reference, snapshot)
    target = reference.directory(models_dir, snapshot.commit)
    intact = _intact(target, reference)
    if intact is not None:
        return intact
    unfinished = models_dir / f".{target.name}.unfinished"
    if target.is_dir():
        # Damaged: what is good of it need not come over the network again.
        shutil.rmtree(unfinished, ignore_errors=True)
        target.rename(unfinished)
    unfinished.mkdir(exist_ok=True)
    _check_space(snapshot, unfinished)
    records = {file.name: _fetch(snapshot, file, unfinished, progress, endpoint) for file in snapshot.files}
    named = () if reference.asked is None or COMMIT.fullmatch(reference.asked) else (reference.asked,)
    manifest = Manifest(reference.repository, snapshot.commit, records, _now(), named)
    for stray in unfinished.iterdir():
        if stray.name not in records and stray.is_file():
            stray.unlink()
    write_manifest(unfinished, manifest)
    _sync(unfinished)
    unfinished.rename(target)
    _sync(models_dir)
    return ModelFiles(reference.name, target, manifest)


def _fetch(
    snapshot: hub.Snapshot,
    file: hub.RemoteFile,
    unfinished: Path,
    progress: Callable[[str, int, int | None], None] | None,
    endpoint: str | None,
) -> FileRecord:
    path = unfinished / file.name
    if not (path.is_file() and file.matches(path)):
        partial = unfinished / f"{file.name}.{file.content_id}.partial"
        hub.fetch(snapshot, file, partial, progress=progress, endpoint=endpoint)
        if not file.matches(partial):
            partial.unlink()
            raise ModelMissing(
                f"{file.name} of {snapshot.repository} arrived with a wrong checksum and was deleted; run the download again, "
                "and if that does not help, through another network or mirror."
            )
        _sync(partial)
        partial.replace(path)
    if progress is not None:
        progress(file.name, file.size, file.size)
    return FileRecord(file.size, file.sha256 or sha256_of(path))


def _check_pins(reference: Reference, snapshot: hub.Snapshot) -> None:
    revision = reference.revision
    if revision is not None and COMMIT.fullmatch(revision) and snapshot.commit != revision:
        raise ModelMissing(
            f"Asked for {reference.repository} at {revision}, the hub answered with {snapshot.commit}; not taken."
        )
    known = reference.known
    if known is None or known.sha256 is None or snapshot.commit != known.revision:
        return
    weights = next(file for file in snapshot.files if file.name == WEIGHTS)
    if weights.sha256 != known.sha256:
        raise ModelMissing(
            f"The hub's {WEIGHTS} of {reference.repository} is not the one known for commit {snapshot.commit}; not taken. "
            "Check HF_ENDPOINT: the mirror may be altered."
        )


def _check_space(snapshot: hub.Snapshot, unfinished: Path) -> None:
    here = sum(path.stat().st_size for path in unfinished.iterdir())
    needed = sum(file.size for file in snapshot.files) - here
    free = shutil.disk_usage(unfinished).free
    if needed > free:
        raise StorageFull(
            f"Downloading {snapshot.repository} needs {needed / 1e9:.1f} GB more than is here, and only {free / 1e9:.1f} GB "
            "are free in the models directory; free some, or set METALSCRIBE_STATE_DIR to a larger disk."
        )


def _intact(target: Path, reference: Reference) -> ModelFiles | None:
    """Return the download if it is there and every byte is right, and note a branch or tag that now leads to it."""
    manifest = read_manifest(target)
    if manifest is None or not all(check.ok for check in verify(target, expected=manifest.files)):
        return None
    if reference.asked is not None and not COMMIT.fullmatch(reference.asked):
        revisions = tuple(dict.fromkeys((*manifest.revisions, reference.asked)))
        # Newest wins, so a branch that moved back to this commit finds it again.
        manifest = replace(manifest, revisions=revisions, downloaded_at=_now())
        write_manifest(target, manifest)
    return ModelFiles(reference.name, target, manifest)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    # The file stays: removing it would let a waiter and a newcomer lock two different files of that name.
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
