"""The passthrough deploy executed, interrupted, repeated and undone, on a host in a folder.

Simulated are the boot loader's and the initramfs' tools, and a boot: it takes the command line from where the boot loader reads
it, the bindings from the initramfs, and shows IOMMU groups if the command line turns the IOMMU on. The real ones are the VM lab's.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from fakes import HOST
from folder_host import Cut, FolderHost, joined
from pyinfra.api.exceptions import DeployError

from metalscribe_provision.passthrough.binding import FILES, MODPROBE_FILE
from metalscribe_provision.passthrough.bootloader import CMDLINE_FILE, GRUB_FILE
from metalscribe_provision.passthrough.data import parse_proxmox_data
from metalscribe_provision.passthrough.deploy import passthrough
from metalscribe_provision.passthrough.facts import STATE

TOOLS = "efibootmgr modprobe proxmox-boot-tool reboot uname update-grub update-initramfs"

HOST_SCRIPT = r"""#!/bin/sh
# A host's tools, by the name that this is called as; $ROOT is its root folder, $ROOT/state what it remembers.
cd "$ROOT/state" || exit 1
driver() { rm -f "$ROOT/sys/bus/pci/devices/$1/driver"; [ -z "$2" ] || ln -s "../drivers/$2" "$ROOT/sys/bus/pci/devices/$1/driver"; }
case "${0##*/} $*" in
"uname -r") cat kernel ;;
"uname -s") echo Linux ;;
"modprobe --resolve-alias "*) sed -n "s/^$3 //p" aliases ;;
"update-grub ") GRUB_CMDLINE_LINUX_DEFAULT=; GRUB_CMDLINE_LINUX=
    for file in "$ROOT/etc/default/grub" "$ROOT"/etc/default/grub.d/*.cfg; do [ ! -e "$file" ] || . "$file"; done
    echo "BOOT_IMAGE=/vmlinuz root=/dev/vda1 ro $GRUB_CMDLINE_LINUX $GRUB_CMDLINE_LINUX_DEFAULT" >"$ROOT/boot/grub.cfg" ;;
"proxmox-boot-tool refresh") head -n 1 "$ROOT/etc/kernel/cmdline" >"$ROOT/boot/grub.cfg" ;;
"proxmox-boot-tool status") cat status ;;
"proxmox-boot-tool kernel pin "*) shift 2; echo "$@" >>pins ;;
"efibootmgr -v") cat entries ;;
"update-initramfs -u -k all") rm -rf initramfs; mkdir initramfs
    cp "$ROOT"/etc/modprobe.d/metalscribe-passthrough.conf "$ROOT"/etc/udev/rules.d/10-metalscribe-passthrough.rules initramfs 2>/dev/null; : ;;
"reboot ") echo "5.00 1.00" >"$ROOT/proc/uptime"; echo reboot >>reboots; date +%s%N >"$ROOT/proc/sys/kernel/random/boot_id"
    cp "$ROOT/boot/grub.cfg" "$ROOT/proc/cmdline"; ids=$(sed -n 's/^options vfio-pci ids=\([^ ]*\).*/\1/p' initramfs/*.conf 2>/dev/null)
    mkdir -p "$ROOT/sys/kernel/iommu_groups"
    for device in "$ROOT"/sys/bus/pci/devices/*; do address=${device##*/}; own=$(sed -n "s/^$address //p" drivers)
        if grep -q 'intel_iommu=on' "$ROOT/proc/cmdline"; then group=$(sed -n "s/^$address //p" groups); mkdir -p "$ROOT/sys/kernel/iommu_groups/$group"
            echo identity >"$ROOT/sys/kernel/iommu_groups/$group/type"; ln -sfn "../groups/$group" "$device/iommu_group"
        else rm -rf "$device/iommu_group" "$ROOT"/sys/kernel/iommu_groups/*; fi
        vendor=$(cut -c3- "$device/vendor"); id=$(cut -c3- "$device/device")
        case ",$ids," in *",$vendor:$id,"*) driver "$address" vfio-pci ;; *)
            if grep -qs "\"$address\"" initramfs/*.rules; then driver "$address" vfio-pci; else driver "$address" "$own"; fi ;; esac
    done ;;
*) echo "not simulated: ${0##*/} $*" >&2; exit 127 ;;
esac
"""

GRUB = """\
# /etc/default/grub, with an operator's own ideas
GRUB_DEFAULT=0
GRUB_CMDLINE_LINUX_DEFAULT='quiet splash'   # single quotes, which sed recipes miss
GRUB_CMDLINE_LINUX="console=ttyS0"
"""
DROP_IN = 'GRUB_CMDLINE_LINUX_DEFAULT="$GRUB_CMDLINE_LINUX_DEFAULT mitigations=off"\n'
CMDLINE = "root=ZFS=rpool/ROOT/pve-1 boot=zfs mitigations=off\n"

GPU, SOUND, TWIN, NIC = "0000:01:00.0", "0000:01:00.1", "0000:03:00.0", "0000:02:00.0"


class Pve(FolderHost):
    """A host with an Intel processor, one NVIDIA card, and a network interface."""

    CHANGES = re.compile(
        r"update-grub$|proxmox-boot-tool (refresh|kernel)|update-initramfs -u|^reboot$|^mkdir -p|^rm -|sha256sum .* > |^cat .* > "
    )

    def __init__(self, root: Path, loader: str, *, twin: bool = False, shared: bool = False, vtd: bool = True) -> None:
        super().__init__(root, HOST_SCRIPT, TOOLS.split())
        devices = {GPU: ("10de", "13f1", "030000", "nouveau"), SOUND: ("10de", "0fbb", "040300", "snd_hda_intel")}
        devices[NIC] = ("8086", "10d3", "020000", "e1000e")
        if twin:
            devices[TWIN] = devices[GPU]
        for address, (vendor, device, kind, driver) in devices.items():
            below = f"/sys/bus/pci/devices/{address}"
            for name, text in (
                ("vendor", vendor),
                ("device", device),
                ("class", kind),
                ("subsystem_vendor", "10de"),
                ("subsystem_device", "1153"),
            ):
                self.write(f"{below}/{name}", f"0x{text}\n")
            self.write(f"{below}/modalias", f"pci:{driver}\n")
            (self.root / below[1:] / "driver").symlink_to(f"../drivers/{driver}")
        self.write(f"/sys/bus/pci/devices/{NIC}/net/enp2s0/operstate", "up\n")
        self.write("/sys/class/net/enp2s0/address", "52:54:00:00:00:01\n")
        self.write("/sys/class/net/enp2s0/device", "")
        if vtd:
            self.write("/sys/firmware/acpi/tables/DMAR", "")
        self.write("/proc/cpuinfo", "vendor_id\t: GenuineIntel\n")
        self.write("/proc/uptime", "1000.00 1.00")
        self.write("/proc/sys/kernel/random/boot_id", "first\n")
        self.write("/state/kernel", "6.5.13-6-pve\n")
        self.write("/state/aliases", "".join(f"pci:{one[3]} {one[3]}\n" for one in devices.values()))
        self.write("/state/drivers", "".join(f"{address} {one[3]}\n" for address, one in devices.items()))
        groups = {GPU: 1, SOUND: 1, NIC: 1 if shared else 2, TWIN: 3}
        self.write("/state/groups", "".join(f"{address} {groups[address]}\n" for address in devices))
        self.write(
            "/state/entries",
            "BootCurrent: 0001\nBoot0001* Linux Boot Manager\tFile(\\EFI\\SYSTEMD\\SYSTEMD-BOOTX64.EFI)\n",
        )
        self.write("/state/status", "5FAD-0D7C is configured with: uefi (versions: 6.5.13-6-pve)\n")
        self.write("/etc/default/grub", GRUB)
        self.write("/etc/default/grub.d/10-mine.cfg", DROP_IN)
        self.write("/etc/kernel/cmdline", CMDLINE)
        if loader == "systemd-boot":
            (root / "sys/firmware/efi").mkdir(parents=True)
            (root / "bin/update-grub").unlink()
        else:
            for tool in ("proxmox-boot-tool", "efibootmgr"):
                (root / "bin" / tool).unlink()
        for path in (
            "/boot",
            "/etc/modprobe.d",
            "/etc/modules-load.d",
            "/etc/udev/rules.d",
            "/etc/initramfs-tools/hooks",
            "/var/lib",
        ):
            (root / path[1:]).mkdir(parents=True, exist_ok=True)
        self.shell("update-grub" if loader == "GRUB" else "proxmox-boot-tool refresh")
        self.shell("update-initramfs -u -k all")
        self.write("/proc/cmdline", self.text("/boot/grub.cfg"))

    def run(self, data: dict[str, Any]) -> None:
        """Plan the passthrough's deploy."""
        passthrough(parse_proxmox_data(HOST, data))

    def driver(self, address: str) -> str:
        """Who has a device."""
        link = self.root / f"sys/bus/pci/devices/{address}/driver"
        return link.readlink().name if link.is_symlink() else ""

    def tree(self) -> dict[str, str]:
        """Every file of the boot configuration."""
        roots = (self.root / "etc", self.root / "boot", self.root / "var")
        return {
            str(path.relative_to(self.root)): path.read_text()
            for top in roots
            for path in top.rglob("*")
            if path.is_file()
        }

    @property
    def reboots(self) -> int:
        """How often it has booted."""
        return len(self.text("/state/reboots").splitlines())


