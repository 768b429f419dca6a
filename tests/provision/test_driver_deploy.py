"""The driver deploy executed, interrupted and repeated, on a host in a folder.

What cannot be there is simulated under the names of apt, the kernel's tools, systemctl and nvidia-smi.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from driver_hosts import CANDIDATES, CODENAMES, KERNELS, RTX_4090, SOURCES
from fakes import DISTRIBUTIONS, HOST
from folder_host import Cut, FolderHost, joined

from metalscribe_provision.driver.configuration import NOUVEAU_FILE, PERSISTENCE_FILE, UNATTENDED_UPGRADES_FILE
from metalscribe_provision.driver.deploy import driver
from metalscribe_provision.driver.sources import OWN_FILE
from metalscribe_provision.hostdata import parse_host_data

TOOLS = "apt-cache apt-get apt-mark dpkg dpkg-query ldconfig modinfo modprobe mokutil nvidia-modprobe nvidia-smi reboot systemctl uname update-initramfs"

HOST_SCRIPT = r"""#!/bin/sh
# A host's tools, by the name that this is called as; $ROOT is its root folder, $ROOT/state what it remembers.
cd "$ROOT/state" || exit 1
module() { [ -e installed ] && grep -qxE 'nvidia-kernel-dkms|linux-modules-nvidia-.*' installed; }
load() { mkdir -p "$ROOT/sys/module/nvidia" "$ROOT/proc/driver/nvidia"; cp version "$ROOT/sys/module/nvidia/version"
    cp nvrm "$ROOT/proc/driver/nvidia/version"; rm -f "$ROOT"/sys/bus/pci/devices/*/driver
    ln -s ../drivers/nvidia "$ROOT/sys/bus/pci/devices/0000:01:00.0/driver"; }
case "${0##*/} $*" in
"uname -r") cat kernel ;;
"apt-cache pkgnames") [ ! -e lists ] || sed -n 's/^Package: //p' candidates ;;
"apt-cache show"*) [ ! -e lists ] || cat candidates ;;
"apt-get "*" update") ! grep -qs non-free "$ROOT/etc/apt/sources.list.d/metalscribe-nvidia.sources" && [ ! -e ubuntu ] || touch lists ;;
"apt-get "*" install "*)
    [ -e lists ] && [ ! -e unconfigured ] || exit 100
    if [ -e half ]; then rm half; touch unconfigured; exit 100; fi
    for name in ${*##* install }; do
        case $name in
            *-) grep -vxF "${name%-}" installed >kept; mv kept installed ;;
            *) echo "$name" >>installed ;;
        esac
    done
    mkdir -p "$ROOT/lib/modules/$(cat newest)/build"; touch "$ROOT/lib/modules/$(cat newest)/nvidia-current.ko" "$ROOT/boot/vmlinuz-$(cat newest)" ;;
