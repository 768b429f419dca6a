"""Where a deployed host keeps what, and what its deploy wrote down about it in ``/etc/metalscribe/host.json``.

The deploy's side of that document is ``metalscribe_provision.monitoring.document``.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from metalscribe.cli.findings import Finding, Status
from metalscribe.errors import ConfigurationError

ETC: Final = Path("/etc/metalscribe")
DOCUMENT: Final = ETC / "host.json"
CREDENTIALS: Final = ETC / "credentials"
ROOT: Final = Path("/opt/metalscribe")
RELEASE_TOOL: Final = ROOT / "bin" / "metalscribe-release"
BACKUPS: Final = Path("/var/backups/metalscribe")
UNIT: Final = "metalscribe.service"
USER: Final = "metalscribe"

_UNIT_DIRECTORIES: Final = (Path("/etc/systemd/system"), Path("/usr/lib/systemd/system"), Path("/lib/systemd/system"))


class HostDocument(BaseModel):
    """``host.json``. Fields that are not known here are of a newer deploy and left alone."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

    server_names: tuple[str, ...] = Field(min_length=1)
    """DNS names and addresses that the certificate must hold; clients use the first."""

    https_port: int = Field(ge=1, le=65535)
    """TCP port of nginx."""

    tls: Literal["internal_ca", "files", "acme"]
    """Where the certificate comes from."""

    certificate: Path
    """PEM file, the leaf first, that nginx serves."""

    ca: Path | None
    """PEM file of the authority that signed it; None where it is one that every machine knows, or is meant to."""

    gpu: bool
    """Whether the host is to have an NVIDIA driver."""

    words: bool = True
    """Whether the model knows English, so that the sample recording must come out as its words."""

    firewall: bool
    """Whether the deploy set nftables up."""

    exporters: tuple[str, ...] = ()
    """Units of Prometheus exporters that the deploy set up."""


@dataclass(frozen=True, slots=True)
class Host:
    """The host that is looked at; ``root`` is another directory than ``/`` in tests alone."""

    root: Path = Path("/")

    def at(self, path: Path) -> Path:
        """Where an absolute path of the host is."""
        return self.root / path.relative_to("/")

    @property
    def is_deployed(self) -> bool:
        """Whether the deploy has been here: its configuration and its unit are there."""
        units = (self.at(directory / UNIT) for directory in _UNIT_DIRECTORIES)
        return self.at(ETC).is_dir() and any(map(os.path.lexists, units))

    def credentials(self) -> frozenset[str]:
        """Names of the credentials that systemd hands to the service: what else lies beside them is not the service's."""
        for directory in _UNIT_DIRECTORIES:
            unit = self.at(directory / UNIT)
            if unit.is_file():
                return frozenset(re.findall(r"^LoadCredential=(\w+):", unit.read_text("utf-8"), re.MULTILINE))
        return frozenset()

    def document(self) -> HostDocument:
        """Read ``host.json``.

        Raises:
            ConfigurationError: it is missing or malformed.
        """
        try:
            text = self.at(DOCUMENT).read_bytes()
        except FileNotFoundError:
            raise ConfigurationError(f"{DOCUMENT} is missing: run the deploy again, it was not finished.") from None
        try:
            return HostDocument.model_validate_json(text)
        except ValidationError as error:
            issue = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(map(str, issue["loc"])) or "the document"
            raise ConfigurationError(f"{DOCUMENT}: {place}: {issue['msg']}. Run the deploy again.") from None


def deployment(host: Host) -> Finding:
    """Whether the deploy was finished, and what it made."""
    document = host.document()
    port = "" if document.https_port == 443 else f":{document.https_port}"
    source = {"internal_ca": "an internal CA's", "files": "the operator's", "acme": "an ACME server's"}[document.tls]
    kind = "with a GPU" if document.gpu else "without a GPU"
    return Finding(
        Status.OK, f"https://{bracketed(document.server_names[0])}{port} by {source} certificate, a host {kind}"
    )


def bracketed(name: str) -> str:
    """A host as URLs write it."""
    return f"[{name}]" if ":" in name else name
