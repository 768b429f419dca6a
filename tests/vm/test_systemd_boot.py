"""The passthrough's deploy on a host with EFI and systemd-boot, and a card that is told by its address because it has a twin.

Simulated are the devices and Proxmox' own tool (``files/proxmox-boot-tool``); kernel, systemd-boot, initramfs-tools, udev, vfio and the
deploy are real.
"""

from __future__ import annotations

from typing import Final

import pytest

from metalscribe_provision.passthrough.bootloader import CMDLINE_FILE
from vm.conftest import MakeMachine
from vm.golden import CMDLINE, Golden
from vm.machine import Hardware
from vm.passthrough import NIC, PORTS, Deploy, Given, State, addresses, drivers, group_of

HARDWARE: Final = Hardware(efi=True, devices=(*PORTS, "-device", "e1000e,bus=rp1", "-device", "e1000e,bus=rp2"))


@pytest.fixture(scope="module")
def efi_given(make_machine: MakeMachine, disks: Golden, deploy: Deploy) -> Given:
    """One of two equal cards with virtual machines."""
    host = make_machine("efi", disks.systemd_boot, HARDWARE)
    # As `proxmox-boot-tool init` does it: the firmware's entry for systemd-boot, and what the EFI partition has.
    host.run(
        "efibootmgr --quiet --create --disk /dev/vda --part 1 --label 'Linux Boot Manager' "
        "--loader '\\EFI\\systemd\\systemd-bootx64.efi' && proxmox-boot-tool refresh"
    )
    before = State.of(host)
    address = addresses(host, NIC)[0]
    outcome = deploy(host, address, allow_reboot=True).succeeded()
    return Given(host, address, before, outcome)


def test_given_away(efi_given: Given) -> None:
    host = efi_given.host
    assert host.text(CMDLINE_FILE) == f"{CMDLINE.rstrip()} intel_iommu=on iommu=pt\n"
    assert {"intel_iommu=on", "iommu=pt", "mitigations=off"} <= set(host.text("/proc/cmdline").split())
    now = drivers(host)
    assert [now[address] for address in addresses(host, NIC)] == ["vfio-pci", "e1000e"]
    assert {**now, efi_given.address: "e1000e"} == efi_given.before.drivers
    assert group_of(host, efi_given.address) == ([efi_given.address], "identity")
    # The kernel that ran was pinned for the one boot, and the pin is gone.
    host.run("systemctl is-system-running --wait", check=False, timeout=120)
    assert host.run("ls /etc/kernel/next-boot-pin", check=False).returncode != 0
    assert "Finished" in host.run("journalctl --unit proxmox-boot-cleanup --no-pager").stdout


def test_a_second_run_changes_nothing(efi_given: Given, deploy: Deploy) -> None:
    boot, state = efi_given.host.boot_id(), State.of(efi_given.host)
    assert deploy(efi_given.host, efi_given.address, allow_reboot=True).succeeded().changes == []
    assert (efi_given.host.boot_id(), State.of(efi_given.host)) == (boot, state)


def test_taken_back_byte_by_byte(efi_given: Given, deploy: Deploy) -> None:
    host = efi_given.host
    deploy(host, efi_given.address, passthrough="absent", allow_reboot=True).succeeded()
    assert State.of(host) == efi_given.before
    assert host.text(CMDLINE_FILE) == CMDLINE
    assert not {"intel_iommu=on", "iommu=pt"} & set(host.text("/proc/cmdline").split())