@pytest.fixture(autouse=True)
def where(monkeypatch: pytest.MonkeyPatch) -> dict[str, FolderHost]:
    """Where pyinfra's @fake connector finds the host that commands go to."""
    hosts: dict[str, FolderHost] = {}
    joined(monkeypatch, lambda: hosts["host"])
    return hosts


@pytest.fixture
def make(where: dict[str, FolderHost], tmp_path: Path) -> Any:
    """Make the host that the deploys of a test go to; one made again starts anew."""

    def fresh(loader: str = "GRUB", **more: Any) -> Pve:
        shutil.rmtree(tmp_path / "root", ignore_errors=True)
        host = where["host"] = Pve(tmp_path / "root", loader, **more)
        return host

    return fresh


def assert_given_away(host: Pve) -> None:
    """The card is vfio-pci's, the command line has everything, the rest is as it was."""
    assert [host.driver(address) for address in (GPU, SOUND, NIC)] == ["vfio-pci", "vfio-pci", "e1000e"]
    words = host.text("/proc/cmdline").split()
    assert {"mitigations=off", "intel_iommu=on", "iommu=pt"} <= set(words)
    assert len(words) == len(set(words))
    assert host.text("/etc/default/grub") == GRUB
    assert host.text("/etc/default/grub.d/10-mine.cfg") == DROP_IN


