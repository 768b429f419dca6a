"""The files that let vfio-pci have a card before the card's own driver does, in the initramfs as well.

By id: ``vfio-pci`` takes every device with the card's ids. By address, where the host has another such device that is to
stay: udev writes ``driver_override`` as soon as the kernel shows the device, and nothing but ``vfio-pci`` can take it then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Final

from metalscribe_provision.passthrough.pci import NVIDIA, PciDevice
from metalscribe_provision.passthrough.refusal import Refused
from metalscribe_provision.passthrough.selection import Card

MODPROBE_FILE: Final = "/etc/modprobe.d/metalscribe-passthrough.conf"
MODULES_FILE: Final = "/etc/modules-load.d/metalscribe-passthrough.conf"
UDEV_FILE: Final = "/etc/udev/rules.d/10-metalscribe-passthrough.rules"
HOOK_FILE: Final = "/etc/initramfs-tools/hooks/metalscribe-passthrough"

FILES: Final = (MODPROBE_FILE, MODULES_FILE, UDEV_FILE, HOOK_FILE)
"""All that may be there; those that a binding does not need are not."""

_NVIDIA_MODULES: Final = (
    "nouveau",
    "nvidia",
    "nvidia_drm",
    "nvidia_modeset",
    "nvidia_uvm",
    "nvidiafb",
    "i2c_nvidia_gpu",
)
"""What takes an NVIDIA card. Sound and USB drivers have other devices to look after: they only come after vfio-pci."""

_HOOK: Final = f"""\
#!/bin/sh
# Written by metalscribe: the rule that gives a card to vfio-pci, in the initramfs too. Removed with passthrough=absent.
[ "$1" = prereqs ] && exit 0
. /usr/share/initramfs-tools/hook-functions
manual_add_modules vfio_pci
mkdir -p "$DESTDIR/etc/udev/rules.d"
cp -p {UDEV_FILE} "$DESTDIR/etc/udev/rules.d/"
"""


class Binding(StrEnum):
    """How a card is told from others: ``auto`` takes its ids unless another device has one of them too."""

    AUTO = "auto"
    IDS = "ids"
    ADDRESS = "address"


def binding_of(cards: Sequence[Card], devices: Sequence[PciDevice], wanted: Binding) -> Binding:
    """By ids or by address.

    Raises:
        Refused: ids are asked for, and would take a device that stays.
    """
    slots = {card.slot for card in cards}
    ids = {id_ for card in cards for id_ in card.ids}
    twins = [device for device in devices if device.id in ids and device.slot not in slots]
    if wanted is Binding.IDS and twins:
        raise Refused(
            f"passthrough_binding=ids would take {', '.join(map(str, twins))} as well; set passthrough_binding=auto"
        )
    return wanted if wanted is not Binding.AUTO else Binding.ADDRESS if twins else Binding.IDS


def binding_files(
    cards: Sequence[Card], devices: Sequence[PciDevice], binding: Binding, modules: Sequence[str]
) -> Mapping[str, str]:
    """Path → text of the files that a binding needs.

    Args:
        cards: what is given away.
        devices: all of the host's.
        binding: by ids or by address.
        modules: that vfio wants loaded at boot.
    """
    files = {MODPROBE_FILE: _modprobe(cards, devices, binding), MODULES_FILE: _modules(modules)}
    if binding is Binding.ADDRESS:
        files |= {UDEV_FILE: _udev(cards), HOOK_FILE: _HOOK}
    return files


def _modprobe(cards: Sequence[Card], devices: Sequence[PciDevice], binding: Binding) -> str:
    functions = [function for card in cards for function in card.functions]
    lines = [
        f"# Written by metalscribe: {', '.join(map(str, cards))} for virtual machines. Removed with passthrough=absent."
    ]
    if binding is Binding.IDS:
        no_vga = " disable_vga=1" if any(function.is_display for function in functions) else ""
        lines.append(f"options vfio-pci ids={','.join(dict.fromkeys(function.id for function in functions))}{no_vga}")
    nvidia = _NVIDIA_MODULES if any(function.vendor == NVIDIA for function in functions) else ()
    others = sorted({module for function in functions for module in function.modules} - {*nvidia, "vfio_pci"})
    lines += [f"softdep {module} pre: vfio-pci" for module in (*nvidia, *others)]
    slots = {card.slot for card in cards}
    if nvidia and not any(
        device.vendor == NVIDIA and device.is_display and device.slot not in slots for device in devices
    ):
        lines += [f"blacklist {module}" for module in nvidia]
    return "\n".join(lines) + "\n"


def _modules(modules: Sequence[str]) -> str:
    return "".join(
        f"{line}\n"
        for line in ("# Written by metalscribe, for PCI passthrough. Removed with passthrough=absent.", *modules)
    )


def _udev(cards: Sequence[Card]) -> str:
    rules = [
        f'ACTION=="add", SUBSYSTEM=="pci", KERNEL=="{function.address}", ATTR{{driver_override}}="vfio-pci"'
        for card in cards
        for function in card.functions
    ]
    head = "# Written by metalscribe: these devices are for virtual machines, their twins stay. Removed with passthrough=absent."
    return "\n".join((head, *rules)) + "\n"
