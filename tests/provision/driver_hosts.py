"""Hosts for the tests of the driver deploy: what sysfs, apt and the kernel say on them.

No machine that builds this has NVIDIA cards, so a host is simulated where pyinfra asks it: each fact's command gets a text
in the form that the real command prints. Debian's texts are what ``apt-cache show`` printed on Debian 12 and 13 (cut to the
fields that are read); Ubuntu's are composed after packages.ubuntu.com.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from fakes import DISTRIBUTIONS, Responses

M4000, RTX_2080, RTX_4090, RTX_5090, H200 = 0x13F1, 0x1E87, 0x2684, 0x2B85, 0x2335

KERNELS: Final = {
    "debian-12": "6.1.0-56-amd64",
    "debian-13": "6.12.117+deb13-amd64",
    "ubuntu-22.04": "5.15.0-186-generic",
    "ubuntu-24.04": "6.8.0-85-generic",
}
"""The kernel that each release runs, its newest."""

DEBIAN_12_CANDIDATES: Final = """\
Package: libcuda1
Version: 535.309.01-0+deb12u1
Depends: nvidia-support, nvidia-alternative (= 535.309.01-0+deb12u1), libnvidia-ptxjitcompiler1 (= 535.309.01-0+deb12u1), libc6 (>= 2.34)
Description: NVIDIA CUDA Driver Library

Package: libnvidia-ml1
Version: 535.309.01-0+deb12u1
Depends: nvidia-alternative (= 535.309.01-0+deb12u1), libc6 (>= 2.34)
Description: NVIDIA Management Library (NVML) runtime library

Package: linux-headers-6.1.0-56-amd64
Version: 6.1.192-2
Depends: linux-headers-6.1.0-56-common (= 6.1.192-2), linux-kbuild-6.1 (>= 6.1.192-2), linux-compiler-gcc-12-x86
Description: Header files for Linux 6.1.0-56-amd64

Package: linux-headers-6.12-amd64
Version: 6.12.117-1~deb12u1
Depends: linux-headers-6.12.117+deb12-amd64 (= 6.12.117-1~deb12u1)
Description: Header files for Linux amd64 configuration (meta-package)

Package: linux-headers-amd64
Version: 6.1.192-2
Depends: linux-headers-6.1.0-56-amd64 (= 6.1.192-2)
Description: Header files for Linux amd64 configuration (meta-package)

Package: linux-headers-cloud-amd64
Version: 6.1.192-2
Depends: linux-headers-6.1.0-56-cloud-amd64 (= 6.1.192-2)
Description: Header files for Linux cloud-amd64 configuration (meta-package)

Package: nvidia-kernel-dkms
Version: 535.309.01-0+deb12u1
Depends: firmware-nvidia-gsp (= 535.309.01) | firmware-nvidia-gsp-535.309.01, nvidia-kernel-support--v1, dkms (>= 3.0.3-4~)
Description: NVIDIA binary kernel module DKMS source

Package: nvidia-modprobe
Version: 535.309.01-0+deb12u1
Depends: libc6 (>= 2.34)
Description: utility to load NVIDIA kernel modules and create device nodes

Package: nvidia-open-kernel-dkms
Version: 535.261.03-1
Depends: firmware-nvidia-gsp (= 535.261.03) | firmware-nvidia-gsp-535.261.03, nvidia-open-kernel-support--v1, dkms (>= 3.0.3-4~)
Description: NVIDIA open kernel module DKMS source

Package: nvidia-persistenced
Version: 535.171.04-1~deb12u1
Depends: libnvidia-cfg1 | libnvidia-tesla-470-cfg1 | libnvidia-cfg.so.1 | libnvidia-cfg1-any, adduser, libc6 (>= 2.34)
Description: daemon to maintain persistent software state in the NVIDIA driver

