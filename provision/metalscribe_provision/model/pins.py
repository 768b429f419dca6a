"""Models on the hub, each at one commit. Pure."""

from __future__ import annotations

from pathlib import Path

from pyinfra.api.exceptions import DeployError

from metalscribe.engine.manifest import COMMIT
from metalscribe.engine.weights import Reference
from metalscribe.errors import ModelMissing


def pinned(model: str) -> Reference:
    """Read the name of a model on the hub: a name of the catalogue, or ``owner/name@commit``.

    Raises:
        DeployError: it is no such name, or names no commit of 40 digits.
    """
    if model.startswith(("/", ".", "~")):
        raise DeployError(f"model={model} is a path; a folder on this machine is given with model_path")
    try:
        reference = Reference.parse(model)
    except ModelMissing as error:
        raise DeployError(f"model={model}: {error}") from None
    if reference.revision is None or COMMIT.fullmatch(reference.revision) is None:
        raise DeployError(
            f"model={model} is not pinned: write {reference.name}@<commit>, all 40 digits, so that every host gets the same files"
        )
    return reference


def folder_name(reference: Reference) -> str:
    """Name of a pinned model's folder: the one that ``metalscribe model download`` gives it."""
    return reference.directory(Path(), reference.revision or "").name


def written(reference: Reference) -> str:
    """The reference as ``metalscribe model download`` takes it, with its commit."""
    return f"{reference.name}@{reference.revision}"
