"""Which driver a host gets: the whole deploy planned on simulated hosts, and what holds for any combination of cards."""

from __future__ import annotations

import re
from itertools import product

import pytest
from driver_hosts import H200, KERNELS, M4000, RTX_2080, RTX_4090, RTX_5090, host, pci, ubuntu_candidates
from fakes import HOST, Responses, commands, files, named, plan
from hypothesis import given
from hypothesis import strategies as st
from pyinfra.api.exceptions import DeployError

from metalscribe_provision.driver.cards import ARCHITECTURES, Card, Flavour, architecture_of
from metalscribe_provision.driver.configuration import UNATTENDED_UPGRADES_FILE
from metalscribe_provision.driver.deploy import driver
from metalscribe_provision.driver.pci import NvidiaPci
from metalscribe_provision.driver.requirement import Refused, requirement
from metalscribe_provision.driver.sources import OWN_FILE
from metalscribe_provision.hostdata import Driver

DEBIAN_PACKAGES = (
    "nvidia-kernel-dkms libcuda1 libnvidia-ml1 nvidia-smi nvidia-persistenced nvidia-modprobe linux-headers-amd64"
)


SET_UP = "DEBIAN_FRONTEND=noninteractive dpkg --configure -a;"
APT = "DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=l apt-get -qq -o DPkg::Lock::Timeout=600"


def ubuntu_packages(suffix: str) -> str:
    branch = suffix.partition("-")[0]
    return f"nvidia-headless-no-dkms-{suffix} linux-modules-nvidia-{suffix}-generic nvidia-utils-{branch}-server nvidia-modprobe"


def installs(responses: Responses, **data: object) -> str:
    """The packages of a plan, as its apt-get command has them; empty if there is nothing to install."""
    planned = plan(driver, data, responses)
    found = re.search(r"--allow-change-held-packages install (.*)", commands(planned))
    return found[1] if found else ""


def refusal(responses: Responses, **data: object) -> str:
    """What the deploy says instead of a plan."""
    with pytest.raises(DeployError) as refused:
        plan(driver, data, responses)
    message = str(refused.value)
    assert message.startswith(f"{HOST}: ")
    return message


# --- the matrix: distribution × cards ---

DEBIAN_12, DEBIAN_13, UBUNTU_22, UBUNTU_24 = "debian-12", "debian-13", "ubuntu-22.04", "ubuntu-24.04"

GETS = [
    (DEBIAN_12, (M4000,), "535, proprietary", f"{DEBIAN_PACKAGES} linux-headers-6.1.0-56-amd64"),
    (DEBIAN_12, (RTX_2080,), "535, proprietary", f"{DEBIAN_PACKAGES} linux-headers-6.1.0-56-amd64"),
    (DEBIAN_12, (RTX_4090,), "535, proprietary", f"{DEBIAN_PACKAGES} linux-headers-6.1.0-56-amd64"),
    (DEBIAN_12, (M4000, RTX_4090), "535, proprietary", f"{DEBIAN_PACKAGES} linux-headers-6.1.0-56-amd64"),
    (DEBIAN_13, (M4000,), "550, proprietary", f"{DEBIAN_PACKAGES} linux-headers-6.12.117+deb13-amd64"),
    (DEBIAN_13, (RTX_2080,), "550, proprietary", f"{DEBIAN_PACKAGES} linux-headers-6.12.117+deb13-amd64"),
    (DEBIAN_13, (RTX_4090,), "550, proprietary", f"{DEBIAN_PACKAGES} linux-headers-6.12.117+deb13-amd64"),
    (DEBIAN_13, (H200,), "550, proprietary", f"{DEBIAN_PACKAGES} linux-headers-6.12.117+deb13-amd64"),
    (DEBIAN_13, (M4000, H200), "550, proprietary", f"{DEBIAN_PACKAGES} linux-headers-6.12.117+deb13-amd64"),
    *(
        (release, cards, what, ubuntu_packages(suffix))
        for release in (UBUNTU_22, UBUNTU_24)
        for cards, what, suffix in [
            ((M4000,), "580, proprietary", "580-server"),
            ((RTX_2080,), "590, open", "590-server-open"),
            ((RTX_4090,), "590, open", "590-server-open"),
            ((RTX_5090,), "590, open", "590-server-open"),
            ((H200,), "590, open", "590-server-open"),
            ((M4000, RTX_2080), "580, proprietary", "580-server"),
            ((RTX_2080, RTX_5090), "590, open", "590-server-open"),
        ]
    ),
]

