"""NVML's errors in an operator's words, each with a stable code and the way to mend it.

The error codes are those of the NVML API reference (https://docs.nvidia.com/deploy/nvml-api/), enum ``nvmlReturn_t``.
"""

from __future__ import annotations

from dataclasses import replace

import pynvml  # the binding ships no types

from metalscribe.gpu.health import GpuProblem, ProblemCode

DRIVER_FAULTS = frozenset(
    {
        pynvml.NVML_ERROR_UNINITIALIZED,
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
        pynvml.NVML_ERROR_LIBRARY_NOT_FOUND,
        pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
    }
)
"""No GPU can be read any more; NVML must be initialised anew."""

GPU_FAULTS = frozenset(
    {
        pynvml.NVML_ERROR_GPU_IS_LOST,
        pynvml.NVML_ERROR_RESET_REQUIRED,
        pynvml.NVML_ERROR_GPU_NOT_FOUND,
    }
)
"""This GPU cannot be read any more, and its handle must be asked for anew."""

UNANSWERED = frozenset(
    {
        pynvml.NVML_ERROR_NOT_SUPPORTED,
        pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
        pynvml.NVML_ERROR_NO_PERMISSION,
        pynvml.NVML_ERROR_INVALID_ARGUMENT,
        pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
        pynvml.NVML_ERROR_DEPRECATED,
        pynvml.NVML_ERROR_NOT_FOUND,
        pynvml.NVML_ERROR_NO_DATA,
        pynvml.NVML_ERROR_NOT_READY,
        pynvml.NVML_ERROR_VGPU_ECC_NOT_SUPPORTED,
        # A process list that grew between the question for its length and the question for it.
        pynvml.NVML_ERROR_INSUFFICIENT_SIZE,
    }
)
"""What a healthy GPU answers to a single question that it, its driver or our permissions do not cover."""

NO_GPU = GpuProblem(
    ProblemCode.NO_GPU,
    "The NVIDIA driver is loaded but drives no GPU. Check `lspci -nnk -d 10de:`: the card must be listed with `Kernel "
    "driver in use: nvidia` (not vfio-pci or nouveau); in a virtual machine, that it is passed through; in a container, "
    "that it is handed in. `dmesg | grep -i nvrm` says why the driver refused a card.",
)

_DRIVER_PROBLEMS = {
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: GpuProblem(
        ProblemCode.NO_NVIDIA_DRIVER,
        "No NVIDIA driver is installed: libnvidia-ml.so.1 cannot be loaded. On a machine without an NVIDIA GPU nothing "
        "needs mending. Otherwise install the driver, or run the container with the GPU and the `utility` capability "
        "(NVIDIA Container Toolkit).",
    ),
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: GpuProblem(
        ProblemCode.DRIVER_NOT_LOADED,
        "The NVIDIA kernel driver is not loaded or /dev/nvidiactl is missing. Run `nvidia-smi`, then `modprobe nvidia`, "
        "and read `dmesg`; after a kernel update check `dkms status`, under Secure Boot that the module is signed, in a "
        "container or under systemd's DeviceAllow= that /dev/nvidia* are handed in.",
    ),
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: GpuProblem(
        ProblemCode.DRIVER_MISMATCH,
        "The NVIDIA driver was updated while an older kernel module is still loaded. Reboot; or stop everything that "
        "uses a GPU, unload the nvidia modules (`rmmod nvidia_uvm nvidia_drm nvidia_modeset nvidia`) and run `modprobe "
        "nvidia`. `cat /proc/driver/nvidia/version` shows the version that is loaded. If it is the new one already, "
        "restart metalscribe: it still holds the old library.",
    ),
    pynvml.NVML_ERROR_NO_PERMISSION: GpuProblem(
        ProblemCode.NO_PERMISSION,
        "The service's user may not talk to the NVIDIA driver. Check `ls -l /dev/nvidia*` and the user's groups, "
        "DeviceAllow= of the systemd unit, and the devices handed to the container.",
    ),
    pynvml.NVML_ERROR_NOT_FOUND: NO_GPU,
    pynvml.NVML_ERROR_GPU_NOT_FOUND: NO_GPU,
    pynvml.NVML_ERROR_GPU_IS_LOST: GpuProblem(
        ProblemCode.GPU_LOST,
        "A GPU has fallen off the bus, and the driver cannot start for it. Read `dmesg | grep -i xid` and reboot.",
    ),
}

_GPU_PROBLEMS = {
    pynvml.NVML_ERROR_GPU_IS_LOST: GpuProblem(
        ProblemCode.GPU_LOST,
        "{gpu} is lost: it has fallen off the bus{xid}. Read `dmesg | grep -i xid`, then reboot (a full power-off if "
        "that does not bring it back). If it returns, reseat the card and check its power cables, cooling and slot.",
    ),
    pynvml.NVML_ERROR_GPU_NOT_FOUND: GpuProblem(
        ProblemCode.GPU_LOST,
        "{gpu} is no longer on the bus{xid}. Read `dmesg | grep -i -e xid -e pcie`, check the card's seat and power, "
        "or, in a virtual machine, that it is still passed through; then reboot.",
    ),
    pynvml.NVML_ERROR_RESET_REQUIRED: GpuProblem(
        ProblemCode.GPU_RESET_REQUIRED,
        "{gpu} must be reset before it can be used again{xid}. Stop everything that uses it and run `nvidia-smi "
        "--gpu-reset -i {index}`; reboot if that is refused.",
    ),
    pynvml.NVML_ERROR_NO_PERMISSION: GpuProblem(
        ProblemCode.NO_PERMISSION,
        "The service's user may not use {gpu}. Check `ls -l /dev/nvidia*`, DeviceAllow= of the systemd unit, and the "
        "devices handed to the container.",
    ),
    pynvml.NVML_ERROR_INSUFFICIENT_POWER: GpuProblem(
        ProblemCode.GPU_POWER_CABLE,
        "{gpu} lacks external power. Power off and check the card's power cables and connectors.",
    ),
    pynvml.NVML_ERROR_IRQ_ISSUE: GpuProblem(
        ProblemCode.GPU_INTERRUPTS,
        "The driver gets no interrupts from {gpu}. Read `dmesg | grep -i nvrm`; check the firmware's settings for "
        "interrupts (MSI) and, in a virtual machine, the passthrough; then reboot.",
    ),
}


def driver_problem(error: pynvml.NVMLError) -> GpuProblem:
    """Return what an error of the driver as a whole means; unknown ones in NVML's own words."""
    known = _DRIVER_PROBLEMS.get(error.value)
    if known is not None:
        return known
    return GpuProblem(
        ProblemCode.NVML_ERROR,
        f'The NVIDIA driver answers with error {error.value}, "{error}". Run `nvidia-smi` and read `dmesg | grep -i nvrm`.',
    )


def gpu_problem(error: pynvml.NVMLError, question: str, gpu: str, index: int, last_xid: int | None) -> GpuProblem:
    """Return what an error of one GPU means; ``question`` is the NVML function that got it, ``gpu`` names the card."""
    xid = f" (last XID error: {last_xid})" if last_xid is not None else ""
    known = _GPU_PROBLEMS.get(error.value)
    if known is not None:
        return replace(known, message=known.message.format(gpu=gpu, index=index, xid=xid))
    return GpuProblem(
        ProblemCode.NVML_ERROR,
        f'{gpu} cannot be fully read: {question} answers with error {error.value}, "{error}"{xid}. Run `nvidia-smi -q -i '
        f"{index}` and read `dmesg | grep -i nvrm`.",
    )
