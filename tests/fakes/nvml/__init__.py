"""A fake NVIDIA driver: a real libnvidia-ml.so.1 that tells what a machine file says.

`build` compiles it, `FakeNvml` holds one state; a process started with `FakeNvml.environment`
sees that machine through the unmodified nvidia-ml-py.

From a shell: `python -m tests.fakes.nvml 8xh100 -- nvidia-smi-like-command …`.
"""

from __future__ import annotations

import os
import subprocess
import tomllib
from collections.abc import Mapping
from pathlib import Path

from engine.machine import Machine
from engine.machine_file import describe, to_machine

HERE = Path(__file__).parent
MACHINES = HERE / "machines"
_ANCESTORS = {"PIX": 10, "PXB": 20, "PHB": 30, "NODE": 40, "SYS": 50}
_COMPLETED = 3  # nvmlGpuFabricState_t


def build(directory: Path) -> Path:
    """Compile the library into `directory`; returns the directory. Raises CalledProcessError."""
    library = directory / "libnvidia-ml.so.1"
    command = ["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o", str(library)]
    subprocess.run([*command, str(HERE / "fake_nvml.c")], check=True, capture_output=True, timeout=60)
    return directory


class FakeNvml:
    """One fake driver: the library's directory and its state file."""

    def __init__(self, library: Path, state: Path, machine: str, changes: Mapping[str, object] | None = None) -> None:
        """`machine` names a file in machines/; `changes` are keys of the state file, see fake_nvml.c."""
        self.library, self.path = library, state
        self.state = state_of(MACHINES / f"{machine}.toml")
        self.change(changes or {})

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs in its environment to see this driver."""
        return {"LD_LIBRARY_PATH": str(self.library), "FAKE_NVML_STATE": str(self.path)}

    def change(self, changes: Mapping[str, object]) -> None:
        """Change the state under a running process; None takes a key out."""
        for key, value in changes.items():
            if value is None:
                self.state.pop(key, None)
            else:
                self.state[key] = value
        text = "".join(f"{key} {value}\n" for key, value in self.state.items())
        whole = self.path.with_suffix(".new")
        whole.write_text(text)
        os.replace(whole, self.path)


def state_of(path: Path) -> dict[str, object]:
    """The keys of the state file for a machine file that may have a [fake] table."""
    tables = tomllib.loads(path.read_text())
    extra = tables.pop("fake", {})
    return {**_state(to_machine(describe(tables))), **extra}


def _state(machine: Machine) -> dict[str, object]:
    state: dict[str, object] = {
        "count": len(machine.gpus),
        "driver": machine.driver_version,
        "nvml": f"13.{machine.driver_version}",
        "cuda": machine.cuda_version[0] * 1000 + machine.cuda_version[1] * 10 if machine.cuda_version else 0,
    }
    for gpu in machine.gpus:
        major, minor = gpu.compute_capability or (0, 0)
        facts = {
            "name": gpu.name,
            "uuid": f"GPU-{gpu.index:08x}-0000-4000-8000-{gpu.index:012x}",
            "capability": f"{major}.{minor}",
            "memory_mib": round(gpu.memory_total_gib * 1024),
            "memory_reserved_mib": round(gpu.memory_reserved_gib * 1024),
            "memory_used_mib": 1,
            "power_mw": 71_000,
            "power_limit_mw": round((gpu.power_limit_w or 0) * 1000),
            "clock": 345,
            "clock_max": gpu.clock_max_mhz or 0,
            "memory_clock": 2619,
            "ecc": 1,
            "mig": 0,
            "nvlinks": gpu.nvlinks,
            "nvlink_version": gpu.nvlink_version or 0,
            "pcie_generation": gpu.pcie_generation,
            "pcie_width": gpu.pcie_width,
        }
        if gpu.has_nvswitch and gpu.compute_capability and gpu.compute_capability >= (9, 0):
            facts["fabric"] = _COMPLETED
        state |= {f"gpu{gpu.index}.{key}": value for key, value in facts.items()}
    state["nvswitch"] = int(any(gpu.has_nvswitch for gpu in machine.gpus))
    return state | _links(machine)


def _links(machine: Machine) -> dict[str, object]:
    links: dict[str, object] = {}
    for a, row in enumerate(machine.topology):
        for b, cell in enumerate(row):
            if cell.startswith("NV"):
                links[f"peer.{a}.{b}"] = int(cell[2:])
            elif a < b:
                links[f"ancestor.{a}.{b}"] = _ANCESTORS[cell]
    return links
