"""One host's passthrough through a run: decided while the deploy plans, and looked at again while it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pyinfra.context import host

from metalscribe_provision.passthrough.data import ProxmoxData
from metalscribe_provision.passthrough.facts import STATE, Boot, BootId, Bus, Interfaces, Iommu, Texts
from metalscribe_provision.passthrough.plan import Plan, defect, due, groups_due, groups_problem, plan, renamed

RECORD: Final = f"{STATE}/kernel-arguments"
"""The arguments that were added to /etc/kernel/cmdline, one per line: what is to be taken out again."""

INTERFACES: Final = f"{STATE}/interfaces"
"""Hardware address and name of each network interface before the first change."""

UNDONE: Final = f"{STATE}/undone"
"""The boot in which everything was undone, and which does not know it yet."""


class Choice:
    """The passthrough of the current host."""

    def __init__(self, data: ProxmoxData) -> None:
        """Decide.

        Raises:
            Refused: the host cannot have it; nothing was changed.
        """
        self._may_reboot = data.allow_reboot
        self.setup = host.get_fact(Boot)
        self.plan: Plan = plan(data, host.get_fact(Bus), host.get_fact(Iommu), self.setup, ours=recorded())

    def due(self) -> str | None:
        """Why a reboot is due; None if none is."""
        return due(self.plan, host.get_fact(Bus), host.get_fact(Iommu))

    def groups_due(self) -> str | None:
        """Why a reboot is due before the cards are bound; None if none is."""
        return groups_due(self.plan, host.get_fact(Bus))

    def groups_problem(self) -> str | None:
        """Why the cards cannot be bound after all; None if they can."""
        return groups_problem(self.plan, host.get_fact(Bus))

    def defect(self) -> str | None:
        """What is wrong after all was done; None if virtual machines can have the cards."""
        return defect(self.plan, host.get_fact(Bus), host.get_fact(Iommu)) or interfaces_renamed()

    def unless_allowed(self, reason: Callable[[], str | None]) -> Callable[[], str | None]:
        """Why the deploy ends before a reboot: the ``reason`` for one, where the operator does not let the deploy do it."""
        return lambda: reboot_forbidden(reason()) if not self._may_reboot else None

    @property
    def may_reboot(self) -> bool:
        """Whether the operator lets the deploy reboot the host."""
        return self._may_reboot


def reboot_forbidden(reason: str | None) -> str | None:
    """What to tell an operator whose host needs a reboot that the deploy may not do."""
    return reason and f"a reboot is due ({reason}): reboot the host and deploy again, or set allow_reboot=true"


def recorded() -> tuple[str, ...]:
    """The arguments that earlier deploys have added to /etc/kernel/cmdline."""
    return tuple(host.get_fact(Texts, paths=(RECORD,)).get(RECORD, "").split("\n")[:-1])


def undoing_due() -> str | None:
    """Why a reboot is due after everything was undone; None if none is."""
    boot = host.get_fact(Texts, paths=(UNDONE,)).get(UNDONE, "").strip()
    return (
        "the running kernel was started with the passthrough still" if boot and boot == host.get_fact(BootId) else None
    )


def undoing_defect() -> str | None:
    """What is wrong after everything was undone; None if nothing is."""
    left = [argument for argument in recorded() if argument in host.get_fact(Iommu).cmdline]
    return f"the kernel still has {' '.join(left)}" if left else undoing_due() or interfaces_renamed()


def interfaces_renamed() -> str | None:
    """Which network interfaces have another name than before the first change; None if none has."""
    noted = host.get_fact(Texts, paths=(INTERFACES,)).get(INTERFACES, "")
    return renamed(dict(line.split() for line in noted.splitlines()), host.get_fact(Interfaces))
