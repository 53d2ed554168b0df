"""GPUs through NVML (the `pynvml` module of nvidia-ml-py). What cannot be read becomes a finding.

NVML is initialised once and kept: the first call of a process wakes the driver, later ones
take microseconds. `pynvml` is imported late, it costs more than the rest of this package.
"""

from __future__ import annotations

import pwd
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine.findings import Finding
from engine.hardware import gpu_checks, links
from engine.hardware.gpu import Gpu, GpuProcess, GpuSample
from engine.hardware.library import LIBRARY, Device, NoDriver, decode
from engine.hardware.visible import VARIABLE, select

GIB = 2**30
_SM, _MEMORY = 1, 2  # nvmlClockType_t
_THROTTLE = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Driver:
    """What the driver says of this host."""

    version: str = ""
    cuda_version: tuple[int, int] | None = None
    gpus: tuple[Gpu, ...] = ()
    """Healthy and visible, in CUDA's order."""
    hidden_gpus: tuple[Gpu, ...] = ()
    topology: tuple[tuple[str, ...], ...] = ()
    """Between `gpus`, in their order."""
    findings: tuple[Finding, ...] = ()


def read(environ: Mapping[str, str], root: Path = Path("/")) -> Driver:
    """Read every GPU. Never raises for what the driver refuses or lacks."""
    try:
        pynvml = LIBRARY.open()
    except NoDriver as problem:
        return Driver(findings=gpu_checks.no_driver(problem.code, str(problem), root))
    try:
        return _read_all(pynvml, environ, root)
    except pynvml.NVMLError as problem:
        LIBRARY.forget()
        return Driver(findings=gpu_checks.no_driver(problem.value, str(problem), root))


def sample() -> tuple[GpuSample, ...]:
    """One live reading of every GPU by number; empty without a driver."""
    try:
        pynvml = LIBRARY.open()
    except NoDriver:
        return ()
    try:
        return tuple(_sample_one(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount()))
    except pynvml.NVMLError:
        LIBRARY.forget()
        return ()


def _read_all(pynvml: Any, environ: Mapping[str, str], root: Path) -> Driver:
    found: list[Gpu] = []
    slices: list[Gpu] = []
    findings: list[Finding] = []
    devices: dict[int, Device] = {}
    for index in range(pynvml.nvmlDeviceGetCount()):
        try:
            device = Device(pynvml, pynvml.nvmlDeviceGetHandleByIndex(index))
        except pynvml.NVMLError as problem:
            findings.append(gpu_checks.lost(index, str(problem)))
            continue
        gpu = _read_gpu(device, index, root)
        if device.lost or not gpu.memory_total_gib:
            findings.append(gpu_checks.lost(index, device.lost or "it reports no memory"))
            continue
        findings += gpu_checks.refused(index, device.refusals)
        devices[index] = device
        found.append(gpu)
        slices += _read_slices(device, gpu)
    usable, problems = _choose(environ.get(VARIABLE), found, slices)
    shown = {gpu.index for gpu in usable}
    return Driver(
        version=_system(pynvml, "DriverVersion", ""),
        cuda_version=_cuda_version(_system(pynvml, "CudaDriverVersion", 0)),
        gpus=usable,
        hidden_gpus=tuple(gpu for gpu in found if gpu.index not in shown),
        topology=links.topology(usable, devices),
        findings=(*findings, *problems, *gpu_checks.check(usable, environ)),
    )


def _choose(value: str | None, found: list[Gpu], slices: list[Gpu]) -> tuple[tuple[Gpu, ...], list[Finding]]:
    """The GPUs that CUDA shows, in its order; one that is split shows its first slice."""
    # A number counts the GPUs that do not answer, too.
    count = max((gpu.index for gpu in found), default=-1) + 1
    names = [f"no answer {index}" for index in range(count)]
    for gpu in found:
        names[gpu.index] = gpu.uuid or f"unnamed {gpu.index}"
    whole = {names[gpu.index]: gpu for gpu in found}
    parts = {part.uuid: part for part in slices}
    visible = select(value, names, list(parts))
    chosen: list[Gpu] = []
    for name in visible.uuids:
        named = parts.get(name) or whole.get(name)
        if named is None:
            continue  # it does not answer, which another finding says
        is_split = named.mig_enabled and not named.is_mig_slice
        chosen += [part for part in slices if part.index == named.index][:1] if is_split else [named]
    usable, problems = gpu_checks.one_slice(chosen, found)
    return usable, gpu_checks.visibility(visible.problem) + problems


def _read_gpu(device: Device, index: int, root: Path) -> Gpu:
    total, used, free, reserved = _memory(device)
    capability = device.ask("CudaComputeCapability")
    mig = device.ask("MigMode")
    ecc = device.ask("EccMode")
    pci = device.ask("PciInfo")
    pci_id = decode(pci.busId).lower() if pci else ""
    return Gpu(
        index=index,
        name=decode(device.ask("Name", default="")) or "NVIDIA GPU",
        uuid=decode(device.ask("UUID", default="")),
        pci_id=pci_id,
        memory_total_gib=total,
        memory_used_gib=used,
        memory_free_gib=free,
        memory_reserved_gib=reserved,
        compute_capability=capability and (capability[0], capability[1]),
        mig_enabled=bool(mig and mig[0]),
        ecc=None if ecc is None else bool(ecc[0]),
        ecc_uncorrected=device.ask("TotalEccErrors", 1, 0),
        clock_max_mhz=device.ask("MaxClockInfo", _SM),
        memory_clock_mhz=device.ask("ClockInfo", _MEMORY),
        processes=_processes(device),
        pcie_generation=device.ask("MaxPcieLinkGeneration"),
        pcie_width=device.ask("MaxPcieLinkWidth"),
        numa_node=_numa_node(pci_id, root),
        **links.read_links(device),
        **_live(device),
    )