REFUSES = [
    (
        DEBIAN_12,
        (RTX_5090,),
        r"10de:2b85 \(Blackwell\).* 570 or later with the open .*Debian 12 has branch 535; install Ubuntu",
    ),
    (DEBIAN_13, (RTX_5090,), r"Blackwell.*branch 570 or later.*Debian 13 has branch 550; install Ubuntu"),
    (DEBIAN_12, (H200,), r"Hopper.*branch 550 or later, and Debian 12 has branch 535; install Debian 13, or Ubuntu"),
    *(
        (release, cards, text)
        for release in (DEBIAN_12, DEBIAN_13, UBUNTU_22, UBUNTU_24)
        for cards, text in [
            ((), r"no NVIDIA GPU.*driver=none"),
            (
                (M4000, RTX_5090),
                r"10de:13f1 \(Maxwell\) at 0000:01:00\.0 .* and 10de:2b85 \(Blackwell\) at 0000:02:00\.0 the open",
            ),
            ((0x1180,), r"10de:1180 \(Kepler or older\).*too old.*470"),
            ((0x4001,), r"10de:4001 \(unknown\).*driver=open and driver_branch"),
        ]
    ),
]


@pytest.mark.parametrize(("distribution", "cards", "what", "packages"), GETS)
def test_the_plan_has_the_right_branch_flavour_and_packages(
    distribution: str, cards: tuple[int, ...], what: str, packages: str
) -> None:
    planned = plan(driver, {}, host(distribution, *cards))
    operation = named(planned, f"Packages of the driver {what} kernel modules")
    (command,) = operation.commands
    assert command == f"{SET_UP} {APT} -y --no-install-recommends --allow-change-held-packages install {packages}"
    held = named(planned, "Hold the driver's packages").commands[0]
    driver_packages = [name for name in packages.split() if not name.startswith("linux-headers")]
    assert held == f"apt-mark hold {' '.join(driver_packages)}"


@pytest.mark.parametrize(("distribution", "cards", "text"), REFUSES)
@pytest.mark.parametrize("lists", [True, False])
def test_what_cannot_be_is_refused_before_anything_is_changed(
    distribution: str, cards: tuple[int, ...], text: str, lists: bool
) -> None:
    assert re.search(text, refusal(host(distribution, *cards, lists=lists)))


def test_none_is_nothing_at_all() -> None:
    (operation,) = plan(driver, {"driver": "none"}, host(DEBIAN_12))
    assert not operation.changes


# --- before apt's lists are there ---


@pytest.mark.parametrize(("distribution", "branch"), [(DEBIAN_12, 535), (DEBIAN_13, 550)])
def test_debian_is_planned_by_what_the_release_is_known_to_have(distribution: str, branch: int) -> None:
    planned = plan(driver, {}, host(distribution, RTX_4090, lists=False))
    packages = named(planned, f"Packages of the driver {branch}, proprietary kernel modules").commands[0]
    assert packages.endswith(f"{DEBIAN_PACKAGES} linux-headers-{KERNELS[distribution]}")


def test_ubuntu_is_planned_as_far_as_can_be_said() -> None:
    planned = plan(driver, {}, host(UBUNTU_24, RTX_4090, lists=False))
    assert named(planned, "apt's lists").changes
    assert not named(planned, "Packages of the newest driver for servers").changes


# --- which branch of Ubuntu's ---


def test_a_branch_that_has_ended_is_no_candidate() -> None:
    # 535 and 570 are there in name, and lead to 580.
    message = refusal(host(UBUNTU_24, RTX_4090), driver_branch="570")
    assert "driver_branch=570" in message
    assert "have 580, 590 for servers" in message


def test_a_pinned_branch_is_taken() -> None:
    assert installs(host(UBUNTU_24, RTX_4090), driver_branch="580") == ubuntu_packages("580-server-open")


def test_a_named_flavour_is_taken() -> None:
    assert installs(host(UBUNTU_24, RTX_4090), driver="proprietary") == ubuntu_packages("590-server")
    packages = installs(host(DEBIAN_13, RTX_4090), driver="open")
    assert packages.startswith("nvidia-open-kernel-dkms libcuda1 ")


