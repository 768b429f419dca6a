"""What commands print on a host, read: sysfs, apt-cache, apt's sources, the kernel's modules, nvidia-smi.

Texts are what the commands printed on Debian 12 and 13, unless a test says that its text is composed.
"""

from __future__ import annotations

import pytest
from driver_hosts import CANDIDATES, DEBIAN_12_CANDIDATES
from hypothesis import given
from hypothesis import strategies as st
from pyinfra.api.exceptions import FactProcessError

from metalscribe_provision.driver.candidates import parse_candidates
from metalscribe_provision.driver.cards import Card, Flavour
from metalscribe_provision.driver.facts import (
    Boot,
    BootState,
    DeviceNodes,
    NvidiaDevices,
    Packages,
    PackageStates,
    PciDevices,
    Unit,
    UnitState,
)
from metalscribe_provision.driver.nvml import Gpu, NvmlReport, parse_report, problem
from metalscribe_provision.driver.pci import parse_devices
from metalscribe_provision.driver.sources import (
    COMPONENTS,
    OWN_FILE,
    Source,
    has_password,
    missing_components,
    parse_sources,
    render_sources,
)
from metalscribe_provision.driver.state import DriverState, Module, Step, next_step, parse_state

# --- sysfs ---


def test_cards_are_display_controllers() -> None:
    devices = parse_devices(
        [
            "0000:81:00.0 0x2335 0x030200 nvidia",
            "0000:01:00.0 0x2684 0x030000 nouveau",
            "0000:01:00.1 0x22ba 0x040300 snd_hda_intel",
            "0000:07:00.0 0x22a3 0x068000 nvidia-nvswitch",
            "0000:00:03.0 0x03f3 0x060401 ",  # bridges of NVIDIA's chipsets
            "0000:00:08.0 0x0aa3 0x068000 ",
            "10000:e1:00.0 0x27b8 0x030200 ",
        ]
    )
    assert devices.cards == (
        Card("0000:01:00.0", 0x2684, "nouveau"),
        Card("0000:81:00.0", 0x2335, "nvidia"),
        Card("10000:e1:00.0", 0x27B8, None),
    )
    assert devices.nvswitches == 1


def test_a_line_of_another_form_fails_the_fact() -> None:
    with pytest.raises(FactProcessError, match="not an NVIDIA device"):
        PciDevices().process(["sh: 1: cannot open"])


# --- apt-cache ---


def test_candidates_have_versions_and_dependencies() -> None:
    candidates = parse_candidates(DEBIAN_12_CANDIDATES.splitlines())
    assert len(candidates) == 11
    module = candidates["nvidia-kernel-dkms"]
    assert (module.version, module.upstream, module.branch) == ("535.309.01-0+deb12u1", "535.309.01", 535)
    assert module.depends == (
        "firmware-nvidia-gsp",
        "firmware-nvidia-gsp-535.309.01",
        "nvidia-kernel-support--v1",
        "dkms",
    )
    assert not any(candidate.transitional for candidate in candidates.values())


def test_transitional_packages_are_told_by_their_summary_or_by_what_they_lead_to() -> None:
    candidates = parse_candidates(CANDIDATES["ubuntu-24.04"].splitlines())
    assert {name for name, candidate in candidates.items() if candidate.transitional} == {
        f"{stem}{branch}{rest}"
        for branch in (535, 570)
        for stem, rest in [
            ("nvidia-headless-no-dkms-", "-server"),
            ("nvidia-headless-no-dkms-", "-server-open"),
            ("linux-modules-nvidia-", "-server-generic"),
            ("linux-modules-nvidia-", "-server-open-generic"),
            ("nvidia-fabricmanager-", ""),
        ]
    }
    assert candidates["nvidia-fabricmanager-570"].summary == "Fabric Manager for NVSwitch based systems."


def test_no_output_is_no_candidates() -> None:
    assert parse_candidates([]) == {}
    assert parse_candidates(["", "N: Can't select versions from package 'x' as it is purely virtual", ""]) == {}


# --- apt's sources ---

ONE_LINE = """\
==> /etc/apt/sources.list <==
# deb cdrom:[Debian GNU/Linux 12.5.0 _Bookworm_]/ bookworm main
deb http://mirror.example/debian/ bookworm main non-free-firmware # as installed
deb [arch=amd64 signed-by=/a.gpg,/b.gpg trusted=yes] https://user:word@mirror.example/security bookworm-security main
deb-src http://mirror.example/debian/ bookworm main
  deb http://mirror.example/debian bookworm-backports main
deb http://elsewhere.example/ stable main

==> /etc/apt/sources.list.d/extra.list <==
deb http://mirror.example/debian bookworm contrib
"""

DEB822 = """\
==> /etc/apt/sources.list.d/debian.sources <==
Types: deb deb-src
# http://mirror.example/snapshot
uris: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mQINBF
 -----END PGP PUBLIC KEY BLOCK-----

Enabled: no
Types: deb
URIs: http://mirror.example/debian
Suites: bookworm
Components: contrib non-free non-free-firmware

"""


