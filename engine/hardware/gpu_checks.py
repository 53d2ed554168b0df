"""What is wrong with the GPUs, as findings. Pure but for a look at the PCI bus in `no_driver`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from engine.findings import Finding, error, info, warning
from engine.hardware.gpu import Gpu

BUSY_GIB = 1.0
"""Memory in use beyond which a GPU is called busy; an idle one shows some hundred MiB of driver."""
BUSY_PERCENT = 10
_NVIDIA, _DISPLAY = "0x10de", "0x03"
_NO_PACKAGE, _UNINITIALISED, _NO_PERMISSION, _NOT_LOADED, _NO_LIBRARY, _MISMATCH = 0, 1, 4, 9, 12, 18


def no_driver(code: int, text: str, root: Path = Path("/")) -> tuple[Finding, ...]:
    """Why NVML could not be used, by its error `code`; nothing surprising on a machine without GPU."""
    there = count_on_bus(root)
    unseen = "GPUs cannot be seen, so a run would use the CPU"
    if code == _NO_PACKAGE:
        return (warning("gpu.package", "the package nvidia-ml-py is missing", unseen, "pip install nvidia-ml-py"),)
    if code == _MISMATCH:
        what = f"the NVIDIA driver was updated while the old one is still loaded ({text})"
        return (error("gpu.driver-mismatch", what, unseen, "reboot, or: rmmod nvidia_uvm nvidia && modprobe nvidia"),)
    if code == _NO_PERMISSION:
        fix = "ask for read and write access to /dev/nvidia*, or start the container with --gpus all"
        return (error("gpu.permission", f"the NVIDIA driver refuses this user ({text})", unseen, fix),)
    if code == _NOT_LOADED:
        what = f"NVIDIA's library is installed but its kernel module is not loaded ({text})"
        return (
            warning("gpu.driver-not-loaded", what, unseen, "sudo modprobe nvidia; then look at: dmesg | grep NVRM"),
        )
    if code == _NO_LIBRARY and not there:
        return (info("gpu.none", "there is no NVIDIA GPU", "training needs one; a rehearsal does not"),)
    if code == _NO_LIBRARY:
        what = f"{_count(there)} on the PCI bus, but no NVIDIA driver library can be loaded"
        fix = "install the driver, or start the container with --gpus all (NVIDIA Container Toolkit)"
        return (warning("gpu.no-library", what, unseen, fix),)
    return (
        error(
            "gpu.driver-broken",
            f"the NVIDIA driver does not answer: {text}",
            unseen,
            "run nvidia-smi; reboot",
        ),
    )


def count_on_bus(root: Path = Path("/")) -> int:
    """NVIDIA display devices on the PCI bus, whether or not a driver runs them."""
    count = 0
    for device in (root / "sys/bus/pci/devices").glob("*"):
        try:
            vendor, kind = (device / "vendor").read_text().strip(), (device / "class").read_text()
        except OSError:
            continue
        count += vendor == _NVIDIA and kind.startswith(_DISPLAY)
    return count


def lost(index: int, text: str) -> Finding:
    """A GPU that does not answer."""
    return error(
        "gpu.lost",
        f"GPU {index} does not answer: {text}",
        "CUDA may fail on every GPU of this node as long as it is there",
        f"look for Xid in: dmesg | grep -i xid; then: nvidia-smi --gpu-reset -i {index}, or reboot",
        ignorable=True,
    )


def refused(index: int, failures: Mapping[str, str]) -> list[Finding]:
    """Readings that a GPU should give and does not; `failures` maps the query to the driver's words."""
    if not failures:
        return []
    queries, texts = ", ".join(failures), "; ".join(sorted(set(failures.values())))
    why = "the monitor shows those values as unknown"
    return [
        warning(
            "gpu.unreadable",
            f"GPU {index} does not tell {queries}: {texts}",
            why,
            "run nvidia-smi -q as root",
        )
    ]


def visibility(problem: str) -> list[Finding]:
    """A wrong CUDA_VISIBLE_DEVICES."""
    if not problem:
        return []
    return [
        warning(
            "gpu.visible",
            problem,
            "fewer GPUs take part than meant",
            "unset CUDA_VISIBLE_DEVICES, or mend it",
        )
    ]


