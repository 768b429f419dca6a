"""GPU health, through the genuine ``nvidia-ml-py`` and a stand-in for NVIDIA's shared library.

The library is the only simulation, since no build machine has a card to lose: ``tests/nvml.py`` compiles it, and it answers
NVML's C API with the values of a control file. Most tests hand it to the binding in place of the library it
would have loaded; those that are about loading run in a process of their own, where the binding finds it by name.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pynvml
import pytest

from metalscribe.gpu.health import GpuHealth, GpuProcess, GpuReport, MigInstance, ProblemCode, visible
from metalscribe.gpu.nvml import Nvml
from nvml import GIB, GPU_1, HEALTHY, LIBRARY, SYSTEM, UUID_0, UUID_1, compiled, tell

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

SERVICE = Path(__file__).parents[2] / "service"
MIG_A, MIG_B = "MIG-41b35c1c-9d5b-5a9e-a7d5-9c2f8f7a1d10", "MIG-41ffee00-0000-5a9e-a7d5-9c2f8f7a1d11"
MIG = HEALTHY | {
    "gpu1.name": "NVIDIA H100 PCIe",
    "gpu1.mig": "1",
    "gpu1.mig_max": "4",
    "gpu1.mig0.uuid": MIG_A,
    "gpu1.mig0.name": "NVIDIA H100 PCIe MIG 3g.40gb",
    "gpu1.mig0.gpu_instance": "2",
    "gpu1.mig0.compute_instance": "0",
    "gpu1.mig0.memory_total": str(40 * GIB),
    "gpu1.mig0.memory_reserved": "0",
    "gpu1.mig0.memory_free": str(30 * GIB),
    "gpu1.mig0.processes_compute": f"7:{10 * GIB}",
    "gpu1.mig2.uuid": MIG_B,
    "gpu1.mig2.gpu_instance": "9",
    "gpu1.mig2.compute_instance": "0",
    "gpu1.error.nvmlDeviceGetUtilizationRates": "3",
}


@dataclasses.dataclass(frozen=True)
class FakeDriver:
    """The library as one test has it; ``settings`` are those of its control file."""

    control: Path
    library: ctypes.CDLL

    def set(self, settings: Mapping[str, str], **more: str) -> None:
        tell(self.control, {**settings, **more})

    def raise_xid(self, gpu: int, xid: int, *, alias: bool = False) -> bool:
        return bool(self.library.fake_raise_xid(gpu, ctypes.c_ulonglong(xid), int(alias)))

    @property
    def references(self) -> int:
        return int(self.library.fake_references())

    @property
    def event_sets(self) -> int:
        return int(self.library.fake_event_sets())

    @property
    def initialisations(self) -> int:
        return int(self.library.fake_initialisations())


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Compile the library, once for each set of flags."""
    built: dict[tuple[str, ...], Path] = {}

    def library(*flags: str) -> Path:
        if flags not in built:
            built[flags] = compiled(tmp_path_factory.mktemp("nvml"), *flags)
        return built[flags]

    return library


@pytest.fixture
def flags() -> tuple[str, ...]:
    return ()


