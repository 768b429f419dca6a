"""What an operator may say about a host: every inventory variable that the deploys read, with its default and meaning.

A variable comes from the Ansible inventory (host, group, ``group_vars/``, ``host_vars/``, vault). Besides the ones below,
``metalscribe_<setting>`` sets the service's setting of that name (``metalscribe config`` lists them), for example
``metalscribe_batch_size=16``; secrets among those belong into the vault or the environment of the machine that deploys.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pyinfra.api.exceptions import DeployError

from metalscribe_provision.common import CANDIDATE_PORT, PORT
from metalscribe_provision.service_settings import (
    OPEN_SETTINGS,
    SECRETS,
    SETTING_PREFIX,
    complaints,
    refused_setting,
    setting_problems,
    setting_text,
)


class Driver(StrEnum):
    """Which NVIDIA kernel modules: ``auto`` chooses by the PCI id, ``none`` is for hosts without a GPU."""

    AUTO = "auto"
    OPEN = "open"
    PROPRIETARY = "proprietary"
    EXISTING = "existing"
    NONE = "none"


class ModelSource(StrEnum):
    """Where the model's files come from."""

    HUB = "hub"
    UPLOAD = "upload"


class Tls(StrEnum):
    """Where the certificate comes from."""

    INTERNAL_CA = "internal_ca"
    FILES = "files"
    ACME = "acme"


class AcmeChallenge(StrEnum):
    """How the ACME server is shown that the name is ours."""

    HTTP_01 = "http-01"
    DNS_01 = "dns-01"


class GpuExporter(StrEnum):
    """Which exporter of GPU metrics runs beside the service's own ``/metrics``."""

    NONE = "none"
    NVML = "nvml"
    DCGM = "dcgm"


def _words(value: Any) -> Any:
    """A list from an INI file's ``a, b``."""
    return tuple(part for part in re.split(r"[,\s]+", value) if part) if isinstance(value, str) else value


def _text(value: Any) -> Any:
    """Ansible reads ``580`` and ``3.11`` in an INI file as numbers."""
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


Text = Annotated[str, BeforeValidator(_text)]
Words = Annotated[tuple[str, ...], BeforeValidator(_words)]
LocalPath = Annotated[Path, AfterValidator(Path.expanduser)]
Ports = Annotated[tuple[Annotated[int, Field(ge=1, le=65535)], ...], BeforeValidator(lambda v: _words(_text(v)))]