@pytest.mark.parametrize(
    ("data", "cards", "text"),
    [
        ({"driver": "open"}, (M4000,), r"driver=open, but 10de:13f1 \(Maxwell\).* needs the proprietary"),
        ({"driver": "proprietary"}, (RTX_5090,), r"driver=proprietary, but 10de:2b85 \(Blackwell\).* needs the open"),
        ({"driver_branch": "590"}, (M4000,), r"driver_branch=590, but .*Maxwell.* needs .* 525 to 580"),
        ({"driver_branch": "535"}, (RTX_5090,), r"driver_branch=535, but .*Blackwell.* needs .* 570 or later"),
        ({"driver_branch": "470"}, (RTX_2080,), r"driver_branch=470, but .*Turing.* needs .* 525 or later"),
    ],
)
def test_wishes_that_a_card_cannot_live_with_are_refused(
    data: dict[str, str], cards: tuple[int, ...], text: str
) -> None:
    assert re.search(text, refusal(host(UBUNTU_24, *cards), **data))


def test_a_card_beyond_the_table_gets_what_its_operator_names() -> None:
    assert installs(host(UBUNTU_24, 0x4001), driver="open", driver_branch="590") == ubuntu_packages("590-server-open")


def test_a_branch_that_lacks_a_package_is_passed_over() -> None:
    offered = ubuntu_candidates(
        "24.04", {580: "580.173.02", 590: "590.48.01"}, without=["linux-modules-nvidia-590-server-open-generic"]
    )
    assert installs(host(UBUNTU_24, RTX_4090, candidates=offered)) == ubuntu_packages("580-server-open")
    message = refusal(host(UBUNTU_24, RTX_4090, candidates=offered), driver_branch="590")
    assert "590: no linux-modules-nvidia-590-server-open-generic, with 6.8.0-85-generic running" in message


def test_the_branch_that_is_installed_stays() -> None:
    there = [f"installed {name}" for name in ubuntu_packages("570-server-open").split()]
    planned = plan(driver, {}, host(UBUNTU_24, RTX_4090, installed=there))
    assert not named(planned, "Packages of the driver 570, open kernel modules").changes
    assert not named(planned, "apt's lists").changes


def test_other_kernel_modules_go() -> None:
    there = "half-configured nvidia-dkms-535\ninstalled linux-modules-nvidia-580-server-6.8.0-85-generic"
    packages = installs(host(UBUNTU_24, RTX_4090, installed=there))
    assert packages.endswith(" linux-modules-nvidia-580-server-6.8.0-85-generic- nvidia-dkms-535-")
    there = "installed nvidia-kernel-dkms\ninstalled nvidia-kernel-support"
    packages = installs(host(DEBIAN_13, RTX_4090, installed=there), driver="open")
    assert packages.endswith(" nvidia-kernel-dkms- nvidia-kernel-support-")


# --- kernels ---


@pytest.mark.parametrize(
    ("distribution", "kernel", "metapackage"),
    [
        (UBUNTU_22, "5.15.0-100-generic", "generic"),
        (UBUNTU_22, "6.8.0-88-generic", "generic-hwe-22.04"),
        (UBUNTU_22, "6.5.0-45-generic", "generic-hwe-22.04"),
        (UBUNTU_24, "6.8.0-31-generic", "generic"),
        (UBUNTU_24, "6.14.0-27-generic", "generic-hwe-24.04"),
        (UBUNTU_24, "6.17.0-40-generic", "generic-hwe-24.04"),
    ],
)
def test_the_modules_move_with_the_kernel_that_runs(distribution: str, kernel: str, metapackage: str) -> None:
    responses = host(distribution, RTX_4090, boot=f"kernel {kernel}")
    assert f" linux-modules-nvidia-590-server-open-{metapackage} " in installs(responses)


@pytest.mark.parametrize("kernel", ["5.15.0-1082-kvm", "6.8.12-4-pve", "6.18.44"])
def test_a_kernel_without_modules_is_refused(kernel: str) -> None:
    message = refusal(host(UBUNTU_24, RTX_4090, boot=f"kernel {kernel}"))
    assert kernel in message
    assert re.search(r"boot its generic one|no linux-modules-nvidia-590-server-open-(kvm|pve)", message)


def test_the_kernel_is_held_with_the_driver() -> None:
    there = [f"installed linux-{kind}generic" for kind in ("", "image-", "headers-")]
    planned = plan(driver, {}, host(UBUNTU_24, RTX_4090, installed=there))
    held = named(planned, "Hold the driver's packages").commands[0]
    assert held.endswith(" nvidia-modprobe linux-generic linux-image-generic linux-headers-generic")


