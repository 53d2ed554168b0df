"""GPUs through the unmodified nvidia-ml-py and a fake libnvidia-ml.so.1, in processes of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from engine.machine import Machine
from tests.fakes.nvml import FakeNvml, build
from tests.limits import LIMIT_S

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="the fake driver is compiled with gcc")

DETECT = "import json; from engine.machine import detect; print(json.dumps(detect().to_json()))"
ROOT = Path(__file__).parents[2]

type See = Callable[..., Machine]


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("nvml"))


def run_python(code: str, environment: Mapping[str, str]) -> str:
    base = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**base, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout


@pytest.fixture
def see(library: Path, tmp_path: Path) -> See:
    def see_machine(name: str, changes: Mapping[str, object] | None = None, **environment: str) -> Machine:
        fake = FakeNvml(library, tmp_path / "state", name, changes)
        return Machine.from_json(json.loads(run_python(DETECT, {**fake.environment, **environment})))

    return see_machine


def keys(machine: Machine) -> list[str]:
    return [finding.key for finding in machine.findings]


@pytest.mark.parametrize(
    ("name", "gpus", "cell", "capability"),
    [
        ("1xa100", "1 x A100-SXM4-80GB", None, (8, 0)),
        ("8xh100", "8 x H100 80GB HBM3 (NVLink)", "NV18", (9, 0)),
        ("8xh200", "8 x H200 (NVLink)", "NV18", (9, 0)),
        ("8xb200", "8 x B200 (NVLink)", "NV18", (10, 0)),
        ("2xl40s", "2 x L40S (PCIe)", "SYS", (8, 9)),
        ("4xa100-mesh", "4 x A100-SXM4-40GB (NVLink)", "NV4", (8, 0)),
    ],
)
def test_healthy_machines(see: See, name: str, gpus: str, cell: str | None, capability: tuple[int, int]) -> None:
    machine = see(name)
    assert machine.findings == ()
    assert machine.headline.startswith(f"{gpus} · ")
    assert {gpu.compute_capability for gpu in machine.gpus} == {capability}
    assert [row[i] for i, row in enumerate(machine.topology)] == ["X"] * len(machine.topology)
    assert {value for row in machine.topology for value in row} - {"X"} == ({cell} if cell else set())


def test_every_value_of_a_gpu(see: See) -> None:
    busy = {
        "gpu2.memory_used_mib": 512,
        "gpu2.utilisation": 7,
        "gpu2.temperature": 44,
        "gpu2.power_mw": 123_456,
        "gpu2.clock": 1755,
        "gpu2.throttle": 0x04 | 0x01,
        "gpu2.processes": "77:300,78:200",
        "process.77": "/opt/bin/train",
    }
    machine = see("8xh100", busy)
    gpu = machine.gpus[2]
    assert (machine.driver_version, machine.cuda_version) == ("580.65.06", (13, 0))
    assert (gpu.index, gpu.name, gpu.pci_id) == (2, "NVIDIA H100 80GB HBM3", "00000000:12:00.0")
    assert gpu.uuid == "GPU-00000002-0000-4000-8000-000000000002"
    assert gpu.memory_total_gib == pytest.approx(81_559 / 1024)
    assert gpu.memory_used_gib == 0.5
    assert gpu.memory_free_gib == pytest.approx(gpu.memory_total_gib - gpu.memory_reserved_gib - 0.5)
    assert gpu.memory_usable_gib == pytest.approx(gpu.memory_free_gib + 0.5)
    assert (gpu.utilisation_percent, gpu.temperature_c, gpu.clock_mhz, gpu.clock_max_mhz) == (7, 44, 1755, 1980)
    assert (gpu.power_w, gpu.power_limit_w) == (123.456, 700.0)
    assert gpu.throttle_reasons == ("power cap",)
    assert (gpu.ecc, gpu.ecc_uncorrected, gpu.mig_enabled) == (True, 0, False)
    assert (gpu.nvlinks, gpu.nvlink_version, gpu.has_nvswitch, gpu.nvlink_gb_per_s) == (18, 4, True, 450.0)
    assert (gpu.pcie_generation, gpu.pcie_width) == (5, 16)
    assert [(one.pid, one.name, one.memory_gib) for one in gpu.processes] == [
        (77, "train", 300 / 1024),
        (78, "", 200 / 1024),
    ]


@pytest.mark.parametrize(
    ("value", "indices", "found"),
    [
        ("3,1", [3, 1], []),
        ("GPU-00000004,GPU-00000000", [4, 0], []),
        ("", [], []),
        ("-1", [], []),
        ("0,1,9,2", [0, 1], ["gpu.visible"]),
        ("0,0", [], ["gpu.visible"]),
        ("GPU-0", [], ["gpu.visible"]),
    ],
)
def test_visible_devices(see: See, value: str, indices: list[int], found: list[str]) -> None:
    machine = see("8xh100", CUDA_VISIBLE_DEVICES=value)
    assert [gpu.index for gpu in machine.gpus] == indices
    assert sorted(gpu.index for gpu in machine.hidden_gpus) == sorted(set(range(8)) - set(indices))
    assert keys(machine) == found
    assert len(machine.topology) == (len(indices) if len(indices) > 1 else 0)


def test_mig_hides_the_split_gpu(see: See) -> None:
    machine = see("mig")
    assert [gpu.index for gpu in machine.gpus] == [1]
    assert keys(machine) == ["gpu.mig"]


@pytest.mark.parametrize("value", ["MIG-22222222-0000-5000-8000-000000000000", "MIG-2"])
def test_a_mig_slice_can_be_chosen(see: See, value: str) -> None:
    (part,) = see("mig", CUDA_VISIBLE_DEVICES=value).gpus
    assert part.is_mig_slice
    assert part.uuid.startswith("MIG-2222")
    assert part.name == "NVIDIA A100-SXM4-80GB MIG 3g.40gb"
    assert part.memory_total_gib == 40_192 / 1024
    assert part.nvlinks == 0
    assert part.utilisation_percent is None  # not told for split GPUs


def test_cuda_shows_one_slice_at_most(see: See) -> None:
    machine = see("mig", CUDA_VISIBLE_DEVICES="0")
    assert [gpu.uuid[:8] for gpu in machine.gpus] == ["MIG-1111"]
    assert "one slice" in machine.findings[0].why


def test_mig_without_slices(see: See) -> None:
    machine = see("mig", {"gpu0.slices": 0}, CUDA_VISIBLE_DEVICES="0")
    assert machine.gpus == ()
    assert "no slice is made" in machine.findings[0].what


def test_a_faulty_machine(see: See) -> None:
    machine = see("faulty")
    assert [gpu.index for gpu in machine.gpus] == [0, 1, 2, 4, 5, 6, 7]
    assert keys(machine) == [
        "gpu.lost", "gpu.unreadable", "gpu.nvlink", "gpu.busy", "gpu.throttled", "gpu.ecc",
    ]  # fmt: skip
    said = {finding.key: finding.what for finding in machine.findings}
    assert said["gpu.lost"] == "GPU 3 does not answer: GPU is lost"
    assert said["gpu.busy"] == "GPU 1 is busy: 60.0 GiB used, 97 % at work, by python3 4242"
    assert said["gpu.nvlink"] == "GPU 5 has 17 of 18 NVLinks"
    assert said["gpu.throttled"] == "GPU 5 is slowed down at 93 °C: hardware thermal slowdown"
    assert said["gpu.ecc"].startswith("GPU 6 had 2 uncorrected memory errors")
    assert said["gpu.unreadable"] == "GPU 6 does not tell PowerUsage: Insufficient Permissions"
    assert all(finding.why and finding.fix for finding in machine.findings)


def test_numbers_keep_their_meaning_beside_a_lost_gpu(see: See) -> None:
    machine = see("faulty", CUDA_VISIBLE_DEVICES="2,3,4")
    assert [gpu.index for gpu in machine.gpus] == [2, 4]
    assert "gpu.visible" not in keys(machine)


QUERIES = ["utilisation", "temperature", "power_mw", "power_limit_mw", "clock", "throttle", "ecc", "mig", "pci", "name",
           "uuid", "capability", "nvlink", "nvlink_end", "fabric", "processes", "topology", "pcie_width"]  # fmt: skip


@pytest.mark.parametrize("query", QUERIES)
def test_a_refused_query_costs_its_value_alone(see: See, query: str) -> None:
    machine = see("8xh100", {f"gpu4.error.{query}": 4})
    assert len(machine.gpus) == 8
    unreadable = [finding for finding in machine.findings if finding.key == "gpu.unreadable"]
    # Topology is asked only where no switch joins the GPUs.
    assert len(unreadable) == (0 if query == "topology" else 1)
    assert all(finding.what.startswith("GPU 4 does not tell ") for finding in unreadable)
    assert all("GPU 4" in finding.what or finding.key == "gpu.mixed" or finding.key == "gpu.order"
               for finding in machine.findings)  # fmt: skip


@pytest.mark.parametrize("query", ["utilisation", "memory", "handle", "all"])
def test_a_lost_gpu_is_left_out(see: See, query: str) -> None:
    machine = see("8xh100", {f"gpu4.error.{query}": 15})
    assert [gpu.index for gpu in machine.gpus] == [0, 1, 2, 3, 5, 6, 7]
    assert keys(machine) == ["gpu.lost"]


@pytest.mark.parametrize("query", [*QUERIES, "memory_v2", "event_reasons"])
def test_an_old_driver_without_a_query_is_no_finding(see: See, query: str) -> None:
    function_not_found = 13
    machine = see("8xh100", {f"gpu*.error.{query}": function_not_found})
    assert len(machine.gpus) == 8
    assert machine.findings == ()
    assert machine.gpus[0].memory_total_gib == pytest.approx(81_559 / 1024)


@pytest.mark.parametrize(
    ("code", "key"),
    [(4, "gpu.permission"), (9, "gpu.driver-not-loaded"), (18, "gpu.driver-mismatch"), (999, "gpu.driver-broken")],
)
def test_a_driver_that_cannot_be_opened(see: See, code: int, key: str) -> None:
    machine = see("8xh100", {"init_error": code})
    assert machine.gpus == ()
    assert keys(machine) == [key]
    assert machine.headline.startswith("no GPU · ")


def test_a_driver_that_goes_away_while_asked(see: See) -> None:
    machine = see("8xh100", {"gpu2.error.power_mw": 9})
    assert machine.gpus == ()
    assert keys(machine) == ["gpu.driver-not-loaded"]


def test_no_library_at_all(tmp_path: Path) -> None:
    machine = Machine.from_json(json.loads(run_python(DETECT, {"LD_LIBRARY_PATH": str(tmp_path)})))
    if machine.gpus:
        pytest.skip("a real driver is installed here")
    assert all(finding.key.startswith("gpu.") for finding in machine.findings)


def test_switches_that_are_not_set_up(see: See) -> None:
    machine = see("8xh100", {"gpu0.fabric": 1, "gpu1.fabric": 2})
    assert keys(machine) == ["gpu.fabric"]
    assert "GPU 0, 1" in machine.findings[0].what
    assert "fabricmanager" in machine.findings[0].fix


def test_different_gpus(see: See) -> None:
    machine = see("2xl40s", {"gpu1.name": "NVIDIA RTX A6000"})
    assert keys(machine) == ["gpu.mixed", "gpu.order"]
    assert machine.gpu_names == "1 x L40S + 1 x RTX A6000 (PCIe)"
    ordered = see("2xl40s", {"gpu1.name": "NVIDIA RTX A6000"}, CUDA_DEVICE_ORDER="PCI_BUS_ID")
    assert keys(ordered) == ["gpu.mixed"]


def test_a_virtual_machine_that_hides_the_switches(see: See) -> None:
    unsupported = 3
    machine = see("8xh200", {"gpu*.error.nvlink_end": unsupported})
    assert machine.interconnect == "NVLink"


def test_many_gpus(see: See) -> None:
    machine = see("8xh100", {"count": 16} | {f"gpu{i}.{key}": value for i in range(8, 16) for key, value in {
        "name": "NVIDIA H100 80GB HBM3", "uuid": f"GPU-x{i}", "memory_mib": 81_559, "nvlinks": 18, "capability": "9.0",
    }.items()})  # fmt: skip
    assert machine.gpu_names == "16 x H100 80GB HBM3 (NVLink)"


LIVE = """
import json, os, sys
from dataclasses import asdict
from engine.machine import sample_gpus
print(json.dumps([asdict(one) for one in sample_gpus()]), flush=True)
sys.stdin.readline()
print(json.dumps([asdict(one) for one in sample_gpus()]), flush=True)
"""


def live_readings(fake: FakeNvml, changes: Mapping[str, object]) -> list[list[dict[str, Any]]]:
    """The samples of one process before and after the driver's state changes."""
    with subprocess.Popen(
        [sys.executable, "-c", LIVE],
        env={**os.environ, **fake.environment},
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin and process.stdout
        before = json.loads(process.stdout.readline())
        fake.change(changes)
        process.stdin.write("\n")
        process.stdin.flush()
        after = json.loads(process.stdout.readline())
    assert process.returncode == 0
    return [before, after]


def test_live_readings_follow_the_driver(library: Path, tmp_path: Path) -> None:
    fake = FakeNvml(library, tmp_path / "state", "2xl40s")
    changes = {"gpu0.utilisation": 93, "gpu0.memory_used_mib": 2048, "gpu1.error.all": 15,
               "gpu0.ecc_uncorrected": 3, "gpu0.processes": "4242:1024",
               "process.4242": "/usr/bin/python3"}  # fmt: skip
    before, after = live_readings(fake, changes)
    assert (before[0]["ecc_uncorrected"], after[0]["ecc_uncorrected"]) == (0, 3)
    [process] = after[0]["processes"]
    assert (process["pid"], process["name"], process["memory_gib"]) == (4242, "python3", 1.0)
    assert [one["utilisation_percent"] for one in before] == [0, 0]
    assert (after[0]["utilisation_percent"], after[0]["memory_used_gib"]) == (93, 2.0)
    assert after[1]["error"] == "GPU is lost"
    assert after[1]["utilisation_percent"] is None


def test_live_readings_survive_a_driver_that_goes_and_comes_back(library: Path, tmp_path: Path) -> None:
    fake = FakeNvml(library, tmp_path / "state", "2xl40s", {"init_error": 9})
    before, after = live_readings(fake, {"init_error": None})
    assert before == []
    assert [one["index"] for one in after] == [0, 1]
