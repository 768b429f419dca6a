"""The monitoring deploy as planned for hosts that do not exist, what it renders, and what it makes of a host's answers.

That the exporters then run, and listen on loopback alone, takes a host: see tests/lab.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from fakes import DEBIAN_12, HOST, PlannedOperation, commands, files, installed, named, plan
from pyinfra.api.exceptions import DeployError

from metalscribe.cli.host.deployment import HostDocument
from metalscribe_provision.common import CHECKOUT
from metalscribe_provision.hostdata import HostData, parse_host_data
from metalscribe_provision.monitoring.deploy import monitoring
from metalscribe_provision.monitoring.document import DOCUMENT, host_document, host_json
from metalscribe_provision.monitoring.exporters import ALL, DCGM, NODE, NVML
from metalscribe_provision.monitoring.facts import parse_listeners, parse_policy

NODE_FILE = "/etc/systemd/system/prometheus-node-exporter.service.d/metalscribe.conf"
GPU_FILE = "/etc/systemd/system/metalscribe-gpu-exporter.service"
DCGM_FILE = "/etc/systemd/system/nvidia-dcgm-exporter.service.d/metalscribe.conf"

# apt-cache policy with NVIDIA's repository, without it, and where one package is installed from a file.
POLICY = """\
datacenter-gpu-manager-4-core:
  Installed: (none)
  Candidate: 1:4.4.1-1
  Version table:
     1:4.4.1-1 500
        500 https://repository.example/debian12/x86_64  Packages
datacenter-gpu-manager-exporter:
  Installed: (none)
  Candidate: 4.5.2-1
  Version table:
"""
NO_CANDIDATE = """\
datacenter-gpu-manager-4-core:
  Installed: (none)
  Candidate: (none)
  Version table:
datacenter-gpu-manager-exporter:
  Installed: 4.5.2-1
  Candidate: 4.5.2-1
  Version table:
 *** 4.5.2-1 100
        100 /var/lib/dpkg/status
"""


def planned(data: Mapping[str, Any], responses: Mapping[Any, Any]) -> list[PlannedOperation]:
    return plan(monitoring, data, {**DEBIAN_12, **responses})


def host_data(**variables: Any) -> HostData:
    return parse_host_data("gpu1", variables, environment={})


def there(path: str) -> dict[re.Pattern[str], str]:
    """pyinfra's fact File, of a file that is there."""
    kind = "user=root group=root mode=-rw-r--r-- atime=1 mtime=1 ctime=1 size=10"
    return {re.compile(rf"stat .*{re.escape(path)}"): f"{kind} '{path}'"}


# --- plans ---


def test_nothing_is_wanted_and_nothing_is_done() -> None:
    assert not any(operation.changes for operation in planned({"driver": "none"}, {}))


def test_a_node_exporter_on_a_fresh_host() -> None:
    operations = planned({"driver": "none", "node_exporter": True}, {})
    text = files(operations)[NODE_FILE]
    assert "\nExecStart=/usr/bin/prometheus-node-exporter --web.listen-address=127.0.0.1:9100 $ARGS\n" in text
    order = [operation.name for operation in operations if operation.changes]
    unit, package, applied, *_ = order
    assert "Unit of the node-exporter" in unit, "before the package, which starts it at the next boot at the latest"
    assert "Packages of the node-exporter" in package
    assert "as its unit says" in applied
    run = commands(operations)
    assert "apt-get" in run
    assert "prometheus-node-exporter" in run
    assert run.index("daemon-reload") < run.index("systemctl restart prometheus-node-exporter.service")


def test_an_installed_node_exporter_needs_no_network() -> None:
    operations = planned({"driver": "none", "node_exporter": True}, installed("prometheus-node-exporter"))
    assert "apt-get" not in commands(operations)


def test_an_exporter_that_is_not_wanted_any_more_is_stopped_before_its_file_goes() -> None:
    operations = planned({"driver": "none"}, there(NODE_FILE))
    stop, remove = named(operations, "No node-exporter").commands
    assert "systemctl disable --now prometheus-node-exporter.service" in stop
    assert f"rm -f {NODE_FILE} /opt/metalscribe/stamps/node-exporter && systemctl daemon-reload" in remove
    assert not named(operations, "No gpu-exporter").changes
    assert "apt-get" not in commands(operations), "a package may be there for others"


def test_an_exporter_of_somebody_elses_is_left_alone() -> None:
    assert not any(
        operation.changes for operation in planned({"driver": "none"}, installed("prometheus-node-exporter"))
    )


def test_our_own_gpu_exporter_needs_no_package() -> None:
    operations = planned({"gpu_exporter": "nvml"}, {})
    assert "apt-get" not in commands(operations)
    assert set(files(operations)) == {GPU_FILE}
    assert "systemctl restart metalscribe-gpu-exporter.service" in commands(operations)
    assert not named(operations, "No dcgm-exporter").changes


def test_changing_from_one_gpu_exporter_to_the_other_frees_the_port_first() -> None:
    operations = planned({"gpu_exporter": "nvml"}, there(DCGM_FILE))
    names = [operation.name.rpartition(" | ")[2] for operation in operations if operation.changes]
    assert names.index("No dcgm-exporter") < names.index("The gpu-exporter is as its unit says")


def test_nvidias_exporter_where_its_repository_is() -> None:
    operations = planned({"gpu_exporter": "dcgm"}, {"apt-cache policy": POLICY.splitlines()})
    assert "datacenter-gpu-manager-4-core datacenter-gpu-manager-exporter" in commands(operations)
    assert "\nEnvironment=DCGM_EXPORTER_LISTEN=127.0.0.1:9400\n" in files(operations)[DCGM_FILE]


