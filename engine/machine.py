"""The machine as one value: GPUs, host, links, and what is wrong with them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine.findings import Finding
from engine.hardware import nvml
from engine.hardware.gpu import Gpu, GpuProcess, GpuSample
from engine.hardware.host import ContainerRuntime, Disk, Host, InfinibandPort, Slurm, read_host
from engine.measurements import Measurement, recall
from engine.paths import expanded, runs_root

__all__ = ["Disk", "Gpu", "GpuProcess", "GpuSample", "Machine", "detect", "sample_gpus"]

type Topology = tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """One node, and how many there are of it."""

    host: str = ""
    is_described: bool = False
    """True for one of a machine file: nothing that is seen here says anything about it."""
    gpus: tuple[Gpu, ...] = ()
    """The GPUs that a run can use, in CUDA's order: healthy and not hidden."""
    hidden_gpus: tuple[Gpu, ...] = ()
    """GPUs that CUDA_VISIBLE_DEVICES leaves out."""
    nodes: int = 1
    driver_version: str = ""
    cuda_version: tuple[int, int] | None = None
    """The newest CUDA that the driver supports."""
    topology: Topology = ()
    """How GPU i reaches GPU j, in the words of `nvidia-smi topo -m`: X NV18 PIX PXB PHB NODE SYS."""
    cpu_cores: int = 1
    cpu_model: str = ""
    ram_gib: float = 0.0
    ram_free_gib: float = 0.0
    shm_gib: float = 0.0
    shm_free_gib: float = 0.0
    memlock_gib: float | None = None
    """None: without limit."""
    open_files: int | None = None
    """None: without limit."""
    in_container: bool = False
    disks: tuple[Disk, ...] = ()
    containers: tuple[ContainerRuntime, ...] = ()
    slurm: Slurm | None = None
    infiniband: tuple[InfinibandPort, ...] = ()
    findings: tuple[Finding, ...] = ()
    measured: tuple[Measurement, ...] = ()
    """What earlier runs measured here; the planner corrects its formulas by it."""

    @property
    def interconnect(self) -> str:
        """What joins the GPUs of a node: `NVLink`, `PCIe`, or nothing to join (empty)."""
        if len(self.gpus) < 2:
            return ""
        if self.topology:
            others = [cell for i, row in enumerate(self.topology) for j, cell in enumerate(row) if i != j]
            return "NVLink" if all(cell.startswith("NV") for cell in others) else "PCIe"
        return "NVLink" if all(gpu.nvlinks for gpu in self.gpus) else "PCIe"

    @property
    def network_gb_per_s(self) -> float:
        """GB/s in one direction out of one node over its active RDMA ports; 0 when it has none."""
        return sum(port.gbit_per_s for port in self.infiniband if port.is_active) / 8

    @property
    def gpu_names(self) -> str:
        """The GPUs in words: `8 x H100 80GB HBM3 (NVLink)`, or `no GPU`."""
        if not self.gpus:
            return "no GPU"
        counts = Counter(gpu.short_name for gpu in self.gpus)
        names = " + ".join(f"{count} x {name}" for name, count in counts.items())
        return f"{names} ({self.interconnect})" if self.interconnect else names

    @property
    def headline(self) -> str:
        """The machine in one line."""
        cores = f"{self.cpu_cores} core" + ("s" if self.cpu_cores != 1 else "")
        text = f"{self.gpu_names} · {cores} · {_memory(self.ram_gib)} RAM"
        return f"{self.nodes} nodes of {text}" if self.nodes > 1 else text

    def disk(self, purpose: str) -> Disk | None:
        return next((disk for disk in self.disks if disk.purpose == purpose), None)

    def to_json(self) -> dict[str, Any]:
        """Plain values, with the field names as keys and what is derived beside them."""
        return {
            **asdict(self),
            "findings": [finding.to_json() for finding in self.findings],
            "headline": self.headline,
            "interconnect": self.interconnect,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Machine:
        """Raises KeyError, TypeError or ValueError for anything that `to_json` did not make."""
        facts = {key: item for key, item in value.items() if key not in ("headline", "interconnect")}
        cuda, slurm = facts["cuda_version"], facts["slurm"]
        facts |= {
            "gpus": tuple(Gpu.from_json(gpu) for gpu in facts["gpus"]),
            "hidden_gpus": tuple(Gpu.from_json(gpu) for gpu in facts["hidden_gpus"]),
            "cuda_version": cuda and (int(cuda[0]), int(cuda[1])),
            "topology": tuple(tuple(row) for row in facts["topology"]),
            "disks": tuple(Disk(**disk) for disk in facts["disks"]),
            "containers": tuple(ContainerRuntime(**one) for one in facts["containers"]),
            "slurm": slurm and Slurm(**slurm),
            "infiniband": tuple(InfinibandPort(**port) for port in facts["infiniband"]),
            "findings": tuple(Finding.from_json(finding) for finding in facts["findings"]),
            "measured": tuple(Measurement(**one) for one in facts.get("measured", ())),
        }
        return cls(**facts)


def detect(environ: Mapping[str, str] | None = None) -> Machine:
    """Read this machine. Never raises for what is broken: that becomes `Machine.findings`.

    Takes some milliseconds without a GPU and up to a second per GPU whose driver sleeps.
    """
    environ = os.environ if environ is None else environ
    host = read_host(places(environ))
    driver = nvml.read(environ)
    return _compose(host, driver)


def sample_gpus() -> tuple[GpuSample, ...]:
    """One live reading of every GPU by NVML index; empty without a driver. Cheap: call it every second."""
    return nvml.sample()


def places(environ: Mapping[str, str]) -> dict[str, Path]:
    """Where a run writes, by purpose."""
    cache = Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    home = expanded(environ.get("HF_HOME") or cache / "huggingface")
    return {
        "runs": runs_root(),
        "hugging face cache": expanded(environ.get("HF_HUB_CACHE") or home / "hub"),
        "temporary files": Path(environ.get("TMPDIR") or "/tmp"),
    }


def _compose(host: Host, driver: nvml.Driver) -> Machine:
    return Machine(
        host=host.name,
        gpus=driver.gpus,
        hidden_gpus=driver.hidden_gpus,
        driver_version=driver.version,
        cuda_version=driver.cuda_version,
        topology=driver.topology,
        cpu_cores=host.cpu_cores,
        cpu_model=host.cpu_model,
        ram_gib=host.ram_gib,
        ram_free_gib=host.ram_free_gib,
        shm_gib=host.shm_gib,
        shm_free_gib=host.shm_free_gib,
        memlock_gib=host.memlock_gib,
        open_files=host.open_files,
        in_container=host.in_container,
        disks=host.disks,
        containers=host.containers,
        slurm=host.slurm,
        infiniband=host.infiniband,
        findings=driver.findings,
        measured=recall(),
    )


def _memory(gib: float) -> str:
    return f"{gib / 1024:.1f} TiB" if gib >= 1024 else f"{gib:.1f} GiB"