def test_one_line_sources() -> None:
    missing = missing_components(parse_sources(ONE_LINE.splitlines()), "debian", "bookworm")
    assert missing == [
        Source(("http://mirror.example/debian/",), ("bookworm",), ("non-free",)),
        Source(
            ("https://user:word@mirror.example/security",),
            ("bookworm-security",),
            ("contrib", "non-free", "non-free-firmware"),
            {"Architectures": "amd64", "Signed-By": "/a.gpg /b.gpg", "Trusted": "yes"},
        ),
    ]
    text = render_sources(missing)
    assert has_password(text)
    assert "URIs: https://user:word@mirror.example/security\nSuites: bookworm-security\n" in text


def test_deb822_sources_keep_their_key_and_join_their_suites() -> None:
    sources = parse_sources(DEB822.splitlines())
    assert len(sources) == 1
    text = render_sources(missing_components(sources, "debian", "bookworm"))
    _, _, stanza = text.partition("\n\n")
    assert stanza == (
        "Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm bookworm-updates\n"
        "Components: contrib non-free non-free-firmware\nSigned-By: \n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mQINBF\n"
        " -----END PGP PUBLIC KEY BLOCK-----\n"
    )
    assert not has_password(text)


def test_no_archive_is_refused() -> None:
    with pytest.raises(ValueError, match="component main of trixie"):
        missing_components(parse_sources(ONE_LINE.splitlines()), "debian", "trixie")


COMPONENT_SETS = st.sets(st.sampled_from(["contrib", "non-free", "non-free-firmware"])).map(sorted)


@given(
    st.lists(
        st.tuples(st.sampled_from(["/etc/apt/sources.list", "/etc/apt/sources.list.d/a.sources"]), COMPONENT_SETS),
        min_size=1,
    )
)
def test_with_our_file_nothing_is_missing_and_nothing_is_there_twice(entries: list[tuple[str, list[str]]]) -> None:
    def text(path: str, components: list[str]) -> str:
        names = " ".join(["main", *components])
        if path.endswith(".list"):
            return f"==> {path} <==\ndeb http://mirror.example/debian bookworm {names}\n"
        return (
            f"==> {path} <==\nTypes: deb\nURIs: http://mirror.example/debian\nSuites: bookworm\nComponents: {names}\n\n"
        )

    before = [line for entry in entries for line in text(*entry).splitlines()]
    missing = missing_components(parse_sources(before), "debian", "bookworm")
    ours = render_sources(missing).splitlines()
    # Ours is not counted when it is read on a host …
    again = parse_sources([*before, f"==> {OWN_FILE} <==", *ours])
    assert missing_components(again, "debian", "bookworm") == missing
    # … and with it, under any other name, everything is there, once.
    together = parse_sources([*before, "==> /etc/apt/sources.list.d/ours.sources <==", *ours])
    assert missing_components(together, "debian", "bookworm") == []
    there = {component for _, components in entries for component in components}
    added = [component for source in missing for component in source.components]
    assert sorted(added) == sorted(set(COMPONENTS["debian"]) - there)


# --- the kernel's modules ---

STATE = """\
running\t6.1.0-56-amd64
installed\t6.1.0-37-amd64
installed\t6.1.0-56-amd64
module\t6.1.0-56-amd64\t535.309.01\tNVIDIA
library\t/usr/lib/x86_64-linux-gnu/nvidia/current/libnvidia-ml.so.535.309.01
"""

LOADED = (
    "loaded\t535.309.01\tNVRM version: NVIDIA UNIX x86_64 Kernel Module  535.309.01  Mon Jul 14 12:00:00 UTC 2025\n"
)
"""Composed: the form is the driver README's."""


def test_state_of_a_host_whose_driver_is_installed() -> None:
    module = Module("535.309.01", Flavour.PROPRIETARY)
    assert parse_state(STATE.splitlines()) == DriverState(
        running="6.1.0-56-amd64",
        installed=("6.1.0-37-amd64", "6.1.0-56-amd64"),
        on_disk=(("6.1.0-56-amd64", module),),
        library="535.309.01",
    )
    assert parse_state((STATE + LOADED).splitlines()).loaded == module
    opened = LOADED.replace("x86_64 Kernel Module ", "Open Kernel Module for x86_64 ")
    assert parse_state(opened.splitlines()).loaded == Module("535.309.01", Flavour.OPEN)
    disk = parse_state(["module\t6.8.0-85-generic\t590.48.01\tDual MIT/GPL"]).on_disk
    assert disk == (("6.8.0-85-generic", Module("590.48.01", Flavour.OPEN)),)


