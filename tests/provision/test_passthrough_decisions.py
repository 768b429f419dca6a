"""What a Proxmox host's passthrough comes to, decided from what hosts say.

sysfs' lines of the virtual machine are what the command printed in the VM lab; those of real boards, proxmox-boot-tool's and
efibootmgr's are composed after the Proxmox VE Administration Guide.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyinfra.api.exceptions import DeployError

from metalscribe_provision.passthrough.binding import (
    HOOK_FILE,
    MODPROBE_FILE,
    MODULES_FILE,
    UDEV_FILE,
    Binding,
    binding_files,
    binding_of,
)
from metalscribe_provision.passthrough.bootloader import (
    BootLoader,
    BootSetup,
    boot_loader,
    parse_setup,
    refresh_commands,
    with_arguments,
    without_arguments,
)
from metalscribe_provision.passthrough.data import ProxmoxData, parse_proxmox_hosts
from metalscribe_provision.passthrough.iommu import (
    ACS_OVERRIDE,
    AMD,
    INTEL,
    Machine,
    arguments,
    firmware_problem,
    missing,
    modules,
    parse_machine,
    tokens,
)
from metalscribe_provision.passthrough.isolation import foreign, isolation_problem
from metalscribe_provision.passthrough.pci import Interface, PciDevice, parse_devices
from metalscribe_provision.passthrough.plan import Plan, defect, due, groups_due, plan, renamed
from metalscribe_provision.passthrough.refusal import Refused
from metalscribe_provision.passthrough.selection import choose

HOST_BRIDGE = PciDevice("0000:00:00.0", 0x8086, 0x3EC2, 0x060000, group=0, group_type="identity")
ROOT_PORT = PciDevice("0000:00:01.0", 0x8086, 0x1901, 0x060400, group=1, group_type="identity", driver="pcieport")
GPU = PciDevice(
    "0000:01:00.0",
    0x10DE,
    0x13F1,
    0x030000,
    subsystem_vendor=0x10DE,
    subsystem_device=0x1153,
    group=1,
    group_type="identity",
    driver="nouveau",
    modules=("nouveau", "nvidiafb"),
)
SOUND = replace(
    GPU, address="0000:01:00.1", device=0x0FBB, class_code=0x040300, driver="snd_hda_intel", modules=("snd_hda_intel",)
)
SCREEN = PciDevice("0000:00:02.0", 0x8086, 0x3E92, 0x030000, group=2, driver="i915", boot_vga=True, modules=("i915",))
NIC = PciDevice(
    "0000:02:00.0",
    0x8086,
    0x10D3,
    0x020000,
    group=3,
    driver="e1000e",
    modules=("e1000e",),
    interfaces=(Interface("enp2s0", "up"),),
)
BOARD = (HOST_BRIDGE, ROOT_PORT, SCREEN, GPU, SOUND, NIC)

PVE = Machine("6.8.12-4-pve", INTEL, frozenset({"DMAR"}), groups=True, cmdline=("quiet", "iommu=pt"))
GRUB = BootSetup(grub=True, arguments=("quiet",))


def decided(
    devices: tuple[PciDevice, ...] = BOARD, machine: Machine = PVE, setup: BootSetup = GRUB, **data: Any
) -> Plan:
    return plan(ProxmoxData(**data), devices, machine, setup)


# --- sysfs ---


def test_devices_as_sysfs_has_them() -> None:
    gpu, nic = parse_devices(
        [
            "0000:02:00.0 id=0x8086:0x10d3 class=0x020000 subsystem=0x8086:0x0000 group=3 type=DMA-FQ driver=e1000e vga=0 modules=e1000e, net=enp2s0/up,",
            "0000:01:00.0 id=0x10de:0x13f1 class=0x030000 subsystem=0x10de:0x1153 group= type= driver= vga=1 modules= net=",
        ]
    )
    assert (gpu.address, gpu.id, gpu.slot, gpu.subsystem_id) == ("0000:01:00.0", "10de:13f1", "0000:01:00", "10de:1153")
    assert gpu.group is None
    assert gpu.driver is None
    assert gpu.boot_vga
    assert gpu.is_display
    assert (nic.group, nic.group_type, nic.modules) == (3, "DMA-FQ", ("e1000e",))
    assert nic.interfaces == (Interface("enp2s0", "up"),)


@pytest.mark.parametrize(
    "line",
    ["", "0000:01:00.0", "01:00.0 id=0x1:0x2 class=0x0 subsystem=0x0:0x0 group= type= driver= vga= modules= net="],
)
def test_other_lines_are_named(line: str) -> None:
    with pytest.raises(ValueError, match="not a PCI device"):
        parse_devices([line])


# --- which device ---


@pytest.mark.parametrize(
    "selector", ["nvidia", "0000:01:00", "0000:01:00.0", "0000:01:00.1", "01:00", "01:00.0", "10de:13f1", "10de:0fbb"]
)
def test_a_card_goes_with_all_of_its_functions(selector: str) -> None:
    (card,) = choose(BOARD, [selector])
    assert card.functions == (GPU, SOUND)
    assert card.slot == "0000:01:00"
    assert card.ids == ("10de:13f1", "10de:0fbb")


def test_two_names_of_one_card_are_one() -> None:
    assert len(choose(BOARD, ["nvidia", "01:00.1"])) == 1


def second(of: PciDevice, slot: str = "0000:03:00", group: int = 9, **changes: Any) -> PciDevice:
    return replace(of, address=f"{slot}.{of.address[-1]}", group=group, **changes)


@pytest.mark.parametrize(
    ("devices", "selector", "says"),
    [
        (
            (HOST_BRIDGE, SCREEN),
            "nvidia",
            r"no NVIDIA GPU .*Display controllers here: 0000:00:02.0 \(8086:3e92, i915\)",
        ),
        ((HOST_BRIDGE,), "nvidia", "no display controller at all"),
        ((*BOARD, second(GPU)), "nvidia", r"2 devices .*0000:01:00.0 .*0000:03:00.0 .*passthrough_devices=0000:01:00"),
        ((*BOARD, second(GPU)), "10de:13f1", "2 devices that 10de:13f1 could mean"),
        (BOARD, "0000:07:00", "no PCI device at 0000:07:00"),
        (BOARD, "1234:11e8", "no PCI device with the id 1234:11e8"),
        (BOARD, "00:01.0", "is a bridge"),
        (BOARD, "00:02.0", "this host's console.*passthrough_boot_vga=true"),
        (BOARD, "8086:10d3", "carries enp2s0, which is up"),
    ],
)
def test_what_cannot_be_given_away_is_named(devices: tuple[PciDevice, ...], selector: str, says: str) -> None:
    with pytest.raises(Refused, match=says):
        choose(devices, [selector])


def test_the_console_goes_where_its_operator_says_so() -> None:
    assert choose(BOARD, ["00:02.0"], boot_vga=True)[0].functions == (SCREEN,)


# --- groups ---


def test_a_cards_functions_and_bridges_are_no_strangers() -> None:
    assert foreign(choose(BOARD, ["nvidia"]), BOARD) == ()
    assert isolation_problem(choose(BOARD, ["nvidia"]), BOARD) is None


def test_a_stranger_in_the_group_is_listed() -> None:
    stranger = replace(NIC, group=1)
    devices = (*BOARD[:-1], stranger)
    with pytest.raises(
        Refused, match=r"(?s)shares an IOMMU group.*0000:02:00.0 \(8086:10d3, e1000e\) in group 1.*another slot"
    ):
        decided(devices)
    assert decided(devices, passthrough_acs_override=True).arguments == ("iommu=pt", ACS_OVERRIDE)
    idle = (*BOARD[:-1], replace(stranger, interfaces=()))
    assert len(decided(idle, passthrough_devices="nvidia 02:00").cards) == 2  # given away as well, it is no stranger


def test_groups_that_nobody_knows_yet_refuse_nothing() -> None:
    dark = tuple(replace(device, group=None, group_type="") for device in BOARD)
    made = decided(dark, replace(PVE, groups=False))
    assert groups_due(made, dark)
    assert groups_due(made, BOARD) is None


# --- processor, firmware, kernel ---


@pytest.mark.parametrize(
    ("machine", "wanted"),
    [
        (PVE, ("iommu=pt",)),
        (replace(PVE, kernel="6.5.13-6-pve"), ("intel_iommu=on", "iommu=pt")),
        (replace(PVE, kernel="6.12.43+deb13-amd64"), ("intel_iommu=on", "iommu=pt")),
        (replace(PVE, kernel="6.1.0-56-amd64", vendor=AMD), ("iommu=pt",)),
    ],
)
def test_processor_and_kernel_decide_the_arguments(machine: Machine, wanted: tuple[str, ...]) -> None:
    assert arguments(machine) == wanted


def test_the_override_needs_a_kernel_that_knows_it() -> None:
    assert ACS_OVERRIDE in arguments(PVE, acs_override=True)
    with pytest.raises(Refused, match="Proxmox' kernels"):
        arguments(replace(PVE, kernel="6.1.0-56-amd64"), acs_override=True)


@pytest.mark.parametrize(
    ("kernel", "virqfd"), [("6.1.0-56-amd64", True), ("6.2.16-3-pve", False), ("6.14.8-2-pve", False)]
)
def test_virqfd_is_a_module_of_old_kernels(kernel: str, *, virqfd: bool) -> None:
    assert ("vfio_virqfd" in modules(replace(PVE, kernel=kernel))) is virqfd


@pytest.mark.parametrize(
    ("vendor", "tables", "says"),
    [
        (INTEL, frozenset[str](), "enable VT-d"),
        (AMD, frozenset[str](), "enable IOMMU"),
        ("", frozenset({"DMAR"}), "Intel and AMD"),
    ],
)
def test_a_firmware_without_an_iommu_is_told_what_to_enable(vendor: str, tables: frozenset[str], says: str) -> None:
    machine = replace(PVE, vendor=vendor, tables=tables, groups=False)
    assert says in (firmware_problem(machine) or "")
    with pytest.raises(Refused, match=says):
        decided(machine=machine)


def test_a_machine_as_it_says() -> None:
    machine = parse_machine(
        [
            "kernel 6.1.0-56-amd64",
            "vendor  GenuineIntel",
            "table DMAR",
            "groups",
            'cmdline root=/dev/vda1 dyndbg="file x +p" quiet',
        ]
    )
    assert machine == Machine(
        "6.1.0-56-amd64",
        INTEL,
        frozenset({"DMAR"}),
        groups=True,
        cmdline=("root=/dev/vda1", 'dyndbg="file x +p"', "quiet"),
    )


# --- the command line ---


@pytest.mark.parametrize(
    ("present", "lacking"),
    [
        ("quiet", ("intel_iommu=on", "iommu=pt")),
        ("quiet intel_iommu=on", ("iommu=pt",)),
        ("intel_iommu=on,sm_on iommu=pt", ()),
        ("xintel_iommu=on iommu=ptx", ("intel_iommu=on", "iommu=pt")),
    ],
)
def test_only_what_lacks_is_added(present: str, lacking: tuple[str, ...]) -> None:
    assert missing(tokens(present), ("intel_iommu=on", "iommu=pt")) == lacking


LINES = st.lists(st.sampled_from(["quiet", "root=ZFS=rpool/ROOT/pve-1", "iommu=pt", "a=b", "", "  "]), max_size=6)


@given(LINES, st.sampled_from(["", "\n", "\n# mine\n", "\n\n"]))
def test_a_command_line_comes_back_byte_by_byte(words: list[str], end: str) -> None:
    text = " ".join(words) + end
    added = ("intel_iommu=on", "iommu=pt")
    changed = with_arguments(text, added)
    assert set(added) <= set(tokens(changed.partition("\n")[0]))
    assert changed.partition("\n")[2] == text.partition("\n")[2]
    assert without_arguments(changed, added) == text


def test_what_others_added_since_stays() -> None:
    assert (
        without_arguments("quiet intel_iommu=on iommu=pt mitigations=off\n", ("intel_iommu=on", "iommu=pt"))
        == "quiet mitigations=off\n"
    )


def test_an_iommu_that_is_turned_off_is_the_operators_to_turn_on() -> None:
    with pytest.raises(Refused, match=r"intel_iommu=off.*/etc/default/grub"):
        decided(setup=replace(GRUB, arguments=("quiet", "intel_iommu=off")))


# --- the boot loader ---

STATUS_UEFI = "status 5FAD-0D7C is configured with: uefi (versions: 6.8.12-4-pve, 6.8.4-2-pve)"
STATUS_GRUB = "status 8357-FBD5 is configured with: grub (versions: 6.8.12-4-pve)"
STATUS_BOTH = "status 5FAD-0D7C is configured with: uefi (versions: 6.8.12-4-pve), grub (versions: 6.8.12-4-pve)"
SYSTEMD_ENTRY = r"entry Boot0001* Linux Boot Manager	HD(2,GPT,0)/File(\EFI\SYSTEMD\SYSTEMD-BOOTX64.EFI)"
GRUB_ENTRY = r"entry Boot0002* proxmox	HD(2,GPT,0)/File(\EFI\PROXMOX\GRUBX64.EFI)"
SHIM_ENTRY = r"entry Boot0002* proxmox	HD(2,GPT,0)/File(\EFI\PROXMOX\SHIMX64.EFI)"


@pytest.mark.parametrize(
    ("lines", "loader"),
    [
        (["grub", "arguments quiet"], BootLoader.GRUB),
        (
            ["grub", "tool", "status E: /etc/kernel/proxmox-boot-uuids does not exist.", "arguments quiet"],
            BootLoader.GRUB,
        ),
        (
            ["efi", "grub", "tool", "cmdline root=x", "entry BootCurrent: 0001", SYSTEMD_ENTRY, GRUB_ENTRY],
            BootLoader.SYSTEMD_BOOT,
        ),
        (
            [
                "efi",
                "grub",
                "tool",
                "cmdline root=x",
                "entry BootCurrent: 0002",
                SYSTEMD_ENTRY,
                GRUB_ENTRY,
                STATUS_UEFI,
            ],
            BootLoader.GRUB,
        ),
        (["efi", "grub", "tool", "entry BootCurrent: 0002", SHIM_ENTRY, STATUS_GRUB], BootLoader.GRUB),
        (["efi", "grub", "tool", "cmdline root=x", STATUS_UEFI], BootLoader.SYSTEMD_BOOT),
        (["efi", "grub", "tool", "cmdline root=x", STATUS_BOTH], BootLoader.SYSTEMD_BOOT),
        (["grub", "tool", "cmdline root=x", STATUS_BOTH], BootLoader.GRUB),
        (["efi", "grub", "entry BootCurrent: 0003", "entry Boot0003* UEFI OS"], BootLoader.GRUB),
    ],
)
def test_what_starts_the_host(lines: list[str], loader: BootLoader) -> None:
    assert boot_loader(parse_setup(lines)) is loader


def test_the_command_line_goes_where_it_is_read() -> None:
    for lines, programs in (
        (["grub", "arguments quiet"], ["update-grub"]),
        (
            ["efi", "grub", "tool", "entry BootCurrent: 0002", SHIM_ENTRY, STATUS_GRUB],
            ["update-grub", "proxmox-boot-tool refresh"],
        ),
        (["efi", "tool", "cmdline root=x", STATUS_UEFI], ["proxmox-boot-tool refresh"]),
    ):
        setup = parse_setup(lines)
        assert [one.split(maxsplit=1)[1] for one in refresh_commands(setup, boot_loader(setup))] == programs


@pytest.mark.parametrize("lines", [[], ["efi"], ["efi", "tool", STATUS_UEFI], ["tool", "cmdline root=x"]])
def test_a_host_that_starts_otherwise_is_refused(lines: list[str]) -> None:
    with pytest.raises(Refused, match="neither GRUB"):
        boot_loader(parse_setup(lines))


def test_a_systemd_boot_host_keeps_what_its_operator_has_set() -> None:
    setup = BootSetup(efi=True, tool=True, cmdline=("root=ZFS=rpool/ROOT/pve-1 iommu=pt",), status=(STATUS_UEFI[7:],))
    machine = replace(PVE, kernel="6.5.13-6-pve")
    assert decided(machine=machine, setup=setup).added == ("intel_iommu=on",)
    # The second deploy knows its own from theirs.
    after = replace(setup, cmdline=("root=ZFS=rpool/ROOT/pve-1 iommu=pt intel_iommu=on",))
    assert plan(ProxmoxData(), BOARD, machine, after, ours=("intel_iommu=on",)).added == ("intel_iommu=on",)


# --- binding ---


def test_by_ids_where_the_card_is_the_only_one() -> None:
    files = decided().files
    assert set(files) == {MODPROBE_FILE, MODULES_FILE}
    lines = files[MODPROBE_FILE].splitlines()
    assert "options vfio-pci ids=10de:13f1,10de:0fbb disable_vga=1" in lines
    assert {
        "softdep nouveau pre: vfio-pci",
        "softdep nvidia pre: vfio-pci",
        "softdep snd_hda_intel pre: vfio-pci",
    } <= set(lines)
    assert "blacklist nouveau" in lines
    assert "blacklist snd_hda_intel" not in lines  # the host's own sound has that driver, too
    assert files[MODULES_FILE].splitlines()[1:] == ["vfio", "vfio_iommu_type1", "vfio_pci"]


def test_by_address_where_a_twin_stays() -> None:
    devices = (*BOARD, second(GPU), second(SOUND))
    files = decided(devices, passthrough_devices="0000:01:00").files
    assert set(files) == {MODPROBE_FILE, MODULES_FILE, UDEV_FILE, HOOK_FILE}
    assert "ids=" not in files[MODPROBE_FILE]
    assert "blacklist" not in files[MODPROBE_FILE]  # the twin needs its driver
    assert [line.split('"')[5] for line in files[UDEV_FILE].splitlines()[1:]] == ["0000:01:00.0", "0000:01:00.1"]
    with pytest.raises(Refused, match=r"would take 0000:03:00\.0"):
        decided(devices, passthrough_devices="0000:01:00", passthrough_binding="ids")


def test_another_nvidia_card_that_stays_keeps_its_driver() -> None:
    devices = (*BOARD, second(GPU, device=0x2684))
    files = decided(devices, passthrough_devices="10de:13f1").files
    assert "ids=10de:13f1,10de:0fbb" in files[MODPROBE_FILE]
    assert "blacklist" not in files[MODPROBE_FILE]
    assert binding_of(choose(devices, ["10de:13f1"]), devices, Binding.ADDRESS) is Binding.ADDRESS


def test_a_device_that_is_no_gpu_is_bound_before_its_driver() -> None:
    idle = replace(NIC, interfaces=(Interface("enp2s0", "down"),))
    devices = (*BOARD[:-1], idle)
    files = binding_files(choose(devices, ["02:00"]), devices, Binding.IDS, ("vfio",))
    assert files[MODPROBE_FILE].splitlines()[1:] == ["options vfio-pci ids=8086:10d3", "softdep e1000e pre: vfio-pci"]


# --- afterwards ---


def test_what_is_due_and_what_is_wrong() -> None:
    made = decided()
    assert "started without iommu=pt" in (due(made, BOARD, replace(PVE, cmdline=("quiet",))) or "")
    assert "0000:01:00.0 (10de:13f1, nouveau)" in (due(made, BOARD, PVE) or "")
    bound = tuple(replace(device, driver="vfio-pci") if device.vendor == 0x10DE else device for device in BOARD)
    assert due(made, bound, PVE) is None
    assert defect(made, bound, PVE) is None
    shared = (*bound[:-1], replace(NIC, group=1))
    assert "shares an IOMMU group" in (defect(made, shared, PVE) or "")
    assert "no IOMMU group" in (defect(made, tuple(replace(device, group=None) for device in bound), PVE) or "")
    assert "no device at 0000:01:00" in (defect(made, bound[:3], PVE) or "")


def test_a_renamed_network_interface_is_an_error() -> None:
    before = {"52:54:00:00:00:01": "enp2s0", "52:54:00:00:00:02": "enp5s0"}
    assert renamed(before, {"52:54:00:00:00:01": "enp2s0"}) is None  # the other one was given away
    assert "enp2s0 is now enp3s0" in (renamed(before, {"52:54:00:00:00:01": "enp3s0"}) or "")


# --- the inventory ---


def test_an_operators_mistakes_are_told_at_once() -> None:
    hosts: dict[str, dict[str, Any]] = {
        "pve1": {"passthrough_devices": "10DE:13F1"},
        "pve2": {"passthrough_device": "nvidia"},
        "pve3": {"passthrough": "maybe", "passthrough_binding": "magic"},
        "pve4": {"passthrough_devices": ["0000:01:00", "10de:2684"], "allow_reboot": True, "driver": "open"},
    }
    with pytest.raises(DeployError) as refused:
        parse_proxmox_hosts(hosts)
    told = str(refused.value)
    assert "pve1: passthrough_devices: '10DE:13F1' is neither" in told
    assert "pve2: passthrough_device is not a variable of ours; did you mean passthrough_devices?" in told
    assert "pve3: passthrough: " in told
    assert "passthrough_binding: " in told
    assert "pve4" not in told
    assert parse_proxmox_hosts({"pve4": hosts["pve4"]})["pve4"].passthrough_devices == ("0000:01:00", "10de:2684")