Package: nvidia-smi
Version: 535.309.01-0+deb12u1
Depends: nvidia-alternative (= 535.309.01-0+deb12u1), libnvidia-ml1 (= 535.309.01-0+deb12u1), libc6 (>= 2.34)
Description: NVIDIA System Management Interface
"""

DEBIAN_13_CANDIDATES: Final = (
    re.sub(r"535\.\d+\.\d+-\S+?(?=[),\n])", "550.163.01-2", DEBIAN_12_CANDIDATES)
    .replace("6.1.0-56-amd64", "6.12.117+deb13-amd64")
    .replace("linux-headers-6.12-amd64", "linux-headers-rt-amd64")
)
"""Debian 13 has one kernel and, of each package of the driver, one version."""


def ubuntu_candidates(
    release: str,
    branches: Mapping[int, str],
    *,
    transitional: Mapping[int, int] | None = None,
    without: Iterable[str] = (),
) -> str:
    """Composed: what apt offers of the server series.

    Args:
        release: 22.04 or 24.04; its generic kernel is that of ``KERNELS``, its hardware enablement kernel a newer one.
        branches: branch → its version, 580 → 580.173.02.
        transitional: branch that has ended → the one that it leads to.
        without: packages that are left out.
    """
    own = KERNELS[f"ubuntu-{release}"]
    enablement = {"22.04": "6.8.0-90-generic", "24.04": "6.17.0-40-generic"}[release]
    stanzas = [("nvidia-modprobe", "535.54.03-1", "libc6 (>= 2.34)", "utility to load NVIDIA kernel modules")]
    for branch, version in branches.items():
        exact = f"{version}-0ubuntu0.{release}.1"
        utils = ("libc6 (>= 2.34)", "NVIDIA Server Driver support binaries")
        stanzas.append((f"nvidia-utils-{branch}-server", exact, *utils))
        fabric = f"nvidia-kernel-common-{branch}-server-{version}"
        stanzas.append((f"nvidia-fabricmanager-{branch}", exact, fabric, "Fabric Manager for NVSwitch based systems."))
        for flavour in ("", "-open"):
            suffix = f"{branch}-server{flavour}"
            depends = f"libnvidia-cfg1-{branch}-server (= {exact}), libnvidia-compute-{branch}-server (= {exact})"
            stanzas.append(
                (f"nvidia-headless-no-dkms-{suffix}", exact, depends, "NVIDIA headless metapackage - no DKMS")
            )
            for kernel, metapackage in ((own, "generic"), (enablement, f"generic-hwe-{release}")):
                number = f"{kernel.removesuffix('-generic')}.1"
                depends = f"linux-modules-nvidia-{suffix}-{kernel} (= {number}), nvidia-kernel-common-{branch}-server"
                name = f"linux-modules-nvidia-{suffix}-{metapackage}"
                stanzas.append(
                    (name, number, depends, f"Extra drivers for nvidia-{suffix} for the {metapackage} flavour")
                )
    for ended, successor in (transitional or {}).items():
        exact = f"{branches[successor]}-0ubuntu0.{release}.1"
        for flavour in ("", "-open"):
            names = (f"nvidia-headless-no-dkms-%d-server{flavour}", f"linux-modules-nvidia-%d-server{flavour}-generic")
            summaries = (
                "NVIDIA headless metapackage (transitional package)",
                "Extra drivers (dummy transitional package)",
            )
            stanzas += [(n % ended, exact, n % successor, text) for n, text in zip(names, summaries, strict=True)]
        # Not every one says what it is.
        name = "nvidia-fabricmanager-%d"
        stanzas.append((name % ended, exact, name % successor, "Fabric Manager for NVSwitch based systems."))
    return "\n".join(
        f"Package: {name}\nVersion: {version}\nDepends: {depends}\nDescription-en: {summary}\n"
        for name, version, depends, summary in stanzas
        if name not in set(without)
    )


CANDIDATES: Final = {
    "debian-12": DEBIAN_12_CANDIDATES,
    "debian-13": DEBIAN_13_CANDIDATES,
    "ubuntu-22.04": ubuntu_candidates(
        "22.04", {580: "580.173.02", 590: "590.48.01"}, transitional={535: 580, 570: 580}
    ),
    "ubuntu-24.04": ubuntu_candidates(
        "24.04", {580: "580.173.02", 590: "590.48.01"}, transitional={535: 580, 570: 580}
    ),
}
"""What apt offers once its lists are there."""

SOURCES: Final = {
    "debian": """\
==> /etc/apt/sources.list.d/debian.sources <==
Types: deb
URIs: http://mirror.example/debian
Suites: {0} {0}-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: {0}-security
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

""",
    "ubuntu": """\
==> /etc/apt/sources.list <==
deb http://mirror.example/ubuntu {0} main restricted universe multiverse
deb http://mirror.example/ubuntu {0}-updates main restricted universe multiverse
deb http://mirror.example/ubuntu {0}-security main restricted universe multiverse

""",
}
"""As the installers leave them."""

CODENAMES: Final = {"debian-12": "bookworm", "debian-13": "trixie", "ubuntu-22.04": "jammy", "ubuntu-24.04": "noble"}


def pci(*cards: int, driver: str = "", nvswitches: int = 0) -> str:
    """sysfs of a host with these cards, each with its sound function, and NVSwitches of an H100 board."""
    lines = []
    for number, device_id in enumerate(cards, start=1):
        lines += [
            f"0000:{number:02x}:00.0 0x{device_id:04x} 0x030000 {driver}",
            f"0000:{number:02x}:00.1 0x22ba 0x040300 snd_hda_intel",
        ]
    lines += [f"0000:{number:02x}:00.0 0x22a3 0x068000 " for number in range(0x80, 0x80 + nvswitches)]
    return "\n".join(lines)


def host(distribution: str, *cards: int, lists: bool = True, **answers: str | Sequence[str]) -> Responses:
    """Responses of a host with these cards; without ``lists``, apt knows nothing of NVIDIA's packages yet.

    ``answers`` replace: ``pci``, ``boot``, ``candidates``, ``sources``, ``installed`` (of dpkg-query).
    """
    name = distribution.partition("-")[0]
    return {
        "/sys/bus/pci/devices": answers.get("pci", pci(*cards)),
        "SecureBoot-": answers.get("boot", f"kernel {KERNELS[distribution]}"),
        "apt-cache show": answers.get("candidates", CANDIDATES[distribution] if lists else ""),
        "/etc/apt/sources.list.d/*.sources": answers.get("sources", SOURCES[name].format(CODENAMES[distribution])),
        "dpkg-query -W": answers.get("installed", ""),
        **DISTRIBUTIONS[distribution],
    }