@pytest.mark.parametrize(
    ("change", "nouveau", "step", "reason"),
    [
        (("", ""), False, Step.LOAD, ""),
        (("", ""), True, Step.REBOOT, "nouveau"),
        (("library\t", LOADED + "library\t"), False, Step.READY, ""),
        (("library\t", LOADED + "library\t"), True, Step.REBOOT, "nouveau"),
        (
            ("library\t", LOADED.replace("309", "261") + "library\t"),
            False,
            Step.REBOOT,
            "runs module 535.261.01 (proprietary)",
        ),
        (("library\t", LOADED.replace("x86_64", "Open Kernel Module") + "library\t"), False, Step.REBOOT, "(open)"),
        (
            ("running\t6.1.0-56", "running\t6.1.0-37"),
            False,
            Step.REBOOT,
            "6.1.0-56-amd64, and 6.1.0-37-amd64 is running",
        ),
        (
            ("running\t6.1.0-56", "running\t6.1.0-60"),
            False,
            Step.REBOOT,
            "6.1.0-56-amd64, and 6.1.0-60-amd64 is running",
        ),
        (
            ("module\t6.1.0-56", "module\t6.1.0-37"),
            False,
            Step.BROKEN,
            "no kernel module 535.309.01 (proprietary) for 6.1.0-56",
        ),
        (
            ("535.309.01\tNVIDIA", "535.261.03\tNVIDIA"),
            False,
            Step.BROKEN,
            "found: 535.261.03 (proprietary) for 6.1.0-56",
        ),
        (("\tNVIDIA", "\tDual MIT/GPL"), False, Step.BROKEN, "found: 535.309.01 (open)"),
        (("library\t", "other\t"), False, Step.BROKEN, "libraries are not installed"),
    ],
)
def test_next_step(change: tuple[str, str], nouveau: bool, step: Step, reason: str) -> None:
    state = parse_state(STATE.replace(*change).splitlines())
    found = next_step(state, Flavour.PROPRIETARY, nouveau=nouveau)
    assert found.step is step
    assert reason in found.reason


# --- NVML ---

CARD = Card("0000:01:00.0", 0x2684)


def test_nvml_reports_cards_or_says_why_not() -> None:
    # Composed: the form is that of nvidia-smi's CSV.
    report = parse_report(["00000000:01:00.0, NVIDIA GeForce RTX 4090, 550.163.01, Enabled"])
    assert report == NvmlReport((Gpu("0000:01:00.0", "NVIDIA GeForce RTX 4090", "550.163.01", persistent=True),))
    assert problem(report, [CARD], "550.163.01") is None
    assert parse_report(["00010000:E1:00.0, NVIDIA L4, 550.163.01, Disabled"]).gpus[0].address == "10000:e1:00.0"


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("Failed to initialize NVML: Driver/library version mismatch", "Driver/library version mismatch"),
        ("No devices were found", "finds no card: No devices were found"),
        ("", "nvidia-smi said nothing"),
        ("00000000:02:00.0, NVIDIA L4, 550.163.01, Enabled", "does not see 10de:2684"),
        (
            "00000000:01:00.0, NVIDIA GeForce RTX 4090, 550.142, Enabled",
            "runs driver 550.142, and the libraries are of 550.163.01",
        ),
        ("00000000:01:00.0, NVIDIA GeForce RTX 4090, 550.163.01, Disabled", "persistence mode is off"),
    ],
)
def test_what_nvml_reports_is_not_enough(line: str, text: str) -> None:
    assert text in (problem(parse_report([line]), [CARD], "550.163.01") or "")


# --- the rest ---


def test_boot_state() -> None:
    assert BootState().process(["kernel 6.1.0-56-amd64"]) == Boot("6.1.0-56-amd64")
    lines = ["kernel 6.1.0-56-amd64", "headers", "secure_boot", "mok_enrolled"]
    assert BootState().process(lines) == Boot("6.1.0-56-amd64", headers=True, secure_boot=True, mok_enrolled=True)


def test_package_states() -> None:
    lines = [
        "installed libc6",
        "half-configured nvidia-open-kernel-dkms",
        "config-files dkms",
        "triggers-pending libc-bin",
    ]
    assert PackageStates().process(lines) == Packages(
        frozenset({"libc6"}), frozenset({"nvidia-open-kernel-dkms", "libc-bin"})
    )


def test_unit_state() -> None:
    lines = ["LoadState=loaded", "ActiveState=active", "NeedDaemonReload=yes", "Enabled=enabled"]
    assert UnitState().process(lines) == Unit(found=True, active=True, enabled=True, stale=True)
    assert (
        UnitState().process(["LoadState=not-found", "ActiveState=inactive", "NeedDaemonReload=no", "Enabled="])
        == Unit()
    )


def test_device_nodes() -> None:
    # Composed, after a host with one card and driver 550.
    lines = [
        "/dev/nvidia-uvm",
        "/dev/nvidia0",
        "/dev/nvidia-caps/nvidia-cap1",
        "/dev/nvidiactl",
        "nvidia",
        "nvidia-uvm",
        "nvidia-caps",
    ]
    assert NvidiaDevices().process(lines) == DeviceNodes(
        ("/dev/nvidia-caps/nvidia-cap1", "/dev/nvidia-uvm", "/dev/nvidia0", "/dev/nvidiactl"),
        ("nvidia", "nvidia-caps", "nvidia-uvm"),
    )