@pytest.fixture
def driver(
    build: Callable[..., Path], flags: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> FakeDriver:
    """Put a library without any state into the binding's hands, where it keeps the one it has loaded."""
    library = ctypes.CDLL(str(shutil.copy(build(*flags), tmp_path / LIBRARY)))
    fake = FakeDriver(tmp_path / "control", library)
    fake.set(HEALTHY)
    monkeypatch.setenv("FAKE_NVML_CONTROL", str(fake.control))
    monkeypatch.setattr(pynvml, "nvmlLib", library)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    return fake


@pytest.fixture
def nvml(driver: FakeDriver) -> Iterator[Nvml]:
    with Nvml() as opened:
        yield opened
    assert driver.references == 0, "the driver was not let go"


def test_every_field_of_two_healthy_gpus(nvml: Nvml, driver: FakeDriver) -> None:
    report = nvml.report()
    assert (report.driver_version, report.cuda_version, report.problem) == ("580.95.05", "13.0", None)
    assert report.problems() == ()
    assert report.gpus[0] == GpuHealth(
        index=0,
        name="NVIDIA L40S",
        uuid=UUID_0,
        pci_bus_id="0000:c1:00.0",
        memory_total=48 * GIB,
        memory_reserved=1 * GIB,
        memory_free=40 * GIB,
        memory_used=7 * GIB,
        utilization_gpu=87,
        utilization_memory=31,
        temperature_celsius=71,
        power_watts=299.512,
        power_limit_watts=350.0,
        clock_sm_mhz=2520,
        clock_memory_mhz=9001,
        clock_reasons=("sw_power_cap", "sw_thermal_slowdown"),
        ecc_enabled=True,
        ecc_corrected=3,
        ecc_uncorrected=1,
        pcie_generation=1,
        pcie_generation_max=4,
        pcie_width=8,
        pcie_width_max=16,
        mig_enabled=False,
        mig_instances=(),
        last_xid=None,
        processes=(GpuProcess(17, None), GpuProcess(99, GIB), GpuProcess(4242, 5 * GIB)),
        problem=None,
    )
    second = report.gpus[1]
    assert (second.index, second.uuid, second.pci_bus_id) == (1, UUID_1, "10000:02:1f.0")
    assert (second.clock_reasons, second.processes) == ((), ())
    assert nvml.memory(0) == (40 * GIB, 48 * GIB)
    assert nvml.memory(2) is None
    assert driver.initialisations == 1


def test_a_report_is_plain_json(nvml: Nvml, driver: FakeDriver) -> None:
    driver.set(MIG | {"gpu0.lost": "1"})
    data = json.loads(json.dumps(nvml.report().to_dict()))
    assert data["gpus"][0]["problem"]["code"] == "gpu_lost"
    assert data["gpus"][1]["mig_instances"][0]["uuid"] == MIG_A
    assert data["driver_version"] == "580.95.05"


def test_clock_reasons_are_words_and_newer_bits_are_kept(nvml: Nvml, driver: FakeDriver) -> None:
    words = [
        "gpu_idle",
        "applications_clocks_setting",
        "sw_power_cap",
        "hw_slowdown",
        "sync_boost",
        "sw_thermal_slowdown",
        "hw_thermal_slowdown",
        "hw_power_brake_slowdown",
        "display_clock_setting",
        "board_limit",
        "reliability",
        "unknown_0x800",
        "unknown_0x8000000000000000",
    ]
    driver.set(HEALTHY | {"gpu0.clock_reasons": "0x8000000000000fff"})
    assert nvml.report().gpus[0].clock_reasons == tuple(words)


def test_mig(nvml: Nvml, driver: FakeDriver) -> None:
    driver.set(MIG)
    gpu = nvml.report().gpus[1]
    assert gpu.mig_enabled is True
    assert gpu.mig_instances == (
        MigInstance(MIG_A, "NVIDIA H100 PCIe MIG 3g.40gb", 2, 0, 40 * GIB, 30 * GIB, 10 * GIB),
        MigInstance(MIG_B, None, 9, 0, None, None, None),
    )
    assert (gpu.utilization_gpu, gpu.utilization_memory) == (None, None)
    assert gpu.problem is None


def test_processes_of_mig_instances_where_the_whole_card_may_not_be_asked(nvml: Nvml, driver: FakeDriver) -> None:
    forbidden = dict.fromkeys(
        (
            f"gpu1.error.nvmlDeviceGet{kind}RunningProcesses_{version}"
            for kind in ("Compute", "Graphics", "MPSCompute")
            for version in ("v2", "v3")
        ),
        str(pynvml.NVML_ERROR_NO_PERMISSION),
    )
    driver.set(MIG | forbidden)
    gpu = nvml.report().gpus[1]
    assert gpu.processes == (GpuProcess(7, 10 * GIB),)
    assert gpu.problem is None


def test_a_lost_gpu_does_not_hide_the_other_and_is_found_again(nvml: Nvml, driver: FakeDriver) -> None:
    healthy = nvml.report()
    driver.set(HEALTHY | {"gpu0.lost": "1"})
    report = nvml.report()
    lost = report.gpus[0]
    assert lost.problem is not None
    assert lost.problem.code == ProblemCode.GPU_LOST
    assert "NVIDIA L40S" in lost.problem.message
    assert "0000:c1:00.0" in lost.problem.message
    assert "reboot" in lost.problem.message
    assert (lost.uuid, lost.name, lost.memory_free) == (UUID_0, "NVIDIA L40S", None)
    assert (report.gpus[1], report.problem) == (healthy.gpus[1], None)
    assert report.problems() == (lost.problem,)
    assert driver.references == 0, "the driver cannot be reloaded while the session is open"
    assert nvml.memory(0) is None
    assert nvml.memory(1) == (40 * GIB, 48 * GIB)

    driver.set(HEALTHY)
    assert nvml.report() == healthy


def test_a_gpu_lost_while_it_is_read_keeps_what_was_read_and_is_asked_no_more(nvml: Nvml, driver: FakeDriver) -> None:
    odd_before = {"gpu0.error.nvmlDeviceGetPciInfo_v3": str(pynvml.NVML_ERROR_UNKNOWN)}
    lost_here = {"gpu0.error.nvmlDeviceGetUtilizationRates": str(pynvml.NVML_ERROR_GPU_IS_LOST)}
    driver.set(HEALTHY | odd_before | lost_here)
    gpu = nvml.report().gpus[0]
    assert gpu.problem is not None
    assert gpu.problem.code == ProblemCode.GPU_LOST
    assert (gpu.memory_free, gpu.utilization_gpu, gpu.temperature_celsius, gpu.processes) == (
        40 * GIB,
        None,
        None,
        None,
    )


def test_a_gpu_lost_in_memory_is_found_again(nvml: Nvml, driver: FakeDriver) -> None:
    assert nvml.memory(0) is not None
    driver.set(HEALTHY | {"gpu0.lost": "1"})
    assert nvml.memory(0) is None
    driver.set(HEALTHY)
    assert nvml.memory(0) == (40 * GIB, 48 * GIB)


def test_a_gpu_that_is_no_longer_listed_is_missed(nvml: Nvml, driver: FakeDriver) -> None:
    nvml.report()
    moved = {key.replace("gpu1", "gpu0"): value for key, value in GPU_1.items()}
    driver.set(SYSTEM | moved | {"count": "1"})
    report = nvml.report()
    assert [gpu.uuid for gpu in report.gpus] == [UUID_1]
    assert report.problem is not None
    assert report.problem.code == ProblemCode.GPU_MISSING
    assert UUID_0 in report.problem.message
    assert UUID_1 not in report.problem.message

    driver.set(HEALTHY)
    assert nvml.report().problem is None


@pytest.mark.parametrize(
    ("error", "code", "advice"),
    [
        (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, ProblemCode.DRIVER_MISMATCH, "Reboot"),
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, ProblemCode.DRIVER_NOT_LOADED, "modprobe nvidia"),
        (pynvml.NVML_ERROR_NO_PERMISSION, ProblemCode.NO_PERMISSION, "/dev/nvidia*"),
        (pynvml.NVML_ERROR_GPU_IS_LOST, ProblemCode.GPU_LOST, "reboot"),
        (pynvml.NVML_ERROR_NOT_FOUND, ProblemCode.NO_GPU, "lspci"),
        (pynvml.NVML_ERROR_UNKNOWN, ProblemCode.NVML_ERROR, '999, "Unknown Error"'),
        (4242, ProblemCode.NVML_ERROR, '4242, "in the library\'s own words"'),
    ],
)
def test_a_driver_that_does_not_start_and_then_does(
    nvml: Nvml, driver: FakeDriver, error: int, code: ProblemCode, advice: str
) -> None:
    driver.set(HEALTHY | {"error.nvmlInitWithFlags": str(error)})
    report = nvml.report()
    assert report.gpus == ()
    assert report.problem is not None
    assert report.problem.code == code
    assert advice in report.problem.message
    assert nvml.memory(0) is None

    driver.set(HEALTHY)
    report = nvml.report()
    assert (len(report.gpus), report.problem) == (2, None)