@pytest.mark.parametrize(
    ("kernel", "headers"),
    [
        ("6.1.0-56-amd64", "linux-headers-amd64 linux-headers-6.1.0-56-amd64"),
        ("6.1.0-56-amd64\nheaders", "linux-headers-amd64"),
        # Its headers have left the archive: the newest kernel comes with the newest headers.
        ("6.1.0-13-amd64", "linux-headers-amd64 linux-image-amd64"),
        ("6.1.0-13-cloud-amd64", "linux-headers-cloud-amd64 linux-image-cloud-amd64"),
        ("6.12.115+deb12-amd64", "linux-headers-6.12-amd64 linux-image-6.12-amd64"),
        ("6.8.12-4-pve\nheaders", ""),
    ],
)
def test_debian_builds_for_the_kernel_that_runs_or_brings_one(kernel: str, headers: str) -> None:
    packages = installs(host(DEBIAN_12, RTX_4090, boot=f"kernel {kernel}"))
    assert packages.partition("nvidia-modprobe")[2].strip() == headers


@pytest.mark.parametrize(
    ("kernel", "text"), [("6.1.0-56-rt-amd64", "real-time"), ("6.8.12-4-pve", "/lib/modules/6.8.12-4-pve/build")]
)
def test_debian_refuses_kernels_that_nothing_can_be_built_for(kernel: str, text: str) -> None:
    assert text in refusal(host(DEBIAN_12, RTX_4090, boot=f"kernel {kernel}"))


# --- Secure Boot, versions, NVSwitches, passthrough ---


def test_secure_boot_asks_debian_for_an_enrolled_key() -> None:
    kernel = f"kernel {KERNELS[DEBIAN_12]}"
    message = refusal(host(DEBIAN_12, RTX_4090, boot=f"{kernel}\nsecure_boot"))
    assert "mokutil --import /var/lib/dkms/mok.pub" in message
    assert installs(host(DEBIAN_12, RTX_4090, boot=f"{kernel}\nsecure_boot\nmok_enrolled")).startswith(
        "nvidia-kernel-dkms "
    )


def test_secure_boot_is_no_matter_to_ubuntu() -> None:
    boot = f"kernel {KERNELS[UBUNTU_24]}\nsecure_boot"
    assert installs(host(UBUNTU_24, RTX_4090, boot=boot)) == ubuntu_packages("590-server-open")


def test_debian_12_has_no_usable_open_modules() -> None:
    assert "alpha quality" in refusal(host(DEBIAN_12, RTX_4090), driver="open")


def test_modules_and_libraries_of_different_versions_are_refused() -> None:
    # As Debian 12 has them when a security update brings the proprietary ones alone.
    older = host(DEBIAN_13, RTX_4090)["apt-cache show"]
    assert isinstance(older, str)
    mixed = older.replace(
        "nvidia-open-kernel-dkms\nVersion: 550.163.01-2", "nvidia-open-kernel-dkms\nVersion: 550.142-1"
    )
    assert mixed != older
    message = refusal(host(DEBIAN_13, RTX_4090, candidates=mixed), driver="open")
    assert "nvidia-open-kernel-dkms 550.142 with libcuda1 550.163.01" in message
    assert "driver=proprietary" in message


def test_a_named_branch_is_tried_with_a_card_that_its_list_lacks() -> None:
    assert installs(host(DEBIAN_12, H200), driver_branch="535").startswith("nvidia-kernel-dkms ")


def test_nvswitches_get_a_fabric_manager_of_the_drivers_version() -> None:
    switched = pci(*[H200] * 8, nvswitches=4)
    planned = plan(driver, {}, host(UBUNTU_24, pci=switched))
    assert "nvidia-fabricmanager-590" in commands(planned)
    assert named(planned, "Start nvidia-fabricmanager").changes
    offered = ubuntu_candidates("24.04", {580: "580.173.02", 590: "590.48.01"})
    stale = offered.replace(
        "nvidia-fabricmanager-590\nVersion: 590.48.01", "nvidia-fabricmanager-590\nVersion: 590.44.01"
    )
    assert "nvidia-fabricmanager-580" in installs(host(UBUNTU_24, pci=switched, candidates=stale))
    assert "nvidia-fabricmanager" in refusal(host(DEBIAN_13, pci=switched))