"dpkg --configure -a") rm -f unconfigured ;;
"dpkg-query -W "*) [ ! -e installed ] || sed 's/^/installed /' installed ;;
"apt-mark showhold") [ ! -e held ] || cat held ;;
"apt-mark hold "*) shift; printf '%s\n' "$@" >>held ;;
"modinfo -F version "*) cat version ;;
"modinfo -F license "*) cat licence ;;
"ldconfig -p") ! module || echo "	libnvidia-ml.so.1 (libc6,x86-64) => $ROOT/usr/lib/libnvidia-ml.so.$(cat version)" ;;
"update-initramfs -u -k all") touch "$ROOT"/boot/initrd.img-* ;;
"modprobe nvidia") [ -e "$ROOT/lib/modules/$(cat kernel)/nvidia-current.ko" ] && load ;;
"nvidia-modprobe -u -c 0") touch nodes ;;
"uname -s") echo Linux ;;
"reboot ") echo "5.00 1.00" >"$ROOT/proc/uptime"; cp newest kernel; echo reboot >>reboots; rm -rf "$ROOT/sys/module/nvidia" nodes active; touch rebooted
    [ ! -e "$ROOT/etc/modprobe.d/metalscribe-nouveau.conf" ] || rm -f "$ROOT"/sys/bus/pci/devices/*/driver
    ! module || load; [ ! -e enabled ] || touch active ;;
"systemctl show "*) ! module || echo LoadState=loaded; [ ! -e active ] || echo ActiveState=active; echo NeedDaemonReload=no ;;
"systemctl is-enabled "*) [ ! -e enabled ] || echo enabled ;;
"systemctl enable "*) touch enabled ;;
"systemctl start "* | "systemctl restart "*) touch active ;;
"nvidia-smi "*) [ -e "$ROOT/sys/module/nvidia/version" ] || { echo "NVIDIA-SMI has failed"; exit 9; }
    mode=Disabled; [ ! -e active ] || mode=Enabled
    echo "00000000:01:00.0, NVIDIA GeForce RTX 4090, $(cat "$ROOT/sys/module/nvidia/version"), $mode" ;;
"mokutil "*) exit 1 ;;
*) echo "not simulated: ${0##*/} $*" >&2; exit 127 ;;
esac
"""


class DriverHost(FolderHost):
    """Debian or Ubuntu with one GeForce RTX 4090."""

    CHANGES = re.compile(
        r"apt-get .* (update|install) |apt-get .* update$|apt-mark hold|update-initramfs -u|modprobe nvidia|^reboot$"
        r"|systemctl (enable|start|restart|daemon-reload)|^(chmod|mkdir|rm) "
    )
    PATHS = "etc|sys|boot|lib/modules|proc"

    def __init__(self, root: Path, distribution: str, *, nouveau: bool = False, kernel: str | None = None) -> None:
        super().__init__(root, HOST_SCRIPT, TOOLS.split())
        name, newest = distribution.partition("-")[0], KERNELS[distribution]
        running = kernel or newest
        version, flavour = {
            "debian": ("535.309.01", ("x86_64 Kernel Module", "NVIDIA")),
            "ubuntu": ("590.48.01", ("Open Kernel Module for x86_64", "Dual MIT/GPL")),
        }[name]
        sources = SOURCES[name].format(CODENAMES[distribution]).splitlines(keepends=True)
        apt = {"debian": "etc/apt/sources.list.d/debian.sources", "ubuntu": "etc/apt/sources.list"}[name]
        texts = {
            "etc/os-release": "\n".join(DISTRIBUTIONS[distribution]["/etc/os-release"]),
            apt: "".join(sources[1:]),
            "sys/bus/pci/devices/0000:01:00.0/vendor": "0x10de\n",
            "sys/bus/pci/devices/0000:01:00.0/device": f"0x{RTX_4090:04x}\n",
            "sys/bus/pci/devices/0000:01:00.0/class": "0x030000\n",
            "sys/bus/pci/devices/0000:02:00.0/vendor": "0x8086\n",
            "proc/uptime": "1000.00 1.00",
            f"boot/vmlinuz-{running}": "",
            f"boot/initrd.img-{running}": "",
            "usr/lib/libnvidia-ml.so." + version: "",
            "state/candidates": CANDIDATES[distribution],
            "state/kernel": running,
            "state/newest": newest,
            "state/version": version,
            "state/nvrm": f"NVRM version: NVIDIA UNIX {flavour[0]}  {version}\n",
            "state/licence": flavour[1],
        }
        for path, text in texts.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text)
        os.utime(root / f"boot/initrd.img-{running}", (0, 0))
        if name == "ubuntu":
            (root / "state/ubuntu").touch()
        if nouveau:
            (root / "sys/bus/pci/devices/0000:01:00.0/driver").symlink_to("../drivers/nouveau")
        (root / "lib/modules").mkdir(parents=True)

    def run(self, data: dict[str, Any]) -> None:
        """Plan the driver's deploy."""
        driver(data=parse_host_data(HOST, data, environment={}))


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch) -> dict[str, FolderHost]:
    """Where pyinfra's @fake connector finds the host that commands go to."""
    where: dict[str, FolderHost] = {}
    joined(monkeypatch, lambda: where["host"])
    return where


@pytest.fixture
def make(folder: dict[str, FolderHost], tmp_path: Path) -> Any:
    """Make the host that the deploys of a test go to; one made again starts anew."""

    def fresh(distribution: str = "debian-12", **more: Any) -> FolderHost:
        shutil.rmtree(tmp_path / "root", ignore_errors=True)
        folder["host"] = DriverHost(tmp_path / "root", distribution, **more)
        return folder["host"]

    return fresh


def assert_ready(host: FolderHost) -> None:
    """The driver is there, in use, and stays as it is."""
    assert host.text("/sys/module/nvidia/version") == host.text("/state/version")
    assert (host.root / "state/enabled").exists()
    assert (host.root / "state/active").exists()
    held = host.text("/state/held").split()
    assert len(held) == len(set(held)) >= 4
    assert "blacklist nouveau" in host.text(NOUVEAU_FILE)
    assert "nvidia-" in host.text(UNATTENDED_UPGRADES_FILE)
    for image in host.root.glob("boot/initrd.img-*"):
        assert image.stat().st_mtime >= (host.root / NOUVEAU_FILE.removeprefix("/")).stat().st_mtime


@pytest.mark.parametrize("distribution", ["debian-12", "ubuntu-24.04"])
def test_a_fresh_host_gets_its_driver_and_the_second_run_changes_nothing(make: Any, distribution: str) -> None:
    host = make(distribution)
    assert host.deploy()
    assert_ready(host)
    assert not (host.root / "state/rebooted").exists()
    assert ("non-free" in host.text(OWN_FILE)) == (distribution == "debian-12")
    assert ("StopWhenUnneeded=no" in host.text(PERSISTENCE_FILE)) == (distribution == "ubuntu-24.04")
    assert host.deploy()
    assert host.changes == 0


