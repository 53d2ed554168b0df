"""Machine files: what they say is what one gets, and nonsense is named with its limit."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from engine import machine_file
from engine.errors import NotFoundError, SettingsError
from engine.machine import Gpu, Machine
from tests.fakes.nvml import MACHINES

PLAIN = sorted(path for path in MACHINES.glob("*.toml") if "[fake]\n" not in path.read_text())


@pytest.mark.parametrize("path", PLAIN, ids=lambda path: path.stem)
def test_a_file_survives_saving(path: Path, tmp_path: Path) -> None:
    machine = machine_file.load(path)
    copy = tmp_path / "copy.toml"
    machine_file.save(machine, copy)
    assert machine_file.load(copy) == machine


def test_what_a_file_says() -> None:
    machine = machine_file.load(MACHINES / "8xh100.toml")
    assert machine.headline == "8 x H100 80GB HBM3 (NVLink) · 112 cores · 2.0 TiB RAM"
    assert machine.gpus[7].compute_capability == (9, 0)
    assert machine.network_gb_per_s == 400
    assert machine.topology[0][1] == "NV18"
    assert (machine.driver_version, machine.cuda_version) == ("580.65.06", (13, 0))


def test_nodes() -> None:
    text = (MACHINES / "8xh100.toml").read_text().replace("[cluster]", "[cluster]\nnodes = 16")
    assert machine_file.loads(text).headline.startswith("16 nodes of 8 x H100")


def test_the_shortest_file() -> None:
    machine = machine_file.loads('[gpu]\nname = "NVIDIA H200"\nmemory_gib = 140.4')
    assert len(machine.gpus) == 8
    assert machine.interconnect == "PCIe"
    assert machine.topology[0][3] == "NODE" and machine.topology[0][4] == "SYS"


def test_no_gpu_table_means_no_gpus(tmp_path: Path) -> None:
    machine = Machine(host="laptop", cpu_cores=4, ram_gib=16.0, shm_gib=8.0)
    machine_file.save(machine, tmp_path / "m.toml")
    loaded = machine_file.load(tmp_path / "m.toml")
    assert (loaded.gpus, loaded.cpu_cores, loaded.headline) == ((), 4, machine.headline)


GPU = '[gpu]\nname = "X"\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (GPU + "count = 0", ["gpu.count", "0 is not allowed", "1 to 72"]),
        (GPU + "count = 1000", ["gpu.count", "1000", "1 to 72"]),
        (GPU + "count = true", ["gpu.count"]),
        (GPU + "memory_gib = -80", ["gpu.memory_gib", "-80", "1 to 4096 GiB"]),
        (GPU + "memory_gib = nan", ["gpu.memory_gib", "nan"]),
        (GPU + 'memory_gib = "80 GB"', ["gpu.memory_gib", "80 GB"]),
        (GPU + "memory_gib = 8\nmemory_reserved_gib = 9", ["gpu.memory_reserved_gib", "9 GiB", "memory_gib = 8"]),
        (GPU + 'compute_capability = "new"', ["gpu.compute_capability", "'new'"]),
        (GPU + "nvlinks = 18", ["gpu.nvlinks", "nvlink_shape = none"]),
        (GPU + 'nvlink_shape = "ring"', ["gpu.nvlink_shape", "'ring'", "mesh"]),
        (GPU + "memroy_gib = 80", ["gpu.memroy_gib", "did you mean memory_gib?"]),
        ("[gpu]\ncount = 8", ["gpu.name", "is missing"]),
        ('[[gpu]]\nname = "A100"\n[[gpu]]\nname = "H100"', ["2 kinds of GPU", "A100, H100", "alike"]),
        ("[gpus]\ncount = 8", ["gpus", "did you mean gpu?"]),
        ("gpu = 8", ["gpu", "not a table"]),
        ("[cluster]\nnodes = 0", ["cluster.nodes", "1 to 4096"]),
        ("[host]\nram_gib = -1", ["host.ram_gib", "-1"]),
        ("[network]\ngbit_per_s = 0", ["network.gbit_per_s", "1 to 3200 Gbit/s"]),
        ("version = 99", ["version 99", "upgrade"]),
        ("not toml", ["not TOML"]),
    ],
)
def test_nonsense_is_named(text: str, words: list[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        machine_file.loads(text)
    said = f"{caught.value.message} {caught.value.hint}"
    assert [word for word in words if word not in said] == []


def test_every_bad_value_is_named_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        machine_file.loads(GPU + "count = 0\nmemory_gib = 0\n[host]\ncpu_cores = 0")
    assert [line.partition(":")[0] for line in caught.value.message.splitlines()] == [
        "gpu.count", "gpu.memory_gib", "host.cpu_cores",
    ]  # fmt: skip


def test_the_fake_driver_s_table_is_not_ours() -> None:
    with pytest.raises(SettingsError, match="fake"):
        machine_file.load(MACHINES / "faulty.toml")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        machine_file.load(tmp_path / "none.toml")
    with pytest.raises(SettingsError):
        machine_file.load(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError, match="cannot be read"):
        machine_file.load(tmp_path / "binary")
    (tmp_path / "large").write_bytes(b"#" * (machine_file.MAX_BYTES + 1))
    with pytest.raises(SettingsError, match="at most 5,000"):
        machine_file.load(tmp_path / "large")


def test_different_gpus_are_not_saved() -> None:
    first = Gpu(index=0, name="NVIDIA A100", memory_total_gib=80)
    machine = Machine(gpus=(first, replace(first, index=1, name="NVIDIA H100")))
    with pytest.raises(SettingsError, match="NVIDIA A100, NVIDIA H100"):
        machine_file.dumps(machine)


def test_every_value_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "machine.md").read_text()
    example = page.partition("```toml\n")[2].partition("```")[0]
    tables = tomllib.loads(example)
    machine_file.loads(example)
    documented = {f"{table}.{key}" for table, values in tables.items() if isinstance(values, dict) for key in values}
    assert documented == set(machine_file.OPTIONS)
