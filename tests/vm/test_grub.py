"""The passthrough's deploy on a host with a BIOS and GRUB, and a card that is told by its id: refused, given away, taken back.

Simulated are the devices: QEMU has none of NVIDIA's, so that they are named by id. Kernel, GRUB, initramfs-tools, udev, vfio and the
deploy are real.
"""

from __future__ import annotations

from typing import Final

import pytest

from metalscribe_provision.passthrough.bootloader import GRUB_FILE
from metalscribe_provision.passthrough.facts import STATE
from vm.conftest import MakeMachine
from vm.golden import GRUB, GRUB_DROP_IN, Golden
from vm.machine import Hardware, Machine
from vm.passthrough import NIC, PORTS, Deploy, Given, State, addresses, drivers, group_of

USB: Final = "1033:0194"  # xhci_hcd
SHARED: Final = "8086:100e"  # e1000, two of them behind one bridge to conventional PCI

HARDWARE: Final = Hardware(
    devices=(
        *PORTS,
        *("-device", "e1000e,bus=rp1", "-device", "nec-usb-xhci,bus=rp2", "-device", "pcie-pci-bridge,id=pci,bus=rp3"),
        *("-device", "e1000,bus=pci,addr=1", "-device", "e1000,bus=pci,addr=2"),
    )
)


@pytest.fixture(scope="module")
def grub_host(make_machine: MakeMachine, disks: Golden) -> Machine:
    """A host with a card that is alone in its group, another device, and two behind one bridge."""
    host = make_machine("grub", disks.grub, HARDWARE)
    host.run("update-grub", timeout=120)  # as Debian's installer does
    return host


@pytest.fixture(scope="module")
def grub_given(grub_host: Machine, deploy: Deploy) -> Given:
    """The card with virtual machines."""
    before = State.of(grub_host)
    [address] = addresses(grub_host, NIC)
    outcome = deploy(grub_host, NIC, allow_reboot=True).succeeded()
    return Given(grub_host, address, before, outcome)


@pytest.mark.parametrize(
    ("devices", "words"),
    [
        (None, "no NVIDIA GPU is on this host's PCI bus"),
        ("8086:ffff", "there is no PCI device with the id 8086:ffff"),
        (SHARED, "there are 2 devices that 8086:100e could mean"),
    ],
)
def test_what_cannot_be_told_is_refused(grub_host: Machine, deploy: Deploy, devices: str | None, words: str) -> None:
    before = State.of(grub_host)
    outcome = deploy(grub_host, devices, allow_reboot=True)
    assert outcome.status != 0
    assert words in outcome.printed
    assert "Nothing was changed" in outcome.printed
    assert "Traceback" not in outcome.printed
    assert State.of(grub_host) == before


def test_a_group_shared_with_a_stranger_is_refused_and_the_stranger_named(grub_host: Machine, deploy: Deploy) -> None:
    before = State.of(grub_host)
    mine, stranger = addresses(grub_host, SHARED)
    grub_host.run(f"ip link set $(ls /sys/bus/pci/devices/{mine}/net) down")
    outcome = deploy(grub_host, mine.removesuffix(".0"), allow_reboot=True)
    assert outcome.status != 0
    assert "shares an IOMMU group with devices that stay on this host" in outcome.printed
    assert f"  - {stranger} ({SHARED}, e1000) in group" in outcome.printed
    assert "Traceback" not in outcome.printed
    assert State.of(grub_host) == before


def test_given_away_with_grub(grub_given: Given) -> None:
    host = grub_given.host
    arguments = host.text("/proc/cmdline").split()
    assert {"intel_iommu=on", "iommu=pt", "mitigations=off", "quiet", "console=ttyS0", "net.ifnames=1"} <= set(
        arguments
    )
    assert len(arguments) == len(set(arguments))
    assert host.text("/etc/default/grub") == GRUB
    assert host.text("/etc/default/grub.d/10-mine.cfg") == GRUB_DROP_IN
    now = drivers(host)
    assert now[grub_given.address] == "vfio-pci"
    assert [now[address] for address in addresses(host, USB)] == ["xhci_hcd"]
    others = {address: driver for address, driver in grub_given.before.drivers.items() if address != grub_given.address}
    assert {address: driver for address, driver in now.items() if address != grub_given.address} == others
    assert group_of(host, grub_given.address) == ([grub_given.address], "identity")
    assert "Default domain type: Passthrough (set via kernel command line)" in host.run("dmesg").stdout


def test_a_second_run_changes_nothing(grub_given: Given, deploy: Deploy) -> None:
    boot, state = grub_given.host.boot_id(), State.of(grub_given.host)
    outcome = deploy(grub_given.host, NIC, allow_reboot=True).succeeded()
    assert outcome.changes == []
    assert (grub_given.host.boot_id(), State.of(grub_given.host)) == (boot, state)


def test_taken_back_byte_by_byte(grub_given: Given, deploy: Deploy) -> None:
    host = grub_given.host
    deploy(host, NIC, passthrough="absent", allow_reboot=True).succeeded()
    assert State.of(host) == grub_given.before
    assert not {"intel_iommu=on", "iommu=pt"} & set(host.text("/proc/cmdline").split())
    assert host.run(f"ls {GRUB_FILE} {STATE}", check=False).stdout == ""
    assert deploy(host, NIC, passthrough="absent", allow_reboot=True).succeeded().changes == []


def test_firmware_without_an_iommu_is_refused_with_what_to_enable(
    make_machine: MakeMachine, disks: Golden, deploy: Deploy
) -> None:
    host = make_machine("plain", disks.grub, Hardware(iommu=False, devices=(*PORTS, "-device", "e1000e,bus=rp1")))
    before = State.of(host)
    outcome = deploy(host, NIC, allow_reboot=True)
    assert outcome.status != 0
    assert "its firmware has no IOMMU (there is no ACPI table DMAR): enable VT-d" in outcome.printed
    assert "Traceback" not in outcome.printed
    assert State.of(host) == before
