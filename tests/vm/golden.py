"""The disks that virtual machines start from, built once and kept: a host with GRUB, one with systemd-boot, and a cloud image."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lab.access import make_key
from lab.image import BASE, INSTALLABLE, SUITE, Recipe, image, kept, key
from vm import disk
from vm.disk import ESP_UUID, LABEL, efi_disk, grub_disk

HOST: Final = "pve1"
"""What the hosts are called."""

_EARLY: Final = ("virtio_pci", "virtio_blk", "virtio_scsi", "sd_mod", "ext4", "vfio_pci")

MACHINE: Final = Recipe(
    "machine",
    installed=(
        *BASE,
        *("cloud-init", "cloud-guest-utils", "efibootmgr", "fdisk", "grub-common", "grub-pc-bin", "grub2-common"),
        *("initramfs-tools", "linux-image-amd64"),
    ),
    installable=(*INSTALLABLE, "qemu-guest-agent"),
    files={
        # An initramfs with everything takes minutes to make in a machine without virtualisation.
        "etc/initramfs-tools/conf.d/lab": "MODULES=list\nCOMPRESS=gzip\n",
        "usr/share/initramfs-tools/modules.d/lab": "".join(f"{module}\n" for module in _EARLY),
    },
)

GRUB: Final = """\
# How this host starts; not written by any deploy
GRUB_DEFAULT=0
GRUB_TIMEOUT=0
GRUB_TERMINAL=serial
GRUB_DISABLE_OS_PROBER=true
GRUB_CMDLINE_LINUX_DEFAULT='quiet'   # single quotes, which recipes with sed miss
GRUB_CMDLINE_LINUX="console=ttyS0 net.ifnames=1"
"""
GRUB_DROP_IN: Final = 'GRUB_CMDLINE_LINUX_DEFAULT="$GRUB_CMDLINE_LINUX_DEFAULT mitigations=off"\n'
CMDLINE: Final = f"root=LABEL={LABEL} ro console=ttyS0 mitigations=off\n"

_FAST: Final = "mitigations=off"
"""Without it each system call changes the page table, which QEMU without hardware virtualisation pays for dearly."""

_UNUSED: Final = (
    *("sound", "drivers/gpu", "drivers/infiniband", "drivers/media", "drivers/net/wireless", "drivers/staging"),
    *("drivers/isdn", "drivers/iio", "net/mac80211", "net/wireless"),
)
"""Kernel modules that no test has to do with: most of their bytes."""

_SLEEPING: Final = (
    *(
        "apt-daily.timer",
        "apt-daily-upgrade.timer",
        "dpkg-db-backup.timer",
        "e2scrub_all.timer",
        "e2scrub_reap.service",
    ),
    *("fstrim.timer", "logrotate.timer", "serial-getty@ttyS0.service"),
)

_HOST_SIZE: Final = 1600  # MiB
_CLOUD_SIZE: Final = 1600
_FILES: Final = Path(__file__).parent / "files"


@dataclass(frozen=True, slots=True)
class Golden:
    """Where they are.

    Attributes:
        folder: that they are in, with the key that the hosts let in.
    """

    folder: Path

    @property
    def key(self) -> Path:
        """The private key; hosts know the public one from their making on."""
        return self.folder / "id_ed25519"

    @property
    def host_key(self) -> str:
        """The public key that hosts are known by."""
        return (self.folder / "ssh_host_ed25519_key.pub").read_text(encoding="ascii")

    @property
    def grub(self) -> Path:
        """A host that a BIOS starts with GRUB, whose configuration has arguments, comments and a drop-in of its own."""
        return self.folder / "grub.img"

    @property
    def systemd_boot(self) -> Path:
        """A host that EFI firmware starts with systemd-boot, by way of proxmox-boot-tool (a stand-in, ``files/proxmox-boot-tool``)."""
        return self.folder / "systemd-boot.img"

    @property
    def cloud(self) -> Path:
        """A cloud image: cloud-init, no user, no keys; as qcow2, for EFI firmware."""
        return self.folder / "cloud.qcow2"


@contextmanager
def golden() -> Iterator[Golden]:
    """The disks, made if they are not there yet; kept as long as the context lasts.

    Raises:
        RuntimeError: they could not be made.
    """
    digest = hashlib.sha256(key(MACHINE).encode())
    for file in (Path(__file__), Path(disk.__file__), *sorted(_FILES.iterdir())):
        digest.update(file.read_bytes())

    def build(folder: Path) -> None:
        with image(MACHINE) as root:
            _build(root, folder)

    with kept(f"{SUITE}-disks", f"{SUITE}-disks-{digest.hexdigest()[:16]}", build) as folder:
        yield Golden(folder)


def _build(root: Path, folder: Path) -> None:
    folder.mkdir()
    made = Golden(folder)
    make_key(made.key, "metalscribe lab")
    make_key(folder / "ssh_host_ed25519_key", f"root@{HOST}")

    tree = _copy(root, folder / "tree")
    version = _prune(tree)
    _wake(tree)
    _write(tree, "etc/fstab", f"LABEL={LABEL} / ext4 defaults 0 1\n")
    esp = _esp(folder / "esp", tree, version)
    efi_disk(tree, esp, folder / "cloud.img", _CLOUD_SIZE)
    _run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(folder / "cloud.img"), str(made.cloud))
    (folder / "cloud.img").unlink()

    _host(tree, made)
    host = _copy(tree, folder / "host")
    _grub(host, version)
    grub_disk(host, made.grub, _HOST_SIZE)
    shutil.rmtree(host)

    _systemd_boot(tree)
    efi_disk(tree, esp, made.systemd_boot, _HOST_SIZE)
    for scratch in (tree, esp):
        shutil.rmtree(scratch)


# --- what every machine is ---


def _prune(tree: Path) -> str:
    """Remove modules that nobody needs; returns the kernel's version."""
    [modules] = (tree / "lib/modules").iterdir()
    for unused in _UNUSED:
        shutil.rmtree(modules / "kernel" / unused, ignore_errors=True)
    _run("depmod", "--basedir", str(tree), modules.name)
    return modules.name


