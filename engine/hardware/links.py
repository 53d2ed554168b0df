"""How the GPUs of a node reach each other: NVLink, its switches, PCIe."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from ctypes import byref
from typing import Any

from engine.hardware.gpu import Gpu
from engine.hardware.library import Device, decode

_TO_GPU, _TO_SWITCH = 0, 2  # nvmlIntNvLinkDeviceType_t
_MAX_LINKS = 36
_FULL_LINKS = 12
"""From A100 on; without a switch only boards with four GPUs have as many, and those name their peers."""
_ANCESTORS = {0: "PIX", 10: "PIX", 20: "PXB", 30: "PHB", 40: "NODE", 50: "SYS"}
"""nvmlGpuTopologyLevel_t in the words of `nvidia-smi topo -m`."""
_FABRIC_STATES = {1: "not started", 2: "in progress", 3: "completed"}
"""nvmlGpuFabricState_t: how far the fabric manager has come with this GPU."""


def read_links(device: Device) -> dict[str, Any]:
    """The NVLinks of one GPU, by field name of Gpu."""
    active = [link for link in range(_MAX_LINKS) if device.ask("NvLinkState", link, default=0)]
    if not active:
        return {}
    ends = {device.ask("NvLinkRemoteDeviceType", link) for link in active}
    fabric = _fabric(device)
    # Inside virtual machines the far end is not told.
    untold = _TO_GPU not in ends and (len(active) >= _FULL_LINKS or fabric == "completed")
    return {
        "nvlinks": len(active),
        "nvlink_version": device.ask("NvLinkVersion", active[0]),
        "has_nvswitch": _TO_SWITCH in ends or untold,
        "nvlink_fabric": fabric,
    }


def topology(gpus: Sequence[Gpu], devices: Mapping[int, Device]) -> tuple[tuple[str, ...], ...]:
    """How GPU i reaches GPU j; empty for fewer than two. `devices` by GPU index."""
    if len(gpus) < 2:
        return ()
    direct = {gpu.index: _direct_links(devices[gpu.index], gpu) for gpu in gpus}
    return tuple(tuple(_cell(a, b, devices, direct[a.index]) for b in gpus) for a in gpus)


def _fabric(device: Device) -> str:
    answer = device.pynvml.c_nvmlGpuFabricInfoV_t()
    device.ask("GpuFabricInfoV", byref(answer))
    return _FABRIC_STATES.get(answer.state & 0xFF, "")  # one byte in nvml.h, four in pynvml


def _direct_links(device: Device, gpu: Gpu) -> Counter[str]:
    """NVLinks from `gpu` to each GPU that they reach without a switch, by PCI id."""
    if gpu.has_nvswitch or not gpu.nvlinks:
        return Counter()
    ends = (device.ask("NvLinkRemotePciInfo", link) for link in range(_MAX_LINKS))
    return Counter(decode(end.busId).lower() for end in ends if end is not None)


def _cell(a: Gpu, b: Gpu, devices: Mapping[int, Device], direct: Counter[str]) -> str:
    if a.index == b.index:
        return "X"
    if a.has_nvswitch and b.has_nvswitch:
        return f"NV{min(a.nvlinks, b.nvlinks)}"
    if direct[b.pci_id]:
        return f"NV{direct[b.pci_id]}"
    level = devices[a.index].ask("TopologyCommonAncestor", devices[b.index].handle, default=50)
    return _ANCESTORS.get(level, "SYS")
