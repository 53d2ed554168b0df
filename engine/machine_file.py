"""A machine as a TOML file: to plan for one that is not here. Documented in docs/machine.md.

The same file drives the fake driver of the tests.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from engine.errors import NotFoundError, SettingsError
from engine.hardware.gpu import Gpu
from engine.hardware.host import Disk, InfinibandPort
from engine.machine import Machine, Topology
from engine.options import Option, Problem, check, option, options_of, suggest
from engine.paths import write_atomic

VERSION = 1
MAX_BYTES = 5_000
"""A machine file is a kilobyte; a larger one is something else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cluster:
    name: str = option("", help="What people call it.")
    nodes: int = option(1, help="How many such nodes there are.", minimum=1, maximum=4096)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Host:
    cpu_model: str = option("", help="The processor.")
    cpu_cores: int = option(64, help="Cores of one node.", minimum=1, maximum=4096)
    ram_gib: float = option(512.0, help="Memory of one node.", unit="GiB", minimum=0.5, maximum=65_536)
    shm_gib: float = option(64.0, help="Room in /dev/shm.", unit="GiB", minimum=0, maximum=65_536)
    disk_free_gib: float = option(
        10_000.0, help="Room where runs are kept.", unit="GiB", minimum=0, maximum=100_000_000
    )
    disk_is_shared: bool = option(False, help="Every node sees that room under the same path.")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Gpu:
    count: int = option(8, help="GPUs of one node.", minimum=1, maximum=72)
    name: str = option("", help="The name that nvidia-smi shows, `NVIDIA H100 80GB HBM3` for example.")
    memory_gib: float = option(
        80.0, help="Memory of one GPU as nvidia-smi shows it.", unit="GiB", minimum=1, maximum=4096
    )
    memory_reserved_gib: float = option(0.0, help="What the driver keeps of it.", unit="GiB", minimum=0, maximum=64)
    compute_capability: str = option("9.0", help="8.0 A100, 8.9 L40S, 9.0 H100 and H200, 10.0 B200, 10.3 B300.")
    power_limit_w: float = option(0.0, help="Power limit of one GPU; 0: unknown.", unit="W", minimum=0, maximum=10_000)
    clock_max_mhz: int = option(0, help="Highest clock; 0: unknown.", unit="MHz", minimum=0, maximum=10_000)
    nvlinks: int = option(0, help="NVLinks of one GPU.", minimum=0, maximum=36)
    nvlink_version: int = option(4, help="3 for A100, 4 for H100 and H200, 5 for Blackwell.", minimum=1, maximum=9)
    nvlink_shape: str = option(
        "none",
        help="How NVLink joins the GPUs of a node: by switches, every one with every other, in pairs.",
        choices=("none", "pairs", "mesh", "switch"),
    )
    pcie_generation: int = option(5, help="PCIe generation of the slot.", minimum=1, maximum=9)
    pcie_width: int = option(16, help="PCIe lanes of the slot.", minimum=1, maximum=32)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Driver:
    version: str = option("", help="NVIDIA driver version, 580.65.06 for example.")
    cuda: str = option("", help="The newest CUDA that the driver supports, 13.0 for example.")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Network:
    ports: int = option(0, help="RDMA ports of one node.", minimum=0, maximum=64)
    gbit_per_s: float = option(400.0, help="Speed of one port.", unit="Gbit/s", minimum=1, maximum=3200)
    link: str = option("InfiniBand", help="What runs over it.", choices=("InfiniBand", "Ethernet"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """A machine file, checked."""

    cluster: _Cluster = field(default_factory=_Cluster)
    host: _Host = field(default_factory=_Host)
    gpu: _Gpu | None = None
    """None: a machine without GPUs."""
    driver: _Driver = field(default_factory=_Driver)
    network: _Network = field(default_factory=_Network)


_TABLES: dict[str, type] = {"cluster": _Cluster, "host": _Host, "gpu": _Gpu, "driver": _Driver, "network": _Network}
OPTIONS: dict[str, Option] = {o.key: o for table, owner in _TABLES.items() for o in options_of(table, owner)}
"""Every value of a machine file by its key."""


def load(path: Path) -> Machine:
    """The machine that a file describes. Raises NotFoundError or SettingsError."""
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise SettingsError(f"it has {size:,} bytes, a machine file at most {MAX_BYTES:,}", "give a machine file")
        return loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotFoundError(f"there is no file {path}", "write one with: gptoss doctor --save-machine FILE") from None
    except OSError as problem:
        raise SettingsError(f"{path} cannot be read: {problem.strerror}", "give a readable machine file") from problem
    except UnicodeDecodeError as problem:
        raise SettingsError(f"{path} cannot be read: {problem}", "give a machine file in UTF-8") from problem
    except SettingsError as problem:
        raise SettingsError(f"{path}: {problem.message}", problem.hint) from problem


def loads(text: str) -> Machine:
    """The machine that `text` describes. Raises SettingsError naming every bad value."""
    try:
        tables = tomllib.loads(text)
    except (ValueError, RecursionError) as problem:  # of TOML, and of numbers that are too long for Python
        raise SettingsError(f"this is not TOML: {problem}", "compare it with docs/machine.md") from problem
    return to_machine(describe(tables))


def describe(tables: Mapping[str, Any]) -> Description:
    """Check the tables of a machine file. Raises SettingsError naming every bad value."""
    tables = dict(tables)
    version = tables.pop("version", VERSION)
    if not isinstance(version, int) or version > VERSION:
        raise SettingsError(f"machine file version {version!r} is newer than {VERSION}", "upgrade gptoss")
    if isinstance(tables.get("gpu"), list):
        raise SettingsError(_mixed(tables["gpu"]), "write one [gpu] table, and one file for each kind of node")
    problems: list[Problem] = []
    found = {name: _read_table(name, values, problems) for name, values in tables.items()}
    problems += _contradictions(found.get("gpu"))
    if problems:
        raise SettingsError("\n".join(f"{p.key}: {p.message}" for p in problems), problems[0].hint)
    return Description(**found)


def to_machine(description: Description) -> Machine:
    """The described machine, idle and healthy."""
    host, network, driver = description.host, description.network, description.driver
    gpu = description.gpu
    port = InfinibandPort(device="", port=1, gbit_per_s=network.gbit_per_s, is_active=True, link=network.link)
    disk = Disk(
        purpose="runs",
        path="",
        free_gib=host.disk_free_gib,
        total_gib=host.disk_free_gib,
        is_shared=host.disk_is_shared,
    )
    return Machine(
        host=description.cluster.name,
        is_described=True,
        nodes=description.cluster.nodes,
        gpus=() if gpu is None else tuple(_gpu(gpu, index) for index in range(gpu.count)),
        topology=() if gpu is None else _topology(gpu),
        driver_version=driver.version,
        cuda_version=_pair(driver.cuda),
        cpu_cores=host.cpu_cores,
        cpu_model=host.cpu_model,
        ram_gib=host.ram_gib,
        ram_free_gib=host.ram_gib,
        shm_gib=host.shm_gib,
        shm_free_gib=host.shm_gib,
        disks=(disk,),
        infiniband=tuple(replace(port, device=f"port{index}") for index in range(network.ports)),
    )


def dumps(machine: Machine) -> str:
    """The file form of a machine. Raises SettingsError for one with different GPUs."""
    import tomli_w  # not in the containers that mount the engine

    tables: dict[str, Any] = {"version": VERSION}
    for name, owner in _tables_of(machine).items():
        tables[name] = {item.name: getattr(owner, item.name) for item in fields(owner)}
    return tomli_w.dumps(tables)


def save(machine: Machine, path: Path) -> None:
    """Write `machine` to `path` atomically. Raises OSError, and SettingsError as `dumps` does."""
    write_atomic(path, dumps(machine))


def _read_table(name: str, values: Any, problems: list[Problem]) -> Any:
    owner = _TABLES.get(name)
    if owner is None:
        message = "there is no such table; a machine file has " + ", ".join(_TABLES)
        problems.append(Problem(key=name, message=message, hint=suggest(name, list(_TABLES))))
        return None
    if not isinstance(values, Mapping):
        problems.append(Problem(key=name, message=f"{values!r} is not a table", hint=f"write [{name}]"))
        return None
    good = {}
    for key, value in values.items():
        known = OPTIONS.get(f"{name}.{key}")
        if known is None:
            names = [option.name for option in OPTIONS.values() if option.table == name]
            hint = suggest(key, names) or f"[{name}] takes {', '.join(names)}"
            problems.append(Problem(key=f"{name}.{key}", message="there is no such value", hint=hint))
            continue
        result = check(known, value)
        if isinstance(result, Problem):
            problems.append(result)
        else:
            good[key] = result
    return owner(**good)


def _contradictions(gpu: _Gpu | None) -> list[Problem]:
    """What single values cannot tell."""
    if gpu is None:
        return []
    found = []
    if not gpu.name:
        found.append(Problem(key="gpu.name", message="is missing", hint='for example name = "NVIDIA H200"'))
    if _pair(gpu.compute_capability) is None:
        message = f"{gpu.compute_capability!r} is not a version such as 9.0"
        found.append(Problem(key="gpu.compute_capability", message=message, hint='for example "9.0"'))
    if gpu.memory_reserved_gib >= gpu.memory_gib:
        message = f"{gpu.memory_reserved_gib:g} GiB is not less than memory_gib = {gpu.memory_gib:g}"
        found.append(Problem(key="gpu.memory_reserved_gib", message=message, hint="leave it out"))
    if (gpu.nvlink_shape == "none") != (gpu.nvlinks == 0):
        message = f"{gpu.nvlinks} does not go with nvlink_shape = {gpu.nvlink_shape}"
        found.append(Problem(key="gpu.nvlinks", message=message, hint="give both or neither"))
    return found


def _mixed(tables: list[Any]) -> str:
    names = sorted({str(table.get("name", "?")) if isinstance(table, Mapping) else "?" for table in tables})
    return f"gpu: {len(tables)} kinds of GPU ({', '.join(names)}); a plan needs GPUs that are all alike"


def _gpu(gpu: _Gpu, index: int) -> Gpu:
    return Gpu(
        index=index,
        name=gpu.name,
        memory_total_gib=gpu.memory_gib,
        memory_free_gib=gpu.memory_gib - gpu.memory_reserved_gib,
        memory_reserved_gib=gpu.memory_reserved_gib,
        compute_capability=_pair(gpu.compute_capability),
        power_limit_w=gpu.power_limit_w or None,
        clock_max_mhz=gpu.clock_max_mhz or None,
        nvlinks=gpu.nvlinks,
        nvlink_version=gpu.nvlink_version if gpu.nvlinks else None,
        has_nvswitch=gpu.nvlink_shape == "switch",
        pcie_generation=gpu.pcie_generation,
        pcie_width=gpu.pcie_width,
    )


def _topology(gpu: _Gpu) -> Topology:
    if gpu.count < 2:
        return ()
    return tuple(tuple(_cell(gpu, a, b) for b in range(gpu.count)) for a in range(gpu.count))


def _cell(gpu: _Gpu, a: int, b: int) -> str:
    if a == b:
        return "X"
    if gpu.nvlink_shape == "switch" or (gpu.nvlink_shape == "pairs" and a // 2 == b // 2):
        return f"NV{gpu.nvlinks}"
    if gpu.nvlink_shape == "mesh":
        return f"NV{max(1, gpu.nvlinks // (gpu.count - 1))}"
    # Two sockets with half of the GPUs each are what almost every such node has.
    return "NODE" if (a < gpu.count // 2) == (b < gpu.count // 2) else "SYS"


def _tables_of(machine: Machine) -> dict[str, Any]:
    names = sorted({gpu.name for gpu in machine.gpus})
    if len(names) > 1:
        message = f"the GPUs differ ({', '.join(names)}); a machine file holds one kind"
        raise SettingsError(message, "choose one kind with CUDA_VISIBLE_DEVICES")
    disk = machine.disk("runs")
    active = [port for port in machine.infiniband if port.is_active]
    cuda = machine.cuda_version
    host = _Host(
        cpu_model=machine.cpu_model,
        cpu_cores=machine.cpu_cores,
        ram_gib=round(machine.ram_gib, 2),
        shm_gib=round(machine.shm_gib, 2),
        disk_free_gib=round(disk.free_gib, 1) if disk else 0.0,
        disk_is_shared=bool(disk and disk.is_shared),
    )
    tables: dict[str, Any] = {"cluster": _Cluster(name=machine.host, nodes=machine.nodes), "host": host}
    if machine.gpus:
        tables["gpu"] = _gpu_table(machine)
    tables["driver"] = _Driver(version=machine.driver_version, cuda=f"{cuda[0]}.{cuda[1]}" if cuda else "")
    if active:
        tables["network"] = _Network(ports=len(active), gbit_per_s=active[0].gbit_per_s, link=active[0].link)
    return tables


def _gpu_table(machine: Machine) -> _Gpu:
    first = machine.gpus[0]
    major, minor = first.compute_capability or (0, 0)
    return _Gpu(
        count=len(machine.gpus),
        name=first.name,
        memory_gib=round(first.memory_total_gib, 3),
        memory_reserved_gib=round(first.memory_reserved_gib, 3),
        compute_capability=f"{major}.{minor}",
        power_limit_w=first.power_limit_w or 0.0,
        clock_max_mhz=first.clock_max_mhz or 0,
        nvlinks=first.nvlinks,
        nvlink_version=first.nvlink_version or 4,
        nvlink_shape=_shape(machine),
        pcie_generation=first.pcie_generation or 5,
        pcie_width=first.pcie_width or 16,
    )


def _shape(machine: Machine) -> str:
    first = machine.gpus[0]
    if not first.nvlinks:
        return "none"
    if first.has_nvswitch:
        return "switch"
    return "mesh" if machine.interconnect == "NVLink" and len(machine.gpus) > 2 else "pairs"


def _pair(text: str) -> tuple[int, int] | None:
    major, dot, minor = text.partition(".")
    return (int(major), int(minor)) if dot and major.isdecimal() and minor.isdecimal() else None