def test_planning_changes_nothing(make: Any) -> None:
    host = make()
    assert host.deploy(dry=True)
    assert host.changes == 0


def test_cut_off_anywhere_it_goes_on_the_next_time(make: Any) -> None:
    host = make(nouveau=True)
    assert host.deploy(allow_reboot=True)
    whole = host.changes
    assert whole >= 10
    for cut in range(1, whole + 1, 3):
        host = make(nouveau=True)
        host.cut_at = cut
        with pytest.raises(Cut):
            host.deploy(allow_reboot=True)
        host.cut_at = None
        assert host.deploy(allow_reboot=True), cut
        assert_ready(host)
        assert host.text("/state/reboots").count("reboot") == 1
        assert host.deploy(allow_reboot=True)
        assert host.changes == 0, cut


def test_packages_that_were_cut_off_are_set_up_first(make: Any) -> None:
    host = make()
    (host.root / "state/half").touch()
    assert not host.deploy()
    assert (host.root / "state/unconfigured").exists()
    assert host.deploy()
    assert_ready(host)


def test_without_leave_to_reboot_the_deploy_ends_there_and_the_next_one_goes_on(
    make: Any, caplog: pytest.LogCaptureFixture
) -> None:
    host = make(nouveau=True)
    assert not host.deploy()
    assert "the driver will need a reboot (nouveau has the card until then)" in caplog.text
    assert "reboot the host and deploy again, or set allow_reboot=true" in caplog.text
    assert "nvidia-kernel-dkms" in host.text("/state/held")
    assert not (host.root / "state/rebooted").exists()
    host.shell("reboot")
    assert host.deploy()
    assert_ready(host)


def test_a_kernel_whose_headers_are_gone_is_replaced(make: Any) -> None:
    host = make(kernel="6.1.0-13-amd64")
    assert host.deploy(allow_reboot=True)
    assert "linux-image-amd64" in host.text("/state/installed")
    assert host.text("/state/kernel") == KERNELS["debian-12"]
    assert_ready(host)


def test_a_module_of_another_version_calls_for_a_reboot(make: Any) -> None:
    host = make()
    assert host.deploy()
    (host.root / "sys/module/nvidia/version").write_text("535.261.03")
    assert not host.deploy()
    assert not (host.root / "state/rebooted").exists()
    assert host.deploy(allow_reboot=True)
    assert_ready(host)


def test_a_module_that_was_not_built_is_reported(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    host = make()
    assert host.deploy()
    shutil.rmtree(host.root / "lib/modules")
    shutil.rmtree(host.root / "sys/module/nvidia")
    (host.root / "lib/modules").mkdir()
    assert not host.deploy()
    assert "there is no kernel module 535.309.01 (proprietary) for 6.1.0-56-amd64 (found: none)" in caplog.text


def test_no_driver_for_these_lists_is_said_before_anything_is_installed(
    make: Any, caplog: pytest.LogCaptureFixture
) -> None:
    host = make("ubuntu-24.04")
    (host.root / "state/candidates").write_text("Package: libcuda1\nVersion: 1-1\n")
    assert not host.deploy()
    assert "apt has no NVIDIA driver for servers" in caplog.text
    assert not host.text("/state/installed")
    assert not host.text(NOUVEAU_FILE)


def test_sources_that_have_everything_since_need_no_file_of_ours(make: Any) -> None:
    host = make()
    assert host.deploy()
    sources = host.root / "etc/apt/sources.list.d/debian.sources"
    sources.write_text(sources.read_text().replace("main", "main contrib non-free non-free-firmware"))
    assert host.deploy()
    assert host.changes == 1
    assert not host.text(OWN_FILE)
    assert host.deploy()
    assert host.changes == 0


def test_a_host_that_has_its_driver_asks_nothing_of_the_archive(make: Any) -> None:
    host = make()
    assert host.deploy()
    (host.root / OWN_FILE.removeprefix("/")).unlink()
    (host.root / "etc/apt/sources.list.d/debian.sources").unlink()
    assert host.deploy()
    assert host.changes == 0
    sources = SOURCES["debian"].format("bookworm").partition("\n")[2]
    (host.root / "etc/apt/sources.list.d/debian.sources").write_text(sources)
    assert host.deploy()
    assert host.changes == 0


def test_a_host_without_an_archive_is_told_so(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    host = make()
    (host.root / "etc/apt/sources.list.d/debian.sources").unlink()
    assert not host.deploy()
    assert "no apt source on this host has component main of bookworm" in caplog.text
    assert host.changes == 0


def test_an_existing_driver_is_proven_and_left_alone(make: Any) -> None:
    host = make()
    assert host.deploy()
    assert host.deploy(driver="existing")
    assert host.changes == 0


def test_an_existing_driver_that_is_not_there_is_told(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    host = make()
    assert not host.deploy(driver="existing")
    assert "driver=existing installs nothing, driver=auto would" in caplog.text
    assert not host.text("/state/installed")
