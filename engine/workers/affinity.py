"""Keep a rank on the cores beside its GPU: host memory and PCIe are then a step away and not across the sockets.

Done by the rank itself before anything heavy is imported: its threads and children inherit it, on any node and in any
container, without numactl.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

_ADDRESS_LENGTH = 16
"""`0000:18:00.0` with its end, and room: cuDeviceGetPCIBusId asks for 13."""


def pin(chosen: str, device: str, address_of: Callable[[int], str] | None = None, root: Path = Path("/")) -> str:
    """Pin this process as `launch.cpu_affinity` says; returns what was done, empty when nothing was to be done."""
    if chosen == "off" or device != "gpu" or "LOCAL_RANK" not in os.environ:
        return ""
    address = (address_of or pci_address)(int(os.environ["LOCAL_RANK"]))
    node, cores = cores_beside(address, root) if address else (-1, frozenset[int]())
    usable = cores & os.sched_getaffinity(0)  # Slurm or the container may have given fewer
    if not usable:
        return "not pinned: the machine does not say which cores are beside this GPU"
    os.sched_setaffinity(0, usable)
    return f"pinned to {len(usable)} cores of NUMA node {node}, beside the GPU at {address}"


def pci_address(number: int, library: str = "libcuda.so.1") -> str:
    """Where CUDA's device `number` is plugged in; empty when the driver does not say.

    The driver is asked and not torch: it counts as CUDA_VISIBLE_DEVICES does and makes no context, which would take
    memory of the GPU.
    """
    try:
        cuda = ctypes.CDLL(library)
        device, text = ctypes.c_int(), ctypes.create_string_buffer(_ADDRESS_LENGTH)
        if cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), number):
            return ""
        if cuda.cuDeviceGetPCIBusId(text, _ADDRESS_LENGTH, device):
            return ""
    except (OSError, AttributeError):
        return ""
    return text.value.decode("ascii", "replace").lower()  # sysfs writes it small


def cores_beside(address: str, root: Path = Path("/")) -> tuple[int, frozenset[int]]:
    """The NUMA node of a PCI device and its cores; no cores when the machine names none, or has one node only."""
    try:
        node = int((root / "sys/bus/pci/devices" / address / "numa_node").read_text())
        nodes = parse_list((root / "sys/devices/system/node/online").read_text())
        if node < 0 or len(nodes) < 2:
            return node, frozenset()
        return node, parse_list((root / f"sys/devices/system/node/node{node}/cpulist").read_text())
    except (OSError, ValueError):
        return -1, frozenset()


def parse_list(text: str) -> frozenset[int]:
    """The kernel's lists: `0-3,8,10-11`. Raises ValueError."""
    found: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return frozenset(found)