@pytest.mark.parametrize(
    "where", ["error.*", "error.nvmlDeviceGetHandleByIndex_v2", "error.nvmlSystemGetDriverVersion"]
)
def test_a_driver_replaced_during_the_session(nvml: Nvml, driver: FakeDriver, where: str) -> None:
    assert nvml.report().problem is None
    driver.set(HEALTHY | {where: str(pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH)})
    report = nvml.report()
    assert report.problem is not None
    assert report.problem.code == ProblemCode.DRIVER_MISMATCH
    assert driver.references == 0
    driver.set(HEALTHY)
    assert nvml.report().problem is None


def test_a_session_ended_by_others_is_reopened(nvml: Nvml, driver: FakeDriver) -> None:
    healthy = nvml.report()
    pynvml.nvmlShutdown()
    assert nvml.report() == healthy
    pynvml.nvmlShutdown()
    assert nvml.memory(0) == (40 * GIB, 48 * GIB)
    assert (driver.initialisations, driver.references) == (3, 1)


@pytest.mark.parametrize(
    ("error", "code", "advice"),
    [
        (pynvml.NVML_ERROR_RESET_REQUIRED, ProblemCode.GPU_RESET_REQUIRED, "--gpu-reset -i 1"),
        (pynvml.NVML_ERROR_GPU_NOT_FOUND, ProblemCode.GPU_LOST, "passed through"),
        (pynvml.NVML_ERROR_NO_PERMISSION, ProblemCode.NO_PERMISSION, "DeviceAllow="),
        (pynvml.NVML_ERROR_INSUFFICIENT_POWER, ProblemCode.GPU_POWER_CABLE, "power cables"),
        (pynvml.NVML_ERROR_IRQ_ISSUE, ProblemCode.GPU_INTERRUPTS, "interrupts"),
        (pynvml.NVML_ERROR_UNKNOWN, ProblemCode.NVML_ERROR, '999, "Unknown Error"'),
        (pynvml.NVML_ERROR_NOT_SUPPORTED, ProblemCode.NVML_ERROR, '3, "Not Supported"'),
    ],
)
def test_a_gpu_whose_handle_is_refused(
    nvml: Nvml, driver: FakeDriver, error: int, code: ProblemCode, advice: str
) -> None:
    driver.set(HEALTHY | {"gpu1.error.nvmlDeviceGetHandleByIndex_v2": str(error)})
    report = nvml.report()
    assert report.problem is None
    assert report.gpus[0].problem is None
    problem = report.gpus[1].problem
    assert problem is not None
    assert problem.code == code
    assert advice in problem.message
    assert "GPU 1" in problem.message


