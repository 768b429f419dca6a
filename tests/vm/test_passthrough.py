"""The passthrough's deploy on hosts with a boot loader, an initramfs and an IOMMU of their own: given away, refused, taken back.

Simulated are the devices (QEMU has none of NVIDIA's, so that they are named by id) and, on the host with systemd-boot, Proxmox' own tool
(``files/proxmox-boot-tool``); kernel, GRUB, systemd-boot, initramfs-tools, udev, vfio and the deploy are real.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import pytest

from lab.controller import Controller, Outcome
from metalscribe_provision.passthrough.bootloader import CMDLINE_FILE, GRUB_FILE
from metalscribe_provision.passthrough.facts import STATE
from vm.conftest import MakeMachine
from vm.disk import ESP_UUID
from vm.golden import CMDLINE, GRUB, GRUB_DROP_IN, Golden
from vm.machine import Hardware, Machine

NIC: Final = "8086:10d3"  # e1000e
USB: Final = "1033:0194"  # xhci_hcd
SHARED: Final = "8086:100e"  # e1000, two of them behind one bridge to conventional PCI

PORTS: Final = tuple(
    word for port in (1, 2, 3) for word in ("-device", f"pcie-root-port,id=rp{port},chassis={port},slot={port}")
)
GRUB_HARDWARE: Final = Hardware(
    devices=(
        *PORTS,
        *("-device", "e1000e,bus=rp1", "-device", "nec-usb-xhci,bus=rp2", "-device", "pcie-pci-bridge,id=pci,bus=rp3"),
        *("-device", "e1000,bus=pci,addr=1", "-device", "e1000,bus=pci,addr=2"),
    )
)
TWINS_HARDWARE: Final = Hardware(efi=True, devices=(*PORTS, "-device", "e1000e,bus=rp1", "-device", "e1000e,bus=rp2"))

BOOT_CONFIGURATION: Final = (
    *("/etc/default/grub", "/etc/default/grub.d", "/boot/grub/grub.cfg", "/etc/kernel", "/etc/initramfs-tools"),
    *("/etc/modprobe.d", "/etc/modules-load.d", "/etc/modules", "/etc/udev/rules.d"),
)
WITHIN: Final = 900.0  # seconds for a deploy, with an initramfs and a reboot

Deploy = Callable[..., Outcome]


@dataclass(frozen=True, slots=True)
class State:
    """What a host starts with: its boot configuration's files by digest, and who has which device."""

    files: Mapping[str, str]
    drivers: Mapping[str, str]

    @classmethod
    def of(cls, host: Machine) -> State:
        """As it is now. The EFI partition's entries are among the files, where there is one."""
        host.run("systemctl is-system-running --wait", check=False, timeout=120)  # the last boot's work is done
        esp = f"/dev/disk/by-uuid/{ESP_UUID}"
        host.run(f"[ ! -e {esp} ] || mountpoint --quiet /mnt || mount -o ro {esp} /mnt")
        listed = host.run(
            f"find {' '.join(BOOT_CONFIGURATION)} /mnt/loader -type f -exec sha256sum {{}} + 2>/dev/null; umount /mnt 2>/dev/null; true"
        )
        lines = (line.split(maxsplit=1) for line in listed.stdout.splitlines())
        return cls({path: digest for digest, path in lines}, drivers(host))


def drivers(host: Machine) -> dict[str, str]:
    """PCI address → driver, empty where nobody has the device."""
    listed = host.run(
        'for device in /sys/bus/pci/devices/*; do driver=$(readlink "$device/driver"); echo "${device##*/} ${driver##*/}"; done'
    )
    return {address: driver for address, _, driver in (line.partition(" ") for line in listed.stdout.splitlines())}


def addresses(host: Machine, device: str) -> list[str]:
    """The PCI addresses of the devices with an id."""
    return [line.split()[0] for line in host.run(f"lspci -Dn -d {device}").stdout.splitlines()]


def group_of(host: Machine, address: str) -> tuple[list[str], str]:
    """Who is in a device's IOMMU group, bridges apart, and its type."""
    group = f"/sys/bus/pci/devices/{address}/iommu_group"
    members = host.run(
        f"for device in $(ls {group}/devices/); do case $(cat /sys/bus/pci/devices/$device/class) in 0x0604*) ;; *) echo $device;; esac; done"
    )
    return members.stdout.split(), host.text(f"{group}/type").strip()


@pytest.fixture(scope="module")
def deploy(controller: Controller) -> Deploy:
    """Run ``proxmox_host.py`` on a host, with what its inventory says."""

    def run(host: Machine, devices: str | None = None, **variables: object) -> Outcome:
        named = {} if devices is None else {"passthrough_devices": devices}
        inventory = controller.inventory([host], {**named, **variables}, group="proxmox_hosts")
        return controller.deploy(inventory, script="proxmox_host.py", within=WITHIN)

    return run


@dataclass(frozen=True, slots=True)
class Given:
    """A host whose card was given away.

    Attributes:
        address: the card's.
        before: the host as it was.
    """

    host: Machine
    address: str
    before: State
    outcome: Outcome


# --- a BIOS with GRUB, a card that is told by its id ---


@pytest.fixture(scope="module")
def grub_host(make_machine: MakeMachine, disks: Golden) -> Machine:
    """A host with a card that is alone in its group, another device, and two behind one bridge."""
    host = make_machine("grub", disks.grub, GRUB_HARDWARE)
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


# --- EFI with systemd-boot, a card that is told by its address because it has a twin ---


@pytest.fixture(scope="module")
def efi_given(make_machine: MakeMachine, disks: Golden, deploy: Deploy) -> Given:
    """One of two equal cards with virtual machines."""
    host = make_machine("efi", disks.systemd_boot, TWINS_HARDWARE)
    # As `proxmox-boot-tool init` does it: the firmware's entry for systemd-boot, and what the EFI partition has.
    host.run(
        "efibootmgr --quiet --create --disk /dev/vda --part 1 --label 'Linux Boot Manager' "
        "--loader '\\EFI\\systemd\\systemd-bootx64.efi' && proxmox-boot-tool refresh"
    )
    before = State.of(host)
    address = addresses(host, NIC)[0]
    outcome = deploy(host, address, allow_reboot=True).succeeded()
    return Given(host, address, before, outcome)


def test_given_away_with_systemd_boot(efi_given: Given) -> None:
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


def test_a_second_run_changes_nothing_with_systemd_boot(efi_given: Given, deploy: Deploy) -> None:
    boot, state = efi_given.host.boot_id(), State.of(efi_given.host)
    assert deploy(efi_given.host, efi_given.address, allow_reboot=True).succeeded().changes == []
    assert (efi_given.host.boot_id(), State.of(efi_given.host)) == (boot, state)


def test_taken_back_byte_by_byte_with_systemd_boot(efi_given: Given, deploy: Deploy) -> None:
    host = efi_given.host
    deploy(host, efi_given.address, passthrough="absent", allow_reboot=True).succeeded()
    assert State.of(host) == efi_given.before
    assert host.text(CMDLINE_FILE) == CMDLINE
    assert not {"intel_iommu=on", "iommu=pt"} & set(host.text("/proc/cmdline").split())


# --- no IOMMU ---


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
