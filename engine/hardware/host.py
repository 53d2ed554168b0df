"""The host around the GPUs, read from /proc, /sys and the environment. Starts no process."""

from __future__ import annotations

import os
import platform
import re
import resource
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

GIB = 2**30
SHARED_FILESYSTEMS = frozenset(
    {"nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "cifs", "smb3", "glusterfs", "wekafs", "pvfs2", "afs",
     "panfs", "virtiofs", "9p", "fuse.beegfs", "fuse.ceph", "fuse.glusterfs", "fuse.juicefs"}
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """Where something of ours is written, and how much room is left there."""

    purpose: str
    """`runs`, `hugging face cache` or `temporary files`."""
    path: str
    filesystem: str = ""
    total_gib: float = 0.0
    free_gib: float = 0.0
    is_shared: bool = False
    """A network file system: other nodes may see it too."""
    is_writable: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerRuntime:
    """A program that can start containers here."""

    name: str
    path: str
    is_usable: bool = True
    problem: str = ""
    """Why it cannot be used, when it cannot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slurm:
    """A Slurm cluster that this host can submit to, or a job of it that we are in."""

    sbatch: str = ""
    job_id: str = ""
    nodes: int | None = None
    """Nodes of the job that we are in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InfinibandPort:
    """One port of an RDMA adapter."""

    device: str
    port: int
    gbit_per_s: float
    is_active: bool
    link: str = "InfiniBand"
    """`InfiniBand` or `Ethernet` (RoCE)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What was read of the host."""

    name: str
    cpu_cores: int
    """Cores that this process may use: affinity and the container's quota count."""
    cpu_model: str
    ram_gib: float
    """The container's limit where it is lower than the memory."""
    ram_free_gib: float
    shm_gib: float
    shm_free_gib: float
    memlock_gib: float | None
    """None: without limit."""
    open_files: int | None
    in_container: bool
    disks: tuple[Disk, ...]
    containers: tuple[ContainerRuntime, ...]
    slurm: Slurm | None
    infiniband: tuple[InfinibandPort, ...]


def read_host(places: Mapping[str, Path], root: Path = Path("/")) -> Host:
    """Read the host; `places` maps a purpose to the path that will be written there.

    `root` is where proc, sys and dev are found; tests give their own.
    """
    ram_gib, ram_free_gib = _ram(root)
    shm_total, shm_free = _space(root / "dev/shm")
    memlock = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return Host(
        name=platform.node(),
        cpu_cores=_cores(root),
        cpu_model=_cpu_model(root),
        ram_gib=ram_gib,
        ram_free_gib=ram_free_gib,
        shm_gib=shm_total,
        shm_free_gib=shm_free,
        memlock_gib=None if memlock == resource.RLIM_INFINITY else memlock / GIB,
        open_files=None if files == resource.RLIM_INFINITY else files,
        in_container=(root / ".dockerenv").exists() or (root / "run/.containerenv").exists(),
        disks=tuple(read_disk(purpose, path, root) for purpose, path in places.items()),
        containers=_containers(root),
        slurm=_slurm(os.environ),
        infiniband=read_infiniband(root),
    )


def read_disk(purpose: str, path: Path, root: Path = Path("/")) -> Disk:
    """The room at `path`, or at its nearest parent that exists."""
    place = path.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    total, free = _space(place)
    filesystem = _filesystem(place, root)
    return Disk(
        purpose=purpose,
        path=str(path),
        filesystem=filesystem,
        total_gib=total,
        free_gib=free,
        is_shared=filesystem in SHARED_FILESYSTEMS,
        is_writable=os.access(place, os.W_OK | os.X_OK),
    )


def read_infiniband(root: Path = Path("/")) -> tuple[InfinibandPort, ...]:
    """The RDMA ports that the kernel lists, active or not."""
    ports = []
    for port in sorted((root / "sys/class/infiniband").glob("*/ports/*")):
        rate = re.match(r"[\d.]+", _text(port / "rate"))
        ports.append(
            InfinibandPort(
                device=port.parent.parent.name,
                port=int(port.name),
                gbit_per_s=float(rate[0]) if rate else 0.0,
                is_active="ACTIVE" in _text(port / "state"),
                link=_text(port / "link_layer") or "InfiniBand",
            )
        )
    return tuple(ports)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _space(path: Path) -> tuple[float, float]:
    """Total and free GiB of the file system at `path`; zeros when there is none."""
    try:
        usage = shutil.disk_usage(path)
    except OSError:
        return 0.0, 0.0
    return usage.total / GIB, usage.free / GIB


def _filesystem(path: Path, root: Path) -> str:
    """Type of the file system that holds `path`: the longest mount point above it."""
    best, kind = "", ""
    for line in _text(root / "proc/self/mounts").splitlines():
        fields = line.split()
        if len(fields) < 3:
            continue
        mount = fields[1].replace("\\040", " ")
        if path.is_relative_to(mount) and len(mount) >= len(best):
            best, kind = mount, fields[2]
    return kind


def _cores(root: Path) -> int:
    cores = len(os.sched_getaffinity(0))
    quota, _, period = _text(root / "sys/fs/cgroup/cpu.max").partition(" ")
    if quota.isdigit() and period.isdigit() and int(period):
        cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def _ram(root: Path) -> tuple[float, float]:
    """Total and available GiB, within the container's limit."""
    facts = dict(re.findall(r"^(\w+):\s+(\d+) kB$", _text(root / "proc/meminfo"), re.MULTILINE))
    total, free = int(facts.get("MemTotal", 0)) * 1024, int(facts.get("MemAvailable", 0)) * 1024
    for limit_name, used_name in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),  # cgroup version 1
    ):
        limit, used = _text(root / "sys/fs/cgroup" / limit_name), _text(root / "sys/fs/cgroup" / used_name)
        if limit.isdigit() and int(limit) < total:
            total = int(limit)
            free = min(free, max(0, total - int(used or 0)))
    return total / GIB, free / GIB


def _cpu_model(root: Path) -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", _text(root / "proc/cpuinfo"), re.MULTILINE)
    return found[1].strip() if found else platform.machine()


def _containers(root: Path) -> tuple[ContainerRuntime, ...]:
    found = []
    for name in ("docker", "podman", "enroot", "apptainer", "singularity"):
        path = shutil.which(name)
        if path is None:
            continue
        problem = _docker_problem(root) if name == "docker" else ""
        found.append(ContainerRuntime(name=name, path=path, is_usable=not problem, problem=problem))
    return tuple(found)


def _docker_problem(root: Path) -> str:
    if os.environ.get("DOCKER_HOST"):
        return ""
    socket = root / "var/run/docker.sock"
    if not socket.exists():
        return "no Docker engine runs here"
    if not os.access(socket, os.R_OK | os.W_OK):
        return "no permission for the Docker engine: add yourself to the group docker"
    return ""


def _slurm(environ: Mapping[str, str]) -> Slurm | None:
    sbatch, job = shutil.which("sbatch"), environ.get("SLURM_JOB_ID", "")
    if not sbatch and not job:
        return None
    nodes = environ.get("SLURM_JOB_NUM_NODES", "")
    return Slurm(sbatch=sbatch or "", job_id=job, nodes=int(nodes) if nodes.isdigit() else None)
