"""What an operator may say about a Proxmox host: every inventory variable that its deploy reads, with its default and meaning."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pyinfra.api.exceptions import DeployError

from metalscribe_provision.hostdata import LocalPath, Words
from metalscribe_provision.passthrough.binding import Binding
from metalscribe_provision.passthrough.selection import THE_NVIDIA_ONE, is_selector
from metalscribe_provision.proxmox.mapping import NAME
from metalscribe_provision.service_settings import complaints


class Passthrough(StrEnum):
    """Whether the host gives devices away."""

    PRESENT = "present"
    ABSENT = "absent"


class ProxmoxData(BaseModel):
    """One Proxmox host, as its operator wants it."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True, hide_input_in_errors=True)

    passthrough: Passthrough = Passthrough.PRESENT
    """present: the devices are for virtual machines; absent: the host has them back, and everything is as it was."""

    passthrough_devices: Words = (THE_NVIDIA_ONE,)
    """What is for virtual machines: nvidia (the only one), addresses such as 0000:01:00, or ids such as 10de:13f1."""

    passthrough_binding: Binding = Binding.AUTO
    """auto: by id, or by address where a device with the same id stays on the host; ids and address insist."""

    passthrough_boot_vga: bool = False
    """Give away even the card that shows the host's console."""

    passthrough_acs_override: bool = False
    """Split IOMMU groups that the hardware does not split (Proxmox' kernels): virtual machines may then reach each other's memory."""

    allow_reboot: bool = False
    """Reboot the host when that is due; otherwise the deploy stops there and says so."""

    pci_mapping: str = "gpu"
    """Name by which the cluster's virtual machines ask for the devices (Datacenter, Resource Mappings)."""

    terraform_user: str = "metalscribe@pve"
    """Terraform's user in the cluster, with a role that can do what the module does."""

    terraform_token_name: str = "terraform"  # noqa: S105  (a name)
    """Name of its API token."""

    terraform_access: bool = True
    """Make that user and its token; false where Terraform has its own access already."""

    terraform_env: LocalPath = Path("terraform/.env")
    """File on this machine for the token's secret: `. terraform/.env` before terraform."""

    image_storage: str = "local"
    """Directory storage of this node for the cloud image and for what cloud-init is told; it gets the contents import and snippets."""

    proxmox_endpoint: str | None = None
    """URL of the API as Terraform reaches it; by default port 8006 of the host that is deployed to."""

    @model_validator(mode="after")
    def _names(self) -> Self:
        if NAME.fullmatch(self.pci_mapping) is None:
            raise ValueError(
                f"pci_mapping: {self.pci_mapping!r} is not a name of letters, digits, - and _ (a letter first)"
            )
        if re.fullmatch(r"[^\s:/'!=@]+@(pam|pve)", self.terraform_user) is None:
            raise ValueError(f"terraform_user: {self.terraform_user!r} is not of the form name@pve")
        if NAME.fullmatch(self.terraform_token_name) is None:
            raise ValueError(
                f"terraform_token_name: {self.terraform_token_name!r} is not a name of letters, digits, - and _"
            )
        if NAME.fullmatch(self.image_storage) is None:
            raise ValueError(
                f"image_storage: {self.image_storage!r} is not a storage's name (letters, digits, - and _)"
            )
        if self.proxmox_endpoint is not None and re.fullmatch(r"https://[^/\s']+/?", self.proxmox_endpoint) is None:
            raise ValueError(
                f"proxmox_endpoint: {self.proxmox_endpoint!r} is not of the form https://pve1.example.com:8006/"
            )
        return self

    @model_validator(mode="after")
    def _named(self) -> Self:
        if not self.passthrough_devices:
            raise ValueError("passthrough_devices names nothing; passthrough=absent is what gives everything back")
        for selector in self.passthrough_devices:
            if not is_selector(selector):
                raise ValueError(
                    f"passthrough_devices: {selector!r} is neither nvidia, an address such as 0000:01:00 nor an id such as "
                    "10de:13f1 (in small letters)"
                )
        return self


def parse_proxmox_hosts(hosts: Mapping[str, Mapping[str, Any]]) -> dict[str, ProxmoxData]:
    """Read and check the variables of several hosts, so that one attempt tells of every mistake.

    Raises:
        DeployError: as :func:`parse_proxmox_data`, for all of the hosts together.
    """
    parsed, problems = {}, []
    for name, variables in hosts.items():
        try:
            parsed[name] = parse_proxmox_data(name, variables)
        except DeployError as error:
            problems.append(str(error))
    if problems:
        raise DeployError("\n".join(problems))
    return parsed


def parse_proxmox_data(name: str, variables: Mapping[str, Any]) -> ProxmoxData:
    """Read and check one host's variables; those of other deploys are left alone, and an empty one is not set.

    Raises:
        DeployError: a value is wrong, or a name is nearly, but not quite, one of ours.
    """
    known = ProxmoxData.model_fields
    problems = [
        f"{variable} is not a variable of ours; did you mean {near[0]}?"
        for variable in variables
        if variable not in known
        and variable.startswith("pass")
        and (near := difflib.get_close_matches(variable, known, n=1, cutoff=0.7))
    ]
    given = {key: value for key, value in variables.items() if key in known and value is not None and value != ""}
    data = None
    try:
        data = ProxmoxData(**given)
    except ValidationError as error:
        problems += complaints(error)
    if problems or data is None:
        raise DeployError(f"{name}: " + "; ".join(problems))
    return data
