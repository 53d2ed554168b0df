"""The GPUs a plan is made for, as plain numbers: from a detected machine, or from a name and counts."""

from __future__ import annotations

from dataclasses import dataclass, replace

from engine.errors import PlanError
from engine.machine import Machine
from engine.plan.calibration import Family, find_family, recognise

PCIE_GB_PER_S = 20.0
"""One direction between two GPUs on PCIe 4.0 x16, as copies reach it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Equal nodes of equal GPUs. Raises PlanError for counts below 1."""

    family: Family
    gpus_per_node: int
    nodes: int = 1
    memory_gib: float
    """Memory of one GPU that programs can have."""

    def __post_init__(self) -> None:
        for name, most in (("gpus_per_node", 72), ("nodes", 65_536)):
            value = getattr(self, name)
            if not 1 <= value <= most:
                raise PlanError(f"{name} = {value} is not between 1 and {most:,}", "count what the cluster has")
        if not 0 < self.memory_gib < 10_000:
            raise PlanError(f"{self.memory_gib} GiB of GPU memory is not possible", "give the memory of one GPU in GiB")

    @property
    def world_size(self) -> int:
        return self.gpus_per_node * self.nodes

    @property
    def nvlink_domain(self) -> int:
        """GPUs that reach each other over NVLink, 1 without it."""
        if self.family.nvlink_domain <= 1:
            return 1
        if self.family.nvlink_domain <= 8:
            return min(self.family.nvlink_domain, self.gpus_per_node)
        # A rack of 72 holds 18 trays of 4; a job that fills several racks takes 64 of each,
        # because its parallel sizes are powers of two.
        return self.world_size if self.world_size <= self.family.nvlink_domain else 64

    @property
    def fast_domain(self) -> int:
        """GPUs that reach each other without the network: NVLink, or PCIe in one node."""
        return max(self.nvlink_domain, self.gpus_per_node)

    @property
    def link_gb_per_s(self) -> float:
        """What one GPU can send inside its fast domain."""
        return self.family.nvlink_gb_per_s if self.nvlink_domain > 1 else PCIE_GB_PER_S

    @property
    def name(self) -> str:
        return f"{self.world_size}x{self.family.name}"

    def resized(self, nodes: int) -> Cluster:
        """The same nodes, another number of them."""
        return replace(self, nodes=nodes)


def named(gpu: str, gpus_per_node: int = 8, nodes: int = 1) -> Cluster:
    """The cluster that somebody describes: `H100`, 8 in a node, 4 nodes. Raises PlanError."""
    family = find_family(gpu)
    return Cluster(family=family, gpus_per_node=gpus_per_node, nodes=nodes, memory_gib=family.memory_gib)


def of_machine(machine: Machine, gpus: int = 0, nodes: int = 1) -> Cluster:
    """The cluster of `nodes` such machines, using `gpus` in each (0: all). Raises PlanError without a GPU."""
    if not machine.gpus:
        raise PlanError(
            "this machine has no GPU that can be used", "name one: gptoss plan --gpu H100, or look at: gptoss doctor"
        )
    used = machine.gpus[: gpus or len(machine.gpus)]
    # The slowest and smallest GPU sets the pace of all.
    smallest = min(used, key=lambda gpu: gpu.memory_usable_gib)
    family = recognise(smallest.name, smallest.memory_total_gib, smallest.compute_capability)
    if smallest.is_mig_slice or (len(used) > 1 and machine.interconnect == "PCIe"):
        family = replace(family, nvlink_gb_per_s=0.0, nvlink_domain=1)
    elif smallest.nvlinks and not family.is_known:
        family = replace(family, nvlink_gb_per_s=smallest.nvlink_gb_per_s, nvlink_domain=len(used))
    if machine.network_gb_per_s:
        family = replace(family, network_gb_per_s=machine.network_gb_per_s / len(machine.gpus))
    return Cluster(family=family, gpus_per_node=len(used), nodes=nodes, memory_gib=smallest.memory_usable_gib)