def test_an_unknown_error_of_one_question_is_told_and_the_rest_is_read(nvml: Nvml, driver: FakeDriver) -> None:
    driver.set(HEALTHY | {"gpu0.error.nvmlDeviceGetPowerUsage": "4242"})
    gpu = nvml.report().gpus[0]
    assert gpu.power_watts is None
    assert (gpu.temperature_celsius, gpu.pcie_width_max) == (71, 16)
    assert gpu.problem is not None
    assert gpu.problem.code == ProblemCode.NVML_ERROR
    assert 'nvmlDeviceGetPowerUsage answers with error 4242, "in the library\'s own words"' in gpu.problem.message
    assert driver.references == 1, "one odd answer is no reason to end the session"


def test_a_gpu_that_answers_nothing_but_its_handle(nvml: Nvml, driver: FakeDriver) -> None:
    driver.set({"count": "1"})
    assert nvml.report() == GpuReport(None, None, (GpuHealth(index=0),), None)
    assert nvml.memory(0) is None


def test_a_gpu_on_which_every_question_is_forbidden(nvml: Nvml, driver: FakeDriver) -> None:
    allowed = {"gpu0.error.nvmlDeviceGetHandleByIndex_v2": str(pynvml.NVML_SUCCESS)}
    driver.set(HEALTHY | allowed | {"gpu0.error.*": str(pynvml.NVML_ERROR_NO_PERMISSION)})
    report = nvml.report()
    assert report.gpus[0] == GpuHealth(index=0)
    assert report.gpus[1].problem is None


def test_a_name_that_is_not_text_is_no_name(nvml: Nvml, driver: FakeDriver) -> None:
    driver.set(HEALTHY | {"gpu0.name": "\xff\xfe\xfd"})
    gpu = nvml.report().gpus[0]
    assert (gpu.name, gpu.uuid, gpu.problem) == (None, UUID_0, None)


def test_power_limit_of_the_card_where_the_enforced_one_is_not_told(nvml: Nvml, driver: FakeDriver) -> None:
    without = {key: value for key, value in HEALTHY.items() if key != "gpu0.power_limit"}
    driver.set(without | {"gpu0.power_limit_set": "320000"})
    assert nvml.report().gpus[0].power_limit_watts == 320.0


def test_a_machine_whose_driver_drives_nothing(nvml: Nvml, driver: FakeDriver) -> None:
    driver.set(SYSTEM | {"count": "0"})
    report = nvml.report()
    assert (report.gpus, report.driver_version) == ((), "580.95.05")
    assert report.problem is not None
    assert report.problem.code == ProblemCode.NO_GPU


