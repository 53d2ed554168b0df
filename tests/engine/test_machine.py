"""The machine as a value: host facts, headline, CUDA_VISIBLE_DEVICES, and that nothing is lost in JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from engine.findings import Severity, by_severity, error, info, warning
from engine.hardware import gpu_checks, host
from engine.hardware.gpu import Gpu, GpuProcess
from engine.hardware.visible import select
from engine.machine import Machine, detect

UUIDS = ("GPU-aa11", "GPU-ab22", "GPU-b333", "GPU-c444")

# What torch 2.13 makes of each value with these four GPUs (torch/cuda/__init__.py,
# _parse_visible_devices and _transform_uuid_to_ordinals); 20,000 random values agreed too.
TORCH_SAYS = [
    ("", []), ("0", [0]), ("1,0", [1, 0]), (" 2 , 3", [2, 3]), ("0,1,7,2", [0, 1]), ("0,0", []), ("0,1,0", []),
    ("-1", []), ("0,-1,1", [0]), ("1x,2y", [1, 2]), ("x,1", []), ("+2", [2]), ("0,,1", [0]), ("GPU-a", []),
    ("GPU-aa", [0]), ("GPU-aa,GPU-b", [0, 2]), ("GPU-aa,0", [0]), ("0,GPU-aa", [0]), ("GPU-aa,GPU-aa11", []),
    ("GPU-aa,GPU-aa", []), ("GPU-zz,GPU-b", []), ("NoDevFiles", []), ("99", []), ("1,99,0", [1]), ("00", [0]),
    ("01,1", []), ("0 1", [0]), ("4,0,0", []), ("1.5", [1]), ("2,1,4,1", []), ("GPU-aa, GPU-b", [0]),
]  # fmt: skip


@pytest.mark.parametrize(("value", "expected"), TORCH_SAYS)
def test_visible_devices_as_torch_reads_them(value: str, expected: list[int]) -> None:
    assert select(value, UUIDS).uuids == tuple(UUIDS[index] for index in expected)


def test_an_unset_variable_shows_everything() -> None:
    assert select(None, UUIDS).uuids == UUIDS
    assert not select(None, UUIDS).problem


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("0,9,1,2", "CUDA_VISIBLE_DEVICES names '9', which is not one GPU here; CUDA ignores it and the 2 after it "
                    "(there are GPUs 0 to 3)"),
        ("GPU-a", "CUDA_VISIBLE_DEVICES names 'GPU-a', which is not one GPU here (there are GPUs 0 to 3)"),
        ("1,1", "CUDA_VISIBLE_DEVICES=1,1 names 1 twice; CUDA then shows no GPU"),
        ("GPU-b,GPU-b3", "CUDA_VISIBLE_DEVICES=GPU-b,GPU-b3 names GPU-b333 twice; CUDA then shows no GPU"),
        ("-1", ""),
        ("", ""),
    ],
)  # fmt: skip
def test_what_is_wrong_with_the_variable(value: str, problem: str) -> None:
    assert select(value, UUIDS).problem == problem


def test_no_gpu_to_name() -> None:
    assert select("0", ()).problem.endswith("(there is no GPU)")


def gpu(index: int = 0, **changes: object) -> Gpu:
    return replace(Gpu(index=index, name="NVIDIA H100 80GB HBM3", memory_total_gib=79.6), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("machine", "headline"),
    [
        (Machine(cpu_cores=1, ram_gib=3.75), "no GPU · 1 core · 3.8 GiB RAM"),
        (Machine(gpus=(gpu(),), cpu_cores=16, ram_gib=128), "1 x H100 80GB HBM3 · 16 cores · 128.0 GiB RAM"),
        (
            Machine(gpus=(gpu(), gpu(1)), cpu_cores=96, ram_gib=2048),
            "2 x H100 80GB HBM3 (PCIe) · 96 cores · 2.0 TiB RAM",
        ),
        (
            Machine(gpus=(gpu(nvlinks=18), gpu(1, nvlinks=18)), nodes=8, cpu_cores=96, ram_gib=1024),
            "8 nodes of 2 x H100 80GB HBM3 (NVLink) · 96 cores · 1.0 TiB RAM",
        ),
    ],
)
def test_headline(machine: Machine, headline: str) -> None:
    assert machine.headline == headline


def test_one_missing_link_makes_the_interconnect_pcie() -> None:
    pairs = (("X", "NV4", "SYS"), ("NV4", "X", "SYS"), ("SYS", "SYS", "X"))
    gpus = tuple(gpu(index, nvlinks=4) for index in range(3))
    assert Machine(gpus=gpus, topology=pairs).interconnect == "PCIe"


def test_a_machine_survives_json() -> None:
    full = Machine(
        host="node1",
        gpus=(gpu(compute_capability=(9, 0), processes=(GpuProcess(pid=1, name="x"),), throttle_reasons=("a", "b")),),
        hidden_gpus=(gpu(1),),
        cuda_version=(13, 0),
        topology=(("X",),),
        disks=(host.Disk(purpose="runs", path="/x"),),
        containers=(host.ContainerRuntime(name="docker", path="/usr/bin/docker"),),
        slurm=host.Slurm(job_id="7"),
        infiniband=(host.InfinibandPort(device="mlx5_0", port=1, gbit_per_s=400, is_active=True),),
        findings=(warning("gpu.busy", "busy"),),
    )
    assert Machine.from_json(json.loads(json.dumps(full.to_json()))) == full
    assert Machine.from_json(json.loads(json.dumps(Machine().to_json()))) == Machine()


def test_this_machine_is_read_without_a_complaint() -> None:
    machine = detect()
    assert machine.cpu_cores >= 1
    assert 0 < machine.ram_free_gib <= machine.ram_gib
    assert {disk.purpose for disk in machine.disks} == {"runs", "hugging face cache", "temporary files"}
    assert Machine.from_json(json.loads(json.dumps(machine.to_json()))) == machine


def test_network_speed_counts_active_ports_alone() -> None:
    port = host.InfinibandPort(device="mlx5_0", port=1, gbit_per_s=400, is_active=True)
    assert Machine(infiniband=(port, replace(port, is_active=False))).network_gb_per_s == 50


# A host written down as files: proc, sys and dev under one directory.


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path, "proc/meminfo", "MemTotal:       16777216 kB\nMemFree:  99 kB\nMemAvailable:    8388608 kB\n")
    write(tmp_path, "proc/cpuinfo", "processor : 0\nmodel name\t: Some CPU @ 2 GHz\n")
    (tmp_path / "dev/shm").mkdir(parents=True)
    return tmp_path


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_memory_of_a_host(root: Path) -> None:
    found = host.read_host({}, root)
    assert (found.ram_gib, found.ram_free_gib, found.cpu_model) == (16, 8, "Some CPU @ 2 GHz")
    assert not found.in_container


def test_limits_of_a_container(root: Path) -> None:
    write(root, "sys/fs/cgroup/memory.max", str(4 * 2**30))
    write(root, "sys/fs/cgroup/memory.current", str(3 * 2**30))
    write(root, "sys/fs/cgroup/cpu.max", "100000 100000")
    write(root, ".dockerenv", "")
    found = host.read_host({}, root)
    assert (found.ram_gib, found.ram_free_gib, found.cpu_cores) == (4, 1, 1)
    assert found.in_container


def test_no_limit_in_a_container(root: Path) -> None:
    write(root, "sys/fs/cgroup/memory.max", "max")
    write(root, "sys/fs/cgroup/cpu.max", "max 100000")
    assert host.read_host({}, root).ram_gib == 16


def test_infiniband_ports(root: Path) -> None:
    for device, state, rate, link in (
        ("mlx5_0", "4: ACTIVE", "400 Gb/sec (4X NDR)", "InfiniBand"),
        ("mlx5_1", "1: DOWN", "2.5 Gb/sec (1X SDR)", "Ethernet"),
    ):
        for name, text in (("state", state), ("rate", rate), ("link_layer", link)):
            write(root, f"sys/class/infiniband/{device}/ports/1/{name}", text)
    first, second = host.read_infiniband(root)
    assert (first.device, first.gbit_per_s, first.is_active, first.link) == ("mlx5_0", 400, True, "InfiniBand")
    assert (second.gbit_per_s, second.is_active, second.link) == (2.5, False, "Ethernet")


def test_a_disk_is_that_of_the_nearest_directory(root: Path) -> None:
    deep = root / "not" / "there" / "yet"
    write(root, "proc/self/mounts", f"none / ext4 rw 0 0\nserver:/x {root} nfs4 rw 0 0\nnone {root}/dev tmpfs rw 0 0\n")
    found = host.read_disk("runs", deep, root)
    assert (found.path, found.filesystem, found.is_shared, found.is_writable) == (str(deep), "nfs4", True, True)
    assert 0 < found.free_gib <= found.total_gib


def test_a_mount_point_with_a_space(root: Path) -> None:
    place = root / "big disk"
    place.mkdir()
    write(root, "proc/self/mounts", f"none / ext4 rw 0 0\n/dev/sdb {root}/big\\040disk xfs rw 0 0\n")
    assert host.read_disk("runs", place, root).filesystem == "xfs"


def test_gpus_on_the_bus_without_a_driver(root: Path) -> None:
    for number, (vendor, kind) in enumerate((("0x10de", "0x030200"), ("0x10de", "0x0403"), ("0x8086", "0x030000"))):
        write(root, f"sys/bus/pci/devices/{number}/vendor", vendor + "\n")
        write(root, f"sys/bus/pci/devices/{number}/class", kind + "\n")
    assert gpu_checks.count_on_bus(root) == 1  # the others are its sound device and another vendor's GPU
    (finding,) = gpu_checks.no_driver(12, "not found", root)
    assert (finding.key, finding.severity) == ("gpu.no-library", Severity.WARNING)
    assert finding.what.startswith("1 NVIDIA GPU is on the PCI bus")
    assert "--gpus all" in finding.fix


def test_a_machine_without_gpus_is_no_trouble(root: Path) -> None:
    (finding,) = gpu_checks.no_driver(12, "not found", root)
    assert (finding.key, finding.severity) == ("gpu.none", Severity.INFO)


@pytest.mark.parametrize("code", [0, 4, 9, 18, 15, 999, 12345])
def test_every_driver_fault_is_explained(root: Path, code: int) -> None:
    (finding,) = gpu_checks.no_driver(code, "words of the driver", root)
    assert finding.what and finding.why and finding.fix
    assert finding.severity is not Severity.INFO


def test_worst_findings_first() -> None:
    found = [info("a", ""), error("b", ""), warning("c", ""), error("d", "")]
    assert [finding.key for finding in by_severity(found)] == ["b", "d", "c", "a"]