def one_slice(chosen: Sequence[Gpu], found: Sequence[Gpu]) -> tuple[tuple[Gpu, ...], list[Finding]]:
    """What CUDA shows of `chosen` when GPUs are split: whole GPUs, else a single slice."""
    whole = tuple(gpu for gpu in chosen if not gpu.is_mig_slice)
    split = [gpu.index for gpu in found if gpu.mig_enabled]
    if not split:
        return whole, []
    numbers = ", ".join(str(index) for index in split)
    usable = whole or tuple(chosen[:1])
    what = f"MIG splits GPU {numbers} into slices"
    if not chosen:
        what += "; no slice is made, or none is visible"
    why = "a process sees one slice at most, without NVLink: a slice trains alone or not at all"
    fix = f"sudo nvidia-smi -i {numbers.replace(' ', '')} -mig 0"
    return usable, [warning("gpu.mig", what, why, fix)]


def check(gpus: Sequence[Gpu], environ: Mapping[str, str]) -> list[Finding]:
    """What is wrong with GPUs that answer."""
    findings = _mixed(gpus, environ) + _links(gpus)
    for gpu in gpus:
        findings += _busy(gpu) + _unhealthy(gpu)
    return findings


def _busy(gpu: Gpu) -> list[Finding]:
    used, percent = gpu.memory_used_gib, gpu.utilisation_percent or 0
    if used < BUSY_GIB and percent < BUSY_PERCENT:
        return []
    who = ", ".join(
        f"{one.name or 'process'} {one.pid}{f' of {one.user}' if one.user else ''}" for one in gpu.processes
    )
    what = f"GPU {gpu.index} is busy: {used:.1f} GiB used, {percent} % at work" + (f", by {who}" if who else "")
    why = "the run would be slow, or out of memory"
    return [warning("gpu.busy", what, why, f"wait, or leave GPU {gpu.index} out with CUDA_VISIBLE_DEVICES")]


def _unhealthy(gpu: Gpu) -> list[Finding]:
    found = []
    if gpu.ecc_uncorrected:
        what = f"GPU {gpu.index} had {gpu.ecc_uncorrected} uncorrected memory errors since its driver was loaded"
        why = "the next one ends the run"
        found.append(
            warning("gpu.ecc", what, why, f"nvidia-smi --gpu-reset -i {gpu.index}; if they return, replace it")
        )
    slow = [reason for reason in gpu.throttle_reasons if reason != "power cap"]  # a cap under load is normal
    if slow:
        heat = "" if gpu.temperature_c is None else f" at {gpu.temperature_c} °C"
        what = f"GPU {gpu.index} is slowed down{heat}: {', '.join(slow)}"
        why = "every GPU of the run waits for the slowest"
        found.append(
            warning("gpu.throttled", what, why, "check cooling and power supply: nvidia-smi -q -d PERFORMANCE")
        )
    return found


def _links(gpus: Sequence[Gpu]) -> list[Finding]:
    found = []
    most = max((gpu.nvlinks for gpu in gpus), default=0)
    few = [gpu for gpu in gpus if gpu.nvlinks < most and gpu.name == gpus[0].name]
    if few:
        text = ", ".join(f"GPU {gpu.index} has {gpu.nvlinks}" for gpu in few)
        why = "communication runs at the speed of the slowest GPU"
        found.append(warning("gpu.nvlink", f"{text} of {most} NVLinks", why, "look at: nvidia-smi nvlink --status"))
    waiting = [str(gpu.index) for gpu in gpus if gpu.nvlink_fabric in ("not started", "in progress")]
    if waiting:
        what = f"the NVLink switches are not set up for GPU {', '.join(waiting)}"
        why = "CUDA fails with error 802, system not yet initialised"
        fix = "sudo systemctl start nvidia-fabricmanager (of the driver's own version)"
        found.append(error("gpu.fabric", what, why, fix, ignorable=True))
    return found


def _mixed(gpus: Sequence[Gpu], environ: Mapping[str, str]) -> list[Finding]:
    names = sorted({gpu.name for gpu in gpus})
    if len(names) < 2:
        return []
    found = [
        warning(
            "gpu.mixed",
            f"the GPUs differ: {', '.join(names)}",
            "every GPU gets the same share of the work, so the smallest and the slowest decide",
            "choose one kind with CUDA_VISIBLE_DEVICES",
        )
    ]
    if environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        what = "CUDA numbers different GPUs by speed, nvidia-smi by position"
        found.append(warning("gpu.order", what, "a number may mean another GPU", "export CUDA_DEVICE_ORDER=PCI_BUS_ID"))
    return found


def _count(number: int) -> str:
    return "1 NVIDIA GPU is" if number == 1 else f"{number} NVIDIA GPUs are"