@pytest.mark.parametrize("flags", [("-DOLD_LIBRARY",)])
def test_an_old_driver_answers_through_its_older_functions(nvml: Nvml) -> None:
    with pytest.raises(pynvml.NVMLError_FunctionNotFound):
        pynvml.nvmlDeviceGetMigMode(None)
    gpu = nvml.report().gpus[0]
    assert (gpu.memory_total, gpu.memory_reserved, gpu.memory_free, gpu.memory_used) == (
        48 * GIB,
        None,
        40 * GIB,
        8 * GIB,
    )
    assert (gpu.temperature_celsius, gpu.clock_reasons) == (71, ("sw_power_cap", "sw_thermal_slowdown"))
    assert gpu.processes == (GpuProcess(17, None), GpuProcess(4242, 5 * GIB))
    assert (gpu.mig_enabled, gpu.problem) == (None, None)
    assert nvml.memory(0) == (40 * GIB, 48 * GIB)


@pytest.mark.parametrize("alias", [False, True])
def test_the_last_xid_is_remembered(nvml: Nvml, driver: FakeDriver, *, alias: bool) -> None:
    assert nvml.report().gpus[1].last_xid is None
    for xid in (13, 94):
        assert driver.raise_xid(1, xid, alias=alias)
    report = nvml.report()
    assert [gpu.last_xid for gpu in report.gpus] == [None, 94]
    assert [gpu.last_xid for gpu in nvml.report().gpus] == [None, 94]
    nvml.close()
    assert driver.event_sets == 0
    assert [gpu.last_xid for gpu in nvml.report().gpus] == [None, 94]
    assert driver.raise_xid(1, 31), "the new session did not ask for events"
    assert nvml.report().gpus[1].last_xid == 31


@pytest.mark.parametrize("first", ["report", "memory", "close"])
def test_the_xid_of_a_gpu_that_was_lost_is_told(nvml: Nvml, driver: FakeDriver, first: str) -> None:
    nvml.report()
    assert driver.raise_xid(0, 79)
    driver.set(HEALTHY | {"gpu0.lost": "1"})
    {"report": nvml.report, "memory": lambda: nvml.memory(0), "close": nvml.close}[first]()
    lost = nvml.report().gpus[0]
    assert lost.last_xid == 79
    assert lost.problem is not None
    assert "XID error: 79" in lost.problem.message


def test_a_storm_of_xids_does_not_keep_a_report_from_ending(nvml: Nvml, driver: FakeDriver) -> None:
    nvml.report()
    for xid in range(1, 1001):
        assert driver.raise_xid(0, xid)
    seen = [nvml.report().gpus[0].last_xid for _ in range(5)]
    assert seen == sorted(seen, key=lambda xid: xid or 0)
    assert seen[0] != 1000
    assert seen[-1] == 1000


@pytest.mark.parametrize("function", ["nvmlEventSetCreate", "nvmlDeviceRegisterEvents", "nvmlEventSetWait_v2"])
def test_without_events_everything_else_is_told(nvml: Nvml, driver: FakeDriver, function: str) -> None:
    driver.set(HEALTHY | {f"error.{function}": str(pynvml.NVML_ERROR_NOT_SUPPORTED)})
    report = nvml.report()
    assert report.problems() == ()
    assert [gpu.last_xid for gpu in report.gpus] == [None, None]


def test_threads_share_one_session(nvml: Nvml, driver: FakeDriver) -> None:
    threads = 8
    driver.set(HEALTHY, init_ms="50")  # long enough for every thread to find no session yet
    together = threading.Barrier(threads, timeout=30)

    def ask(number: int) -> GpuReport | tuple[int, int] | None:
        together.wait()
        return nvml.report() if number % 2 else nvml.memory(0)

    with ThreadPoolExecutor(threads) as pool:
        answers = list(pool.map(ask, range(threads)))
    assert driver.initialisations == driver.references == 1
    for answer in answers:
        assert answer == (40 * GIB, 48 * GIB) or (isinstance(answer, GpuReport) and answer.problems() == ())


def test_closing_in_one_thread_does_not_disturb_another(nvml: Nvml, driver: FakeDriver) -> None:
    together = threading.Barrier(4, timeout=30)

    def ask(number: int) -> list[GpuReport]:
        together.wait()
        if number:
            return [nvml.report() for _ in range(20)]
        for _ in range(40):
            nvml.close()
        return []

    with ThreadPoolExecutor(4) as pool:
        reports = [report for some in pool.map(ask, range(4)) for report in some]
    assert len(reports) == 60
    assert all(report.problems() == () for report in reports)
    assert driver.references <= 1


# --- how the binding finds the library: a process of its own, since a library that is loaded stays loaded ---------------