class HostData(BaseModel):
    """One GPU host, as its operator wants it."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True, hide_input_in_errors=True)

    # --- the machine ---
    driver: Driver = Driver.AUTO
    """NVIDIA driver: auto (by the card's PCI id), open, proprietary, existing (the one that is there is only proven), or none (no GPU)."""

    driver_branch: Text = "auto"
    """Driver branch such as 580; auto takes the newest that the card and the distribution have, and stays with what is installed."""

    allow_reboot: bool = False
    """Reboot the host when the driver needs it; otherwise the deploy stops there and says so."""

    min_disk_gb: float = Field(default=10.0, gt=0)
    """Free space that the host must have under /opt and /var/lib before anything is changed, in GB."""

    # --- the release ---
    python: Text = "auto"
    """Python for the service, 3.11 or later: auto takes the distribution's, else name one such as python3.12."""

    keep_releases: int = Field(default=3, ge=2)
    """Releases kept on the host, the current one included; the others are what a rollback goes to."""

    bundle: LocalPath | None = None
    """Folder made by `make bundle`, for hosts without internet: wheels, model and checksums come from there."""

    # --- the model ---
    model: Text = "large-v3-turbo"
    """A size (large-v3-turbo, small, base, …), a hub repository, or demo (the bundled tiny.en)."""

    model_source: ModelSource = ModelSource.HUB
    """hub: the host downloads it; upload: this machine downloads it once and uploads it."""

    model_path: LocalPath | None = None
    """A model's folder (CTranslate2 format) on this machine, uploaded as it is; wins over model_source."""

    # --- the service ---
    settings: dict[str, str] = {}
    """The service's settings, collected from the metalscribe_* variables; not to be set by this name."""

    api_key: SecretStr | None = None
    """One API key with every scope (metalscribe_api_key, or METALSCRIBE_API_KEY where the deploy runs); by default one is made on the host."""

    database_url: SecretStr | None = None
    """metalscribe_database_url: SQLAlchemy URL of a PostgreSQL that several hosts share; by default SQLite on the host."""

    rate_limit_storage: SecretStr | None = None
    """metalscribe_rate_limit_storage: redis:// URL where several hosts count their limits together."""

    memory_max: Text = "90%"
    """Memory of the service and its children, as systemd's MemoryMax= takes it."""

    tasks_max: int = Field(default=1024, ge=64)
    """Most processes and threads of the service."""

    log_keep_days: int = Field(default=30, ge=1)
    """Days that journald keeps the service's log."""

    log_max_size: Text = "1G"
    """Most disk space of the journal, as journald's SystemMaxUse= takes it."""

    gate_words: bool = True
    """A release serves only if it transcribes a spoken English sample rightly; false for models that know no English."""

    backup_keep_days: int = Field(default=14, ge=1)
    """Days that the daily backups of the database are kept on the host."""

    # --- the edge ---
    server_names: Words = ()
    """DNS names (and addresses) that the certificate and nginx answer to; by default ansible_host and the inventory's name."""

    https_port: int = Field(default=443, ge=1, le=65535)
    """TCP port of nginx."""

    tls: Tls = Tls.INTERNAL_CA
    """internal_ca: signed on this machine by a CA of your own; files: your certificate; acme: Let's Encrypt and the like."""

    ca_dir: LocalPath = Path(".ca")
    """Folder on this machine with the internal CA's key and certificate, made by the first deploy. Keep it safe."""

    tls_certificate: LocalPath | None = None
    """tls=files: PEM file on this machine, leaf first, then the intermediates."""

    tls_certificate_key: LocalPath | None = None
    """tls=files: its private key, on this machine."""

    acme_email: str | None = None
    """tls=acme: where the ACME server writes about certificates that expire."""

    acme_server: str | None = None
    """tls=acme: directory URL of another ACME server than certbot's default."""

    acme_challenge: AcmeChallenge = AcmeChallenge.HTTP_01
    """tls=acme: http-01 needs port 80 reachable; dns-01 needs a certbot plugin."""

    acme_dns_plugin: str | None = None
    """tls=acme, dns-01: certbot's plugin, such as cloudflare or rfc2136."""

    acme_dns_credentials: LocalPath | None = None
    """tls=acme, dns-01: the plugin's credentials file on this machine; copied to the host, for root alone."""

    hsts_seconds: int = Field(default=63072000, ge=0)
    """Strict-Transport-Security's max-age in seconds; 0 leaves the header out."""

    metrics_allow: Words = ("127.0.0.1", "::1")
    """Networks that may reach /metrics and /queue-metrics (they need an API key as well)."""

    admin_allow: Words = ("127.0.0.1", "::1", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")
    """Networks that may reach /model, /docs and /openapi.json."""

    # --- the firewall ---
    firewall: bool = True
    """Drop whatever is not SSH, HTTPS or (for ACME) HTTP, with nftables."""

    ssh_ports: Ports = ()
    """SSH ports that stay open; by default the port that the deploy itself uses."""

    https_allow: Words = ()
    """Networks that may reach nginx; by default everybody."""

    # --- monitoring ---
    node_exporter: bool = False
    """Install Prometheus' node exporter, on loopback, behind nginx at /metrics/node."""

    gpu_exporter: GpuExporter = GpuExporter.NONE
    """Exporter of GPU metrics on loopback, behind nginx at /metrics/gpu: none, nvml or dcgm."""

    @model_validator(mode="after")
    def _addresses_of_stores(self) -> Self:
        # Without the values: they hold passwords.
        if self.database_url and not re.fullmatch(
            r"postgresql\+psycopg://[^/\s]+/\S+", self.database_url.get_secret_value()
        ):
            raise ValueError("metalscribe_database_url is of the form postgresql+psycopg://user:password@host/database")
        if self.rate_limit_storage and not re.fullmatch(r"rediss?://\S+", self.rate_limit_storage.get_secret_value()):
            raise ValueError("metalscribe_rate_limit_storage is of the form redis://:password@host:6379/0")
        return self

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.tls is Tls.FILES and not (self.tls_certificate and self.tls_certificate_key):
            raise ValueError("tls=files needs tls_certificate and tls_certificate_key")
        if self.tls is Tls.ACME and not self.acme_email:
            raise ValueError("tls=acme needs acme_email")
        if self.tls is Tls.ACME and self.acme_challenge is AcmeChallenge.DNS_01 and not self.acme_dns_plugin:
            raise ValueError("acme_challenge=dns-01 needs acme_dns_plugin")
        if self.driver_branch != "auto" and not re.fullmatch(r"\d{3}", self.driver_branch):
            raise ValueError("driver_branch is auto or three digits such as 580")
        for name in ("metrics_allow", "admin_allow", "https_allow"):
            for network in getattr(self, name):
                try:
                    ipaddress.ip_network(network)
                except ValueError:
                    raise ValueError(f"{name}: {network!r} is not a network such as 10.0.0.0/8") from None
        for name in self.server_names:
            if not (re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?", name) or _is_address(name)):
                raise ValueError(f"server_names: {name!r} is not a host name or an address")
        if self.https_port in {PORT, CANDIDATE_PORT, *self.ssh_ports}:
            raise ValueError(
                f"https_port={self.https_port} is the service's own port ({PORT}, {CANDIDATE_PORT}) or SSH's"
            )
        for name in ("memory_max", "log_max_size"):
            if not re.fullmatch(r"\d+[KMGT]?|\d+%|infinity", getattr(self, name)):
                raise ValueError(f"{name} is a size such as 1G, or a share such as 90%")
        return self

    @property
    def needs_gpu(self) -> bool:
        """Whether the host is to have a driver."""
        return self.driver is not Driver.NONE

    @property
    def extras(self) -> tuple[str, ...]:
        """The extras of the package that this host's release is installed with, sorted."""
        wanted = {
            "demo": self.model == "demo",
            "gpu": self.needs_gpu,
            "postgres": self.database_url is not None,
            "redis": self.rate_limit_storage is not None,
        }
        return tuple(sorted(name for name, needed in wanted.items() if needed))


def parse_hosts(
    hosts: Mapping[str, Mapping[str, Any]], environment: Mapping[str, str] = os.environ
) -> dict[str, HostData]:
    """Read and check the variables of several hosts, so that one attempt tells of every mistake.

    Raises:
        DeployError: as ``parse_host_data``, for all of the hosts together.
    """
    parsed, problems = {}, []
    for name, variables in hosts.items():
        try:
            parsed[name] = parse_host_data(name, variables, environment)
        except DeployError as error:
            problems.append(str(error))
    if problems:
        raise DeployError("\n".join(problems))
    return parsed


def parse_host_data(name: str, variables: Mapping[str, Any], environment: Mapping[str, str] = os.environ) -> HostData:
    """Read and check one host's variables.

    Args:
        name: the host's name in the inventory, for messages.
        variables: all of its inventory variables; those of other software are left alone, and an empty one is not set.
        environment: where secrets may be too.

    Raises:
        DeployError: a value is wrong, or a name is nearly, but not quite, one of ours.
    """
    known = set(HostData.model_fields) - {"settings"} - SECRETS
    problems = []
    values: dict[str, Any] = {}
    settings: dict[str, str] = {}
    for variable, value in variables.items():
        setting = variable.removeprefix(SETTING_PREFIX)
        if variable in known or (variable != setting and setting in SECRETS):
            if value is not None and value != "":
                values[setting] = value
        elif variable != setting:
            if setting not in OPEN_SETTINGS:
                problems.append(refused_setting(variable, setting))
            elif value is not None and value != "":
                settings[setting] = setting_text(value)
        elif not variable.startswith(("ansible_", "ssh_", "_", "fake_")) and (
            near := difflib.get_close_matches(variable, known, n=1, cutoff=0.85)
        ):
            problems.append(f"{variable} is not a variable of ours; did you mean {near[0]}?")
    if "api_key" not in values and environment.get("METALSCRIBE_API_KEY"):
        values["api_key"] = environment["METALSCRIBE_API_KEY"]
    data = None
    try:
        data = HostData(**values, settings=settings)
    except ValidationError as error:
        problems += complaints(error)
    problems += setting_problems(settings)
    if problems or data is None:
        raise DeployError(f"{name}: " + "; ".join(problems))
    return data