@pytest.mark.parametrize("loader", ["GRUB", "systemd-boot"])
def test_given_away_once_and_taken_back_byte_by_byte(make: Any, loader: str) -> None:
    host = make(loader)
    before = host.tree()
    assert host.deploy(allow_reboot=True)
    assert_given_away(host)
    assert host.reboots == 2  # for the groups, then for the card
    assert (host.text(CMDLINE_FILE) == CMDLINE) == (loader == "GRUB")
    assert bool(host.text(GRUB_FILE)) == (loader == "GRUB")
    assert bool(host.text("/state/pins")) == (loader == "systemd-boot")

    assert host.deploy(allow_reboot=True)
    assert host.changes == 0

    assert host.deploy(passthrough="absent", allow_reboot=True)
    assert host.tree() == before
    assert [host.driver(address) for address in (GPU, SOUND, NIC)] == ["nouveau", "snd_hda_intel", "e1000e"]
    assert "iommu=pt" not in host.text("/proc/cmdline")
    assert host.reboots == 3
    assert host.deploy(passthrough="absent", allow_reboot=True)
    assert host.changes == 0


def test_a_host_that_never_had_it_is_left_alone(make: Any) -> None:
    host = make()
    before = host.tree()
    assert host.deploy(passthrough="absent", allow_reboot=True)
    assert host.changes == 0
    assert host.tree() == before


