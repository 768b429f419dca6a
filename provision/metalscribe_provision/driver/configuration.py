"""The files that keep the driver as it was deployed, by their path on the host."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

NOUVEAU_FILE: Final = "/etc/modprobe.d/metalscribe-nouveau.conf"
NOUVEAU: Final = """\
# Written by metalscribe: the free driver must not take the card before NVIDIA's does, in the initramfs neither.
blacklist nouveau
options nouveau modeset=0
"""

PERSISTENCE_FILE: Final = "/etc/systemd/system/nvidia-persistenced.service.d/metalscribe.conf"
PERSISTENCE: Final = """\
# Written by metalscribe: Ubuntu starts the daemon only while the card's device unit wants it, and with persistence mode off.
# With it on, the card stays initialised between the service's restarts, which saves seconds and keeps its settings.
[Unit]
StopWhenUnneeded=no

[Service]
ExecStart=
ExecStart=/usr/bin/nvidia-persistenced --user nvidia-persistenced --persistence-mode --verbose

[Install]
WantedBy=multi-user.target
"""

UNATTENDED_UPGRADES_FILE: Final = "/etc/apt/apt.conf.d/51metalscribe-nvidia"


def unattended_upgrades(patterns: Iterable[str]) -> str:
    """apt's configuration that keeps unattended-upgrades off the driver.

    New libraries beside the old kernel module end in "Driver/library version mismatch", and every CUDA program with them.

    Args:
        patterns: regular expressions that match at the beginning of a package's name.
    """
    entries = "".join(f'    "{pattern}";\n' for pattern in patterns)
    return (
        "// Written by metalscribe: a driver that changes under a running kernel stops every CUDA program.\n"
        f"Unattended-Upgrade::Package-Blacklist {{\n{entries}}};\n"
    )
