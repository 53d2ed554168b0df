"""One GPU as the driver describes it, and one live reading of it. Plain values only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

NVLINK_GB_PER_S = {1: 20.0, 2: 25.0, 3: 25.0, 4: 25.0, 5: 50.0, 6: 100.0}
"""GB/s in one direction of one link, by NVLink version (NVIDIA's architecture papers)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuProcess:
    """A process that holds memory on a GPU."""

    pid: int
    memory_gib: float | None = None
    """None when the driver does not say (inside a container, for example)."""
    name: str = ""
    user: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU, or one MIG slice of a GPU. A value that the driver does not give is None."""

    index: int
    """NVML's number; CUDA's may differ (`Machine.gpus` is in CUDA's order)."""
    name: str
    memory_total_gib: float
    memory_used_gib: float = 0.0
    memory_free_gib: float = 0.0
    memory_reserved_gib: float = 0.0
    """What the driver keeps for itself: part of the total, never usable."""
    uuid: str = ""
    pci_id: str = ""
    compute_capability: tuple[int, int] | None = None
    mig_enabled: bool = False
    is_mig_slice: bool = False
    ecc: bool | None = None
    ecc_uncorrected: int | None = None
    """Uncorrected memory errors since the driver was loaded."""
    temperature_c: int | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    clock_mhz: int | None = None
    clock_max_mhz: int | None = None
    memory_clock_mhz: int | None = None
    throttle_reasons: tuple[str, ...] = ()
    utilisation_percent: int | None = None
    processes: tuple[GpuProcess, ...] = ()
    nvlinks: int = 0
    """Active NVLinks of this GPU."""
    nvlink_version: int | None = None
    has_nvswitch: bool = False
    """The links end at a switch: every GPU reaches every other at full speed."""
    nvlink_fabric: str = ""
    """How far the fabric manager is: `not started`, `in progress`, `completed`; empty without one."""
    pcie_generation: int | None = None
    """The generation that the link can do, not the one it idles at."""
    pcie_width: int | None = None
    numa_node: int | None = None

    @property
    def memory_usable_gib(self) -> float:
        """What programs can have when nobody else is there."""
        return self.memory_total_gib - self.memory_reserved_gib

    @property
    def nvlink_gb_per_s(self) -> float:
        """GB/s in one direction over all active links; 0 without NVLink."""
        return self.nvlinks * NVLINK_GB_PER_S.get(self.nvlink_version or 0, 25.0)

    @property
    def short_name(self) -> str:
        """The name without the vendor: `H100 80GB HBM3`."""
        return self.name.removeprefix("NVIDIA ").removeprefix("Tesla ")

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Gpu:
        """Raises KeyError, TypeError or ValueError for anything that `asdict` did not make."""
        capability = value["compute_capability"]
        return cls(
            **{
                **value,
                "compute_capability": capability and (int(capability[0]), int(capability[1])),
                "throttle_reasons": tuple(value["throttle_reasons"]),
                "processes": tuple(GpuProcess(**process) for process in value["processes"]),
            }
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSample:
    """One live reading of one GPU; a value that cannot be read is None."""

    index: int
    name: str = ""
    utilisation_percent: int | None = None
    memory_used_gib: float | None = None
    memory_total_gib: float | None = None
    temperature_c: int | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    clock_mhz: int | None = None
    throttle_reasons: tuple[str, ...] = ()
    ecc_uncorrected: int | None = None
    """Uncorrected memory errors since the driver was loaded."""
    processes: tuple[GpuProcess, ...] = ()
    error: str = ""
    """Why nothing at all could be read: `GPU is lost`, for example."""
