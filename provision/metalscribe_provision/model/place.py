"""Which model a host serves, and where its files are on it."""

from __future__ import annotations

from pyinfra.api.exceptions import DeployError

from metalscribe.engine.catalog import DEMO
from metalscribe_provision.common import MODELS
from metalscribe_provision.hostdata import HostData
from metalscribe_provision.model.local import folder_model
from metalscribe_provision.model.pins import folder_name, pinned


def model_setting(data: HostData) -> str:
    """``METALSCRIBE_MODEL`` of a host: ``demo``, else the model's folder, absolute.

    Raises:
        DeployError: there is no such model, or it is not pinned.
    """
    name = model_folder(data)
    return DEMO if name is None else str(MODELS / name)


def model_folder(data: HostData) -> str | None:
    """Name of the folder of a host's model, below the models; None for the demo model, which is in the release.

    It has the commit or a digest of the content in it: another model never takes the place of the one that serves.
    """
    if data.model_path is not None:
        if data.model == DEMO:
            raise DeployError("model=demo and model_path are two models: leave one of them out")
        return folder_model(data.model_path).name
    return None if data.model == DEMO else folder_name(pinned(data.model))