def _read_slices(device: Device, parent: Gpu) -> list[Gpu]:
    """The MIG slices of a GPU, as GPUs of their own without links."""
    if not parent.mig_enabled:
        return []
    slices = []
    for number in range(device.ask("MaxMigDeviceCount", default=0)):
        handle = device.ask("MigDeviceHandleByIndex", number)
        if handle is None:
            continue
        part = Device(device.pynvml, handle)
        total, used, free, reserved = _memory(part)
        slices.append(
            replace(
                parent,
                name=decode(part.ask("Name", default="")) or f"{parent.name} MIG slice",
                uuid=decode(part.ask("UUID", default="")),
                memory_total_gib=total,
                memory_used_gib=used,
                memory_free_gib=free,
                memory_reserved_gib=reserved,
                processes=_processes(part),
                is_mig_slice=True,
                nvlinks=0,  # slices cannot use them
                nvlink_version=None,
                has_nvswitch=False,
                nvlink_fabric="",
            )
        )
    return slices


def _sample_one(pynvml: Any, index: int) -> GpuSample:
    try:
        device = Device(pynvml, pynvml.nvmlDeviceGetHandleByIndex(index))
    except pynvml.NVMLError as problem:
        return GpuSample(index=index, error=str(problem))
    total, used, _, _ = _memory(device)
    name = decode(device.ask("Name", default=""))
    live = _live(device)
    if device.lost and not total:
        return GpuSample(index=index, name=name, error=device.lost)
    return GpuSample(
        index=index,
        name=name,
        memory_used_gib=used,
        memory_total_gib=total,
        ecc_uncorrected=device.ask("TotalEccErrors", 1, 0),
        processes=_processes(device),
        **live,
    )


def _live(device: Device) -> dict[str, Any]:
    """The readings that change from second to second, by field name of Gpu and GpuSample."""
    use = device.ask("UtilizationRates")
    power, limit = device.ask("PowerUsage"), device.ask("EnforcedPowerLimit")
    reasons = device.ask("CurrentClocksEventReasons")
    if reasons is None:  # its name before driver 535
        reasons = device.ask("CurrentClocksThrottleReasons", default=0)
    return {
        "utilisation_percent": use and use.gpu,
        "temperature_c": device.ask("Temperature", 0),
        "power_w": None if power is None else power / 1000,
        "power_limit_w": None if limit is None else limit / 1000,
        "clock_mhz": device.ask("ClockInfo", _SM),
        "throttle_reasons": tuple(name for bit, name in _THROTTLE.items() if reasons & bit),
    }


def _memory(device: Device) -> tuple[float, float, float, float]:
    """Total, used, free and reserved GiB; zeros when unknown."""
    memory = device.ask("MemoryInfo", device.pynvml.nvmlMemory_v2)
    reserved = getattr(memory, "reserved", 0)
    if memory is None:  # drivers before 510 count the reserved part as used
        memory = device.ask("MemoryInfo")
    if memory is None:
        return 0.0, 0.0, 0.0, 0.0
    return memory.total / GIB, memory.used / GIB, memory.free / GIB, reserved / GIB


def _processes(device: Device) -> tuple[GpuProcess, ...]:
    by_pid: dict[int, Any] = {}
    for kind in ("Compute", "Graphics"):
        # The name without a version raises something that is no NVMLError on older drivers.
        found = device.ask(f"{kind}RunningProcesses_v3")
        if found is None:  # before 510
            found = device.ask(f"{kind}RunningProcesses_v2", default=())
        by_pid |= {process.pid: process for process in found}
    return tuple(_process(device.pynvml, process) for process in by_pid.values())


def _process(pynvml: Any, process: Any) -> GpuProcess:
    try:
        name = Path(decode(pynvml.nvmlSystemGetProcessName(process.pid))).name
    except pynvml.NVMLError:
        name = ""
    used = process.usedGpuMemory
    return GpuProcess(
        pid=process.pid,
        memory_gib=None if used is None else used / GIB,
        name=name,
        user=_owner(process.pid, name),
    )


def _owner(pid: int, name: str) -> str:
    """Who runs `pid`; empty when this /proc knows another process by that number (containers)."""
    directory = Path(f"/proc/{pid}")
    try:
        command = (directory / "cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
        if not name or Path(command).name != name:
            return ""
        return pwd.getpwuid(directory.stat().st_uid).pw_name
    except (OSError, KeyError):
        return ""


def _system(pynvml: Any, name: str, default: Any) -> Any:
    try:
        answer = getattr(pynvml, f"nvmlSystemGet{name}")()
    except pynvml.NVMLError:
        return default
    return decode(answer) if isinstance(answer, bytes) else answer


def _cuda_version(number: int) -> tuple[int, int] | None:
    return (number // 1000, number % 1000 // 10) if number else None


def _numa_node(pci_id: str, root: Path) -> int | None:
    """The NUMA node of a PCI device; sysfs writes the domain with 4 digits, NVML with 8."""
    try:
        node = int((root / "sys/bus/pci/devices" / pci_id[4:] / "numa_node").read_text())
    except (OSError, ValueError):
        return None
    return node if node >= 0 else None