@pytest.mark.parametrize("answer", [NO_CANDIDATE.splitlines(), []])
def test_nvidias_exporter_is_refused_where_its_repository_is_not(answer: list[str]) -> None:
    with pytest.raises(
        DeployError, match=rf"{HOST}: gpu_exporter=dcgm needs datacenter-gpu-manager-4-core.*CUDA repository"
    ):
        planned({"gpu_exporter": "dcgm"}, {"apt-cache policy": answer})


@pytest.mark.parametrize("exporter", ["nvml", "dcgm"])
def test_a_gpu_exporter_without_a_gpu_is_refused(exporter: str) -> None:
    with pytest.raises(DeployError, match="driver=none"):
        planned({"driver": "none", "gpu_exporter": exporter}, {"apt-cache policy": POLICY.splitlines()})


# --- what a host answers ---


def test_candidates() -> None:
    assert parse_policy(POLICY.splitlines()) == {
        "datacenter-gpu-manager-4-core": "1:4.4.1-1",
        "datacenter-gpu-manager-exporter": "4.5.2-1",
    }
    assert parse_policy(NO_CANDIDATE.splitlines())["datacenter-gpu-manager-4-core"] is None
    assert parse_policy([]) == {}


@pytest.mark.parametrize(
    ("line", "address"),
    [
        ("LISTEN 0      4096       127.0.0.1:9100 0.0.0.0:*", "127.0.0.1"),
        ("LISTEN 0      4096               *:9100       *:*", "*"),
        ("LISTEN 0      511             [::]:9100    [::]:*", "::"),
    ],
)
def test_listeners(line: str, address: str) -> None:
    assert parse_listeners([line, line]) == [address]
    assert parse_listeners([""]) == []


# --- what is written ---


@pytest.mark.parametrize("exporter", ALL)
def test_a_file_says_whose_it_is_and_is_well_formed(exporter: Any) -> None:
    text = exporter.text()
    assert "Written by metalscribe's deploy" in text
    assert "{{" not in text
    assert "{%" not in text
    for line in text.splitlines():
        assert not line or line[0] in "#[" or re.match(r"[A-Z][A-Za-z]+=", line), line
    assert text.endswith("\n")


def test_exporters_share_no_port_with_another_kind() -> None:
    assert NODE.port != NVML.port == DCGM.port
    assert NODE.path != NVML.path == DCGM.path


def test_the_document_is_what_the_doctor_reads() -> None:
    data = host_data(node_exporter=True, gpu_exporter="nvml", https_port=8443, firewall=False)
    document = host_document(data, ("speech.example", "10.0.0.5"))
    read = HostDocument.model_validate_json(host_json(document))
    assert set(document) == set(HostDocument.model_fields)
    assert (read.server_names, read.https_port, read.firewall) == (("speech.example", "10.0.0.5"), 8443, False)
    assert (read.gpu, read.words) == (True, True)
    assert read.exporters == ("prometheus-node-exporter.service", "metalscribe-gpu-exporter.service")
    assert read.certificate == Path("/etc/metalscribe/tls/current/fullchain.pem")
    assert read.ca == Path("/etc/metalscribe/tls/ca.crt")
    assert str(DOCUMENT) == "/etc/metalscribe/host.json"


@pytest.mark.parametrize("tls", ["files", "acme"])
def test_other_certificates_have_no_ca_of_ours(tls: str) -> None:
    given = {
        "files": {"tls_certificate": "a.pem", "tls_certificate_key": "a.key"},
        "acme": {"acme_email": "a@b.example"},
    }
    assert host_document(host_data(tls=tls, **given[tls]), ("speech.example",))["ca"] is None


# --- Prometheus ---

INVENTORY = """\
[gpu_hosts]
gpu1 ansible_host=10.1.2.3 node_exporter=true gpu_exporter=nvml
gpu2 ansible_host=10.1.2.4 node_exporter=true https_port=8443 server_names=2001:db8::1
gpu3 ansible_host=10.1.2.5
[elsewhere]
web1 ansible_host=10.1.2.6 node_exporter=true
"""


def scrape(inventory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "metalscribe_provision.monitoring.scrape", str(inventory)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_targets_of_an_inventory(tmp_path: Path) -> None:
    inventory = tmp_path / "inventory.ini"
    inventory.write_text(INVENTORY)
    done = scrape(inventory)
    assert (done.returncode, done.stderr) == (0, "")
    found = {(group["labels"]["instance"], group["labels"]["exporter"]): group for group in json.loads(done.stdout)}
    services = {(name, "service") for name in ("gpu1", "gpu2", "gpu3")}
    assert set(found) == {("gpu1", "node"), ("gpu1", "gpu"), ("gpu2", "node")} | services
    assert found["gpu3", "service"]["labels"]["__metrics_path__"] == "/metrics"
    assert found["gpu1", "gpu"]["targets"] == ["10.1.2.3:443"]
    assert found["gpu1", "gpu"]["labels"]["__metrics_path__"] == "/metrics/gpu"
    assert found["gpu2", "node"]["targets"] == ["[2001:db8::1]:8443"]


def test_a_wrong_inventory_is_an_error(tmp_path: Path) -> None:
    done = scrape(tmp_path / "absent.ini")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: ")
    assert "Traceback" not in done.stderr


def test_the_example_is_about_the_targets_that_are_printed() -> None:
    text = (CHECKOUT / "docs/monitoring/prometheus.yml").read_text()
    assert "metalscribe_provision.monitoring.scrape inventory.ini > /etc/prometheus/metalscribe.json" in text
    assert "files: [/etc/prometheus/metalscribe.json]" in text
    assert "scheme: https" in text