def test_planning_changes_nothing(make: Any) -> None:
    host = make()
    assert host.deploy(dry=True)
    assert host.changes == 0


@pytest.mark.parametrize("loader", ["GRUB", "systemd-boot"])
def test_cut_off_anywhere_it_goes_on_the_next_time(make: Any, loader: str) -> None:
    host = make(loader)
    before = host.tree()
    assert host.deploy(allow_reboot=True)
    there = host.changes
    assert host.deploy(passthrough="absent", allow_reboot=True)
    back = host.changes
    for cut in range(1, there + 1):
        host = make(loader)
        host.cut_at = cut
        with pytest.raises(Cut):
            host.deploy(allow_reboot=True)
        host.cut_at = None
        assert host.deploy(allow_reboot=True), cut
        assert_given_away(host)
        assert host.deploy(allow_reboot=True)
        assert host.changes == 0, cut
        host.cut_at = 1 + cut % back
        with pytest.raises(Cut):
            host.deploy(passthrough="absent", allow_reboot=True)
        host.cut_at = None
        assert host.deploy(passthrough="absent", allow_reboot=True), cut
        assert host.tree() == before, cut
        assert host.driver(GPU) == "nouveau"


def test_an_undoing_may_be_undone(make: Any) -> None:
    host = make()
    assert host.deploy(allow_reboot=True)
    assert not host.deploy(passthrough="absent")  # it may not reboot, and ends before it
    assert not host.text(MODPROBE_FILE)
    assert host.deploy(allow_reboot=True)
    assert_given_away(host)
    host.shell("reboot")
    assert_given_away(host)
    assert host.deploy()
    assert host.changes == 0


def test_without_leave_to_reboot_the_deploy_ends_before_it(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    host = make()
    assert not host.deploy()
    assert "a reboot is due (the IOMMU is off" in caplog.text
    assert not host.text(MODPROBE_FILE)  # not before the groups are known
    host.shell("reboot")
    assert not host.deploy()
    assert "vfio-pci does not have 0000:01:00.0 (10de:13f1, nouveau)" in caplog.text
    host.shell("reboot")
    assert host.deploy()
    assert_given_away(host)


def test_a_shared_group_is_known_after_the_first_reboot_and_nothing_is_bound(
    make: Any, caplog: pytest.LogCaptureFixture
) -> None:
    host = make(shared=True)
    assert not host.deploy(allow_reboot=True)
    assert "0000:02:00.0 (8086:10d3, e1000e) in group 1" in caplog.text
    assert not any(host.text(path) for path in FILES)
    assert host.driver(GPU) == "nouveau"
    # From now on it is known before anything.
    with pytest.raises(DeployError, match=r"(?s)0000:02:00\.0 .*Nothing was changed"):
        host.deploy(allow_reboot=True)
    assert host.changes == 0


def test_a_twin_stays_with_its_driver(make: Any) -> None:
    host = make(twin=True)
    with pytest.raises(DeployError, match="2 devices that nvidia could mean"):
        host.deploy(allow_reboot=True)
    assert host.changes == 0
    assert host.deploy(passthrough_devices="0000:01:00", allow_reboot=True)
    assert_given_away(host)
    assert host.driver(TWIN) == "nouveau"


def test_a_firmware_without_an_iommu_is_refused(make: Any) -> None:
    host = make(vtd=False)
    with pytest.raises(DeployError, match=r"enable VT-d .*Nothing was changed"):
        host.deploy(allow_reboot=True)
    assert host.changes == 0


def test_a_renamed_interface_ends_the_deploy(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    host = make()
    assert not host.deploy()
    host.shell("reboot")
    shutil.move(host.root / "sys/class/net/enp2s0", host.root / "sys/class/net/enp3s0")
    assert not host.deploy(allow_reboot=True)
    assert "enp2s0 is now enp3s0" in caplog.text
    assert host.text(f"{STATE}/interfaces") == "52:54:00:00:00:01 enp2s0\n"
