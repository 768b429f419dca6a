"""The NVIDIA driver as the kernel has it: module, library, and device nodes."""

from __future__ import annotations

import json
import re
import stat
import sys
from pathlib import Path
from typing import Final

from metalscribe.cli.commands import plain_environment, run
from metalscribe.cli.findings import Finding, Status
from metalscribe.cli.host.deployment import Host

_LIBRARY_SECONDS: Final = 20.0
_MODULE: Final = Path("/sys/module/nvidia")
_NOUVEAU: Final = Path("/sys/module/nouveau")
# The variable SecureBoot of the global namespace: four bytes of attributes, then 1 or 0 (UEFI specification, 3.3).
_SECURE_BOOT: Final = Path("/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c")
_NODES: Final = (Path("/dev/nvidiactl"), Path("/dev/nvidia-uvm"))

# Which file the dynamic linker takes for NVML; its name ends with the driver's version.
_LIBRARY: Final = """
import ctypes, json, os
ctypes.CDLL("libnvidia-ml.so.1")
with open("/proc/self/maps") as maps:
    paths = {line.split(None, 5)[5].strip() for line in maps if "libnvidia-ml.so" in line}
print(json.dumps(os.path.realpath(paths.pop())))
"""
_VERSIONED: Final = re.compile(r"libnvidia-ml\.so\.(\d+\.[\d.]+)$")


def driver(host: Host) -> Finding:
    """Whether the kernel runs the driver whose libraries are installed."""
    loaded = _text(host.at(_MODULE / "version"))
    answer = run([sys.executable, "-I", "-c", _LIBRARY], seconds=_LIBRARY_SECONDS, environment=plain_environment())
    library = json.loads(answer.out) if answer.status == 0 else None
    return judge_driver(
        loaded,
        library,
        module_loaded=host.at(_MODULE).exists(),
        nouveau=host.at(_NOUVEAU).exists(),
        secure_boot=_secure_boot(host),
    )


def judge_driver(
    loaded: str | None, library: str | None, *, module_loaded: bool, nouveau: bool, secure_boot: bool
) -> Finding:
    """The finding for what was found.

    Args:
        loaded: version of the kernel module that is loaded.
        library: path of NVML's library, links resolved; None if there is none.
        module_loaded: whether the kernel module is loaded.
        nouveau: whether the kernel has the free driver instead.
        secure_boot: whether the firmware lets signed modules run only.
    """
    if not module_loaded:
        reasons = []
        if nouveau:
            reasons.append("nouveau has the card: reboot, now that it is blacklisted (`update-initramfs -u` first).")
        if secure_boot:
            reasons.append(
                "Secure Boot is on: the module must be signed, and its key known (`mokutil --list-enrolled`)."
            )
        reasons.append("`modprobe nvidia` and `dmesg | tail` say why; after a kernel update, `dkms status`.")
        return Finding(Status.FAIL, "the NVIDIA kernel module is not loaded", " ".join(reasons))
    if library is None:
        return Finding(
            Status.FAIL, f"module {loaded or 'of unknown version'}, but libnvidia-ml.so.1 is missing", "Deploy again."
        )
    found = _VERSIONED.search(library)
    if loaded is None or found is None:  # the libraries of WSL and of some containers carry no version
        return Finding(Status.OK, f"module {loaded or 'of unknown version'}, {Path(library).name}")
    if found[1] == loaded:
        return Finding(Status.OK, f"{loaded}, module and libraries")
    return Finding(
        Status.FAIL,
        f"the module that is loaded is {loaded}, the libraries are {found[1]}",
        "The driver was updated under the running kernel: reboot. If that does not bring them together, `dkms status` "
        "shows whether the module was built, and `apt-mark showhold` whether the packages are held.",
    )


def device_nodes(host: Host) -> Finding:
    """Whether the files are there through which programs reach the GPUs, and may be used by all."""
    cards = sorted(host.at(Path("/dev")).glob("nvidia[0-9]*"), key=lambda path: path.name)
    wanted = [*(cards or [host.at(Path("/dev/nvidia0"))]), *map(host.at, _NODES)]
    missing = [path.name for path in wanted if not path.exists()]
    if missing:
        return Finding(
            Status.FAIL,
            f"missing in /dev: {', '.join(missing)}",
            "`systemctl restart metalscribe-gpu.service` makes them, once the driver is loaded.",
        )
    closed = [path.name for path in wanted if path.stat().st_mode & (stat.S_IROTH | stat.S_IWOTH) != 0o006]
    if closed:
        return Finding(
            Status.WARN,
            f"not open to every user: {', '.join(closed)}",
            "NVreg_DeviceFileMode in /etc/modprobe.d may say so; then the service's user must be in their group.",
        )
    return Finding(Status.OK, ", ".join(path.name for path in wanted))


def _text(path: Path) -> str | None:
    try:
        return path.read_text("ascii").strip()
    except FileNotFoundError:
        return None


def _secure_boot(host: Host) -> bool:
    try:
        return host.at(_SECURE_BOOT).read_bytes()[4:5] == b"\x01"
    except OSError:  # no UEFI, or a firmware that does not tell: then it only costs a hint
        return False