PROGRAM = """
import json, sys
from metalscribe.gpu.nvml import Nvml
with Nvml() as nvml:
    for line in sys.stdin:
        print(json.dumps({"report": nvml.report().to_dict(), "memory": nvml.memory(0)}), flush=True)
"""


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Callable[[], dict[str, object]]]:
    """Ask a process that looks for the library in an empty folder first; the folder is ``tmp_path/lib``."""
    (tmp_path / "lib").mkdir()
    environment = os.environ | {
        "LD_LIBRARY_PATH": str(tmp_path / "lib"),
        "PYTHONPATH": str(SERVICE),
        "FAKE_NVML_CONTROL": str(tmp_path / "control"),
    }
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def ask() -> dict[str, object]:
            stdin.write("report\n")
            stdin.flush()
            answer: dict[str, object] = json.loads(stdout.readline())
            return answer

        yield ask
        stdin.close()
        assert process.wait(timeout=30) == 0


def test_no_library_and_then_one_is_installed(
    build: Callable[..., Path], program: Callable[[], dict[str, object]], tmp_path: Path
) -> None:
    # Not a library: the loader stops here even on a machine that has the real one.
    (tmp_path / "lib" / LIBRARY).write_bytes(b"not a library")
    FakeDriver(tmp_path / "control", ctypes.CDLL(None)).set(HEALTHY)
    answer = program()
    report = answer["report"]
    assert isinstance(report, dict)
    assert (report["problem"]["code"], report["gpus"], answer["memory"]) == ("no_nvidia_driver", [], None)

    fresh = tmp_path / "lib" / "fresh"
    shutil.copy(build(), fresh)
    fresh.replace(tmp_path / "lib" / LIBRARY)
    answer = program()
    report = answer["report"]
    assert isinstance(report, dict)
    assert (report["problem"], [gpu["uuid"] for gpu in report["gpus"]]) == (None, [UUID_0, UUID_1])
    assert answer["memory"] == [40 * GIB, 48 * GIB]


# --- which of them CUDA uses --------------------------------------------------------------------------------------------

SLICES = (
    MigInstance(MIG_A, None, 2, 0, 40 * GIB, 30 * GIB, 10 * GIB),
    MigInstance(MIG_B, None, 9, 0, 40 * GIB, 30 * GIB, 10 * GIB),
)
REPORT = GpuReport(
    None,
    None,
    (
        GpuHealth(index=0, uuid=UUID_0),
        GpuHealth(index=1, uuid=UUID_1),
        GpuHealth(index=2, uuid="GPU-c0ffee00-1111-2222-3333-444455556666", mig_enabled=True, mig_instances=SLICES),
        GpuHealth(index=3),
    ),
    None,
)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, [0, 1, 2, 3]),
        ("", []),
        ("0", [0]),
        ("2,0", [2, 0]),
        (" 1 , 0 ", [1, 0]),
        ("+1", [1]),
        ("1gpu,2", [1, 2]),
        ("0,2,-1,1", [0, 2]),
        ("-1", []),
        ("7,0", []),
        ("0,,1", [0]),
        ("0,1,0", []),
        ("all", []),
        ("NoDevFiles", []),
        ("²", []),
        (UUID_1, [1]),
        ("GPU-893,GPU-89a", [0, 1]),
        ("GPU-89", []),
        ("GPU-893,GPU-89", [0]),
        ("GPU-893,GPU-8932", []),
        ("GPU-893,1", [0]),
        ("0,GPU-89a", [0]),
        ("GPU-ffff,GPU-893", []),
    ],
)
def test_visible(value: str | None, expected: list[int]) -> None:
    assert [gpu.index for gpu in visible(REPORT, value)] == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (MIG_B, [MIG_B]),
        ("MIG-41b,MIG-41f", [MIG_A, MIG_B]),
        ("MIG-41", []),
        ("MIG-41b,MIG-41b3", []),
        ("MIG-41b,GPU-893", [MIG_A]),
        ("MIG-GPU-c0ffee00-1111-2222-3333-444455556666/9/0", [MIG_B]),
        ("MIG-GPU-c0ffee00-1111-2222-3333-444455556666/9/1", []),
        ("MIG-GPU-8932f937-d72c-4106-c12f-20bd9faed9f6/9/0", []),
    ],
)
def test_visible_slices(value: str, expected: list[str]) -> None:
    chosen = visible(REPORT, value)
    assert [gpu.index for gpu in chosen] == [2] * len(expected)
    assert [[instance.uuid for instance in gpu.mig_instances] for gpu in chosen] == [[uuid] for uuid in expected]
