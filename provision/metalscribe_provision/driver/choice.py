"""One host's driver through a run: chosen, checked against what the host says, and proven."""

from __future__ import annotations

from collections.abc import Sequence

from pyinfra.context import host, state
from pyinfra.facts.server import LinuxDistribution

from metalscribe_provision.driver.cards import CUDA_12_BRANCH
from metalscribe_provision.driver.facts import AptCandidates, BootState, Nvml, PackageStates, PciDevices, RunningDriver
from metalscribe_provision.driver.nvml import problem
from metalscribe_provision.driver.plan import plan
from metalscribe_provision.driver.requirement import Refused
from metalscribe_provision.driver.state import Next, Step, next_step
from metalscribe_provision.driver.system import Distribution, Selection, System
from metalscribe_provision.hostdata import HostData


class Choice:
    """The driver for the current host.

    It is looked for while the deploy plans, and once more while it runs, when apt's lists are there; what is found then holds
    for the rest of the run.
    """

    def __init__(self, data: HostData) -> None:
        """Look for the driver of these host data.

        Raises:
            Refused: there is none.
        """
        self._data = data
        self.distribution = _distribution()
        self.devices = host.get_fact(PciDevices)
        self._selection = self._look()

    @property
    def selection(self) -> Selection | None:
        """The packages; None as long as apt's lists do not have NVIDIA's."""
        return self._selection

    @property
    def may_reboot(self) -> bool:
        """Whether the operator lets the deploy reboot the host."""
        return self._data.allow_reboot

    @property
    def missing(self) -> Sequence[str]:
        """Packages that are not installed; before it is known which those are, NVIDIA's at large."""
        there = installed()
        return [name for name in (self._selection.packages if self._selection else ("nvidia",)) if name not in there]

    def refusal(self) -> str | None:
        """Look again, now that apt's lists are there: why there is no driver for this host; None if there is one."""
        try:
            self._selection = self._look()
        except Refused as refused:
            return str(refused)
        return None if self._selection else "apt has no NVIDIA driver for servers; look at its sources on this host"

    def next(self) -> Next:
        """What is left to do; while the deploy plans, as if the packages were there."""
        nouveau = any(card.driver == "nouveau" for card in host.get_fact(PciDevices).cards)
        if not state.is_executing and self.missing:
            return Next(Step.REBOOT, "nouveau has the card until then") if nouveau else Next(Step.LOAD)
        if self._selection is None:
            return Next(Step.BROKEN, "apt has no NVIDIA driver for servers")
        return next_step(host.get_fact(RunningDriver), self._selection.flavour, nouveau=nouveau)

    def obstacle(self) -> str | None:
        """Why the installed driver cannot be taken into use in this run; None if it can."""
        step, reason = self.next()
        if step is Step.BROKEN:
            return f"the driver cannot be taken into use: {reason}"
        if step is Step.REBOOT and not self.may_reboot:
            return (
                f"the driver is installed and needs a reboot ({reason}): reboot the host and deploy again, or set "
                "allow_reboot=true"
            )
        return None

    def defect(self) -> str | None:
        """What is wrong with the driver in use; None if NVML sees every card, at the version of the libraries."""
        step, reason = self.next()
        if step is not Step.READY:
            return f"the driver is not in use after all; what is left to do: {step}" + (
                f" ({reason})" if reason else ""
            )
        cards = [card for card in self.devices.cards if card.driver != "vfio-pci"]
        return problem(host.get_fact(Nvml), cards, host.get_fact(RunningDriver).library)

    def _look(self) -> Selection | None:
        boot = host.get_fact(BootState)
        packages = host.get_fact(PackageStates)
        system = System(
            distribution=self.distribution,
            kernel=boot.kernel,
            headers=boot.headers,
            secure_boot=boot.secure_boot,
            mok_enrolled=boot.mok_enrolled,
            candidates=host.get_fact(AptCandidates),
            installed=packages.installed,
            unfinished=packages.unfinished,
        )
        return plan(self.devices, system, self._data.driver, self._data.driver_branch)


def existing_defect() -> str | None:
    """What is wrong with a driver that somebody else has installed; None if NVML sees every card and CUDA 12 runs on it."""
    report = host.get_fact(Nvml)
    cards = [card for card in host.get_fact(PciDevices).cards if card.driver != "vfio-pci"]
    wrong = problem(report, cards, host.get_fact(RunningDriver).library, persistence=False)
    if wrong is None and any(int(gpu.driver_version.partition(".")[0]) < CUDA_12_BRANCH for gpu in report.gpus):
        wrong = f"driver {report.gpus[0].driver_version} is too old for CUDA 12, which takes {CUDA_12_BRANCH} or later"
    return wrong and f"{wrong}; driver=existing installs nothing, driver=auto would"


def installed() -> frozenset[str]:
    """Names of the packages that are installed on the current host."""
    return host.get_fact(PackageStates).installed


def _distribution() -> Distribution:
    release = host.get_fact(LinuxDistribution)["release_meta"]
    return Distribution(release.get("ID", ""), release.get("VERSION_ID", ""), release.get("VERSION_CODENAME", ""))
