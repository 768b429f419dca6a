"""The model of a host, from where its operator says: the hub, this machine, a folder here, or a bundle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pyinfra.api.deploy import deploy
from pyinfra.api.exceptions import DeployError
from pyinfra.context import host
from pyinfra.operations import files

from metalscribe.engine.manifest import WEIGHTS
from metalscribe_provision.bundle.contents import MODELS as BUNDLED_MODELS
from metalscribe_provision.bundle.contents import read_bundle
from metalscribe_provision.common import MODELS, proven
from metalscribe_provision.hostdata import HostData, ModelSource
from metalscribe_provision.model.facts import HostModel
from metalscribe_provision.model.local import LocalModel, downloaded_model, folder_model, model_uploads
from metalscribe_provision.model.operations import brought, downloaded
from metalscribe_provision.model.pins import pinned, written
from metalscribe_provision.model.place import model_folder
from metalscribe_provision.runtime.release import release_for
from metalscribe_provision.runtime.upload import INCOMING, Upload


@deploy("Model")
def model(data: HostData) -> None:
    """Bring the host's model to it, beside the one that it may be serving now."""
    folder = model_folder(data)
    if folder is None:
        return  # the demo model came with the release
    release = release_for(data)
    uploads = model_source(data, folder)
    if uploads is not None:
        brought(name="Upload and verify", folder=folder, uploads=uploads, release=release)
    else:
        reference = pinned(data.model)
        known = reference.known
        digests = (
            {WEIGHTS: known.sha256}
            if known is not None and known.sha256 and known.revision == reference.revision
            else {}
        )
        downloaded(
            name="Download and verify", folder=folder, reference=written(reference), release=release, sha256=digests
        )
    files.directory(name="Leftovers of an interrupted deploy", path=str(INCOMING), present=False)
    proven(name="Model is verified", problem=_problem(folder))


def model_source(data: HostData, folder: str) -> Callable[[], list[Upload]] | None:
    """What uploads the model's files; None if the host downloads it.

    Raises:
        DeployError: the host has no internet, and the bundle has no such model in it.
    """
    if data.model_path is not None:
        local = folder_model(data.model_path)
        return lambda: model_uploads(local)
    if data.bundle is not None and (bundled := _bundled(data.bundle, folder)) is not None:
        return bundled
    if data.model_source is ModelSource.UPLOAD:
        return lambda: model_uploads(downloaded_model(data.model))
    if data.bundle is not None:
        raise DeployError(
            f"the bundle {data.bundle} does not have the model {data.model}, only {', '.join(read_bundle(data.bundle).models) or 'none'}: "
            f"make it again with --model {data.model}, or set model_source=upload, so that this machine downloads it"
        )
    return None


def _bundled(path: Path, folder: str) -> Callable[[], list[Upload]] | None:
    bundle = read_bundle(path)
    names = [f"{BUNDLED_MODELS}/{folder}/{name}" for name in bundle.model_files(folder)]
    if not names:
        return None

    def uploads() -> list[Upload]:
        bundle.check(names)
        return model_uploads(LocalModel(bundle.path(BUNDLED_MODELS) / folder, folder))

    return uploads


def _problem(folder: str) -> Callable[[], str | None]:
    def problem() -> str | None:
        if host.get_fact(HostModel, folder=folder).intact:
            return None
        return f"the model in {MODELS / folder} is not verified; run the deploy again"

    return problem