def _wake(tree: Path) -> None:
    """Services that a container cannot have, and none that would wake up in the middle of a test."""
    units = tree / "etc/systemd/system"
    (units / "systemd-networkd.service").unlink()
    (units / "multi-user.target.wants").mkdir(exist_ok=True)
    (units / "multi-user.target.wants/systemd-networkd.service").symlink_to(
        "/lib/systemd/system/systemd-networkd.service"
    )
    # Packages come from the image's own repository, as everywhere in the lab.
    _write(tree, "etc/cloud/cloud.cfg.d/99-lab.cfg", "apt:\n  preserve_sources_list: true\n")
    for unit in _SLEEPING:
        (units / unit).symlink_to("/dev/null")


def _esp(esp: Path, tree: Path, version: str) -> Path:
    """What is on the EFI partition: systemd-boot, and the kernel as proxmox-boot-tool puts it there."""
    loader = Path("/usr/lib/systemd/boot/efi/systemd-bootx64.efi")
    for place in ("EFI/BOOT/BOOTX64.EFI", "EFI/systemd/systemd-bootx64.efi"):
        (esp / place).parent.mkdir(parents=True)
        shutil.copyfile(loader, esp / place)
    kernel = Path("EFI/proxmox") / version
    (esp / kernel).mkdir(parents=True)
    for name in (f"vmlinuz-{version}", f"initrd.img-{version}"):
        shutil.copyfile(tree / "boot" / name, esp / kernel / name)
    _write(esp, "loader/loader.conf", f"timeout 0\ndefault proxmox-{version}.conf\n")
    _write(
        esp,
        f"loader/entries/proxmox-{version}.conf",
        f"title    Debian\nversion  {version}\noptions  {CMDLINE}"
        f"linux    /{kernel}/vmlinuz-{version}\ninitrd   /{kernel}/initrd.img-{version}\n",
    )
    return esp


# --- what the hosts are ---


def _host(tree: Path, made: Golden) -> None:
    """A host that the lab knows, at an address that its hardware tells it."""
    _write(tree, "etc/hostname", f"{HOST}\n")
    _write(tree, "etc/hosts", f"127.0.0.1 localhost\n127.0.1.1 {HOST}\n")
    _write(tree, "etc/cloud/cloud-init.disabled", "")
    _write(tree, "etc/udev/rules.d/99-lab-address.rules", _RULE)
    _write(tree, "usr/local/sbin/lab-address", (_FILES / "lab-address").read_text(encoding="utf-8"), mode=0o755)
    _write(tree, "root/.ssh/authorized_keys", made.key.with_suffix(".pub").read_text(encoding="ascii"))
    (tree / "root/.ssh").chmod(0o700)
    for name, mode in (("ssh_host_ed25519_key", 0o600), ("ssh_host_ed25519_key.pub", 0o644)):
        _write(tree, f"etc/ssh/{name}", (made.folder / name).read_text(encoding="ascii"), mode=mode)


_RULE: Final = 'ACTION=="add", SUBSYSTEM=="net", ATTR{address}=="02:00:*", RUN+="/usr/local/sbin/lab-address $name"\n'


def _grub(tree: Path, version: str) -> None:
    """GRUB's modules where its core looks for them, a configuration for the first boot, and the host's own."""
    shutil.copytree("/usr/lib/grub/i386-pc", tree / "boot/grub/i386-pc", ignore=shutil.ignore_patterns("*.img"))
    _write(tree, "etc/default/grub", GRUB)
    _write(tree, "etc/default/grub.d/10-mine.cfg", GRUB_DROP_IN)
    _write(
        tree,
        "boot/grub/grub.cfg",
        f"search --no-floppy --label {LABEL} --set root\n"
        f"linux /boot/vmlinuz-{version} root=LABEL={LABEL} ro console=ttyS0 {_FAST}\n"
        f"initrd /boot/initrd.img-{version}\nboot\n",
    )


def _systemd_boot(tree: Path) -> None:
    tool = (_FILES / "proxmox-boot-tool").read_text(encoding="utf-8")
    _write(tree, "usr/sbin/proxmox-boot-tool", tool, mode=0o755)
    _write(tree, "etc/kernel/cmdline", CMDLINE)
    _write(tree, "etc/kernel/proxmox-boot-uuids", f"{ESP_UUID}\n")
    # As Proxmox' hook does it: what update-initramfs has made is copied to the EFI partition.
    _write(
        tree, "etc/initramfs/post-update.d/proxmox-boot-sync", "#!/bin/sh\nexec proxmox-boot-tool refresh\n", mode=0o755
    )
    cleanup = (_FILES / "proxmox-boot-cleanup.service").read_text(encoding="utf-8")
    _write(tree, "etc/systemd/system/proxmox-boot-cleanup.service", cleanup)
    wants = tree / "etc/systemd/system/multi-user.target.wants/proxmox-boot-cleanup.service"
    wants.symlink_to("/etc/systemd/system/proxmox-boot-cleanup.service")


def _copy(source: Path, target: Path) -> Path:
    """The same files by other names, in a moment; whoever changes one writes a new one (``_write``)."""
    _run("cp", "-al", str(source), str(target))
    return target


def _write(tree: Path, name: str, text: str, *, mode: int = 0o644) -> None:
    path = tree / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {done.stderr.strip()}")