def test_multiverse_may_be_missing_as_yet() -> None:
    offered = ubuntu_candidates("24.04", {590: "590.48.01"}, without=["nvidia-modprobe", "nvidia-fabricmanager-590"])
    sources = """==> /etc/apt/sources.list <==
deb http://mirror.example/ubuntu noble main restricted
"""
    planned = plan(driver, {}, host(UBUNTU_24, RTX_4090, candidates=offered, sources=sources))
    assert "Suites: noble\nComponents: multiverse\n" in files(planned)[OWN_FILE]
    assert "nvidia-modprobe" in commands(planned)


def test_a_card_that_belongs_to_a_virtual_machine_is_left_alone() -> None:
    message = refusal(host(DEBIAN_12, pci=pci(RTX_4090, driver="vfio-pci")))
    assert "bound to vfio-pci" in message
    beside = pci(M4000) + "\n" + pci(RTX_5090, driver="vfio-pci").replace("0000:01", "0000:02")
    assert installs(host(UBUNTU_24, pci=beside)) == ubuntu_packages("580-server")


def test_other_distributions_are_refused() -> None:
    other = {"*-release": ["/etc/os-release", "ID=debian", 'VERSION_ID="11"', "---"]}
    assert "Debian 12 and 13" in refusal(other | host(DEBIAN_12, RTX_4090) | other)


# --- what else a plan has ---


@pytest.mark.parametrize("distribution", [DEBIAN_12, DEBIAN_13, UBUNTU_22, UBUNTU_24])
def test_unattended_upgrades_leaves_every_held_package_alone(distribution: str) -> None:
    there = [f"installed linux-{kind}generic" for kind in ("", "image-", "headers-")]
    planned = plan(driver, {}, host(distribution, RTX_4090, installed=there))
    patterns = re.findall(r'"(.+)";', files(planned)[UNATTENDED_UPGRADES_FILE])
    held = named(planned, "Hold the driver's packages").commands[0].split()[2:]
    assert held
    for name in held:
        assert any(re.match(pattern, name) for pattern in patterns), name
    for other in ("linux-libc-dev", "linux-base", "libc6", "nginx", "python3", "linux-image-6.8.0-85-generic"):
        assert not any(re.match(pattern, other) for pattern in patterns), other


def test_a_reboot_is_planned_where_nouveau_has_the_card() -> None:
    responses = host(DEBIAN_12, pci=pci(RTX_4090, driver="nouveau"))
    assert "reboot" in commands(plan(driver, {"allow_reboot": True}, responses))
    assert "reboot" not in commands(plan(driver, {"allow_reboot": False}, responses))
    assert "reboot" not in commands(plan(driver, {"allow_reboot": True}, host(DEBIAN_12, RTX_4090)))


# --- for any cards ---

BRANCHES = (525, 535, 550, 570, 575, 580, 590)
DEVICE_IDS = st.sampled_from([first for architecture in ARCHITECTURES for first, _ in architecture.ids])


@given(st.lists(DEVICE_IDS, min_size=1, max_size=4), st.sampled_from([Driver.AUTO, Driver.OPEN, Driver.PROPRIETARY]))
def test_what_is_accepted_suits_every_card(device_ids: list[int], wanted: Driver) -> None:
    cards = tuple(Card(f"0000:{n:02x}:00.0", device_id) for n, device_id in enumerate(device_ids))
    suits = [
        (branch, flavour)
        for branch, flavour in product(BRANCHES, Flavour)
        if (wanted is Driver.AUTO or flavour.value == wanted.value)
        and all(
            flavour in card.flavours
            and (architecture := architecture_of(card.device_id)) is not None
            and architecture.first_branch <= branch <= (architecture.last_branch or branch)
            for card in cards
        )
    ]
    if not suits:
        with pytest.raises(Refused, match="|".join(re.escape(str(card)) for card in cards)):
            requirement(NvidiaPci(cards), wanted, "auto")
        return
    required = requirement(NvidiaPci(cards), wanted, "auto")
    assert {branch for branch, _ in suits} == {branch for branch in BRANCHES if required.accepts(branch)}
    for branch in {branch for branch, _ in suits if branch >= 550}:
        assert (branch, required.flavour(branch)) in suits


@given(st.permutations([M4000, RTX_2080, H200, RTX_4090]))
def test_the_order_of_the_slots_is_no_matter(device_ids: list[int]) -> None:
    cards = tuple(Card(f"0000:{n:02x}:00.0", device_id) for n, device_id in enumerate(device_ids))
    required = requirement(NvidiaPci(cards), Driver.AUTO, "auto")
    assert required.flavours == {Flavour.PROPRIETARY}
    assert (required.first_branch, required.last_branch) == (550, 580)
