"""What the checks before a start need to know of this host, read without changing anything.

Apart from `preflight.py` so that its verdicts can be tested on facts that are written down.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine import versions
from engine.data import chosen, indexed
from engine.errors import EngineError
from engine.hardware.host import Disk, read_disk
from engine.launch_settings import LaunchSettings
from engine.machine import Machine, places
from engine.models import Model
from engine.paths import expanded
from engine.settings import HUB_PREFIX, DataSettings, Settings
from engine.versions import Installed

_TRUE = {"1", "ON", "YES", "TRUE"}  # huggingface_hub/constants.py
_HERE = ("localhost", "127.0.0.1", "::1")
_CLOCK_ERROR = 5  # TIME_ERROR of adjtimex(2)
_NEEDS_A_PACKAGE = {".parquet", ".pq", ".arrow", ".zst", ".zstd"}
MAX_FILES = 10_000
"""Files of a data directory that are counted; more only make the sum a lower bound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HubFacts:
    """What is known of a published model on this host."""

    repository: str
    cache: Disk
    is_complete: bool = False
    """Every file of the checkpoint is in the cache."""
    has_config: bool = False
    is_offline: bool = False
    has_token: bool = False
    """A token is set in the environment or stored; its value is never read into a message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What was read of this host for one run."""

    installed: Installed
    output: Disk
    hub: HubFacts | None = None
    """None when nothing is taken from the Hugging Face hub."""
    data_bytes: int = 0
    missing: tuple[str, ...] = ()
    """Paths that the settings name and that are not there or cannot be read."""
    data_problem: tuple[str, str] | None = None
    """What is wrong with the data, and what to do; as far as the beginning of one file shows it."""
    port_owner: str | None = None
    """Who listens on the rendezvous port; None when it is free or chosen later."""
    address_problem: str = ""
    """What is wrong with launch.master_addr, seen from here; empty when nothing is, or the launcher knows better."""
    is_clock_synchronised: bool | None = None


def read_facts(settings: Settings, model: Model, runs_root: Path, environ: Mapping[str, str]) -> Facts:
    """Look at everything that `preflight.judge` needs; takes some milliseconds, more for another Python."""
    output = expanded(settings.output.directory) if settings.output.directory else runs_root
    launch = settings.launch
    watched = launch.master_port if launch.node_rank == 0 else 0
    return Facts(
        installed=versions.read_versions(launch.python),
        output=read_disk("runs", output),
        hub=read_hub(settings, model, environ),
        data_bytes=_data_bytes(settings.data),
        missing=tuple(_missing(settings)),
        data_problem=_data_problem(settings),
        port_owner=port_owner(watched) if watched else None,
        address_problem=address_problem(launch) if launch.launcher in ("local", "container") else "",
        is_clock_synchronised=is_clock_synchronised() if settings.machine.nodes > 1 else None,
    )


def facts_of_described(machine: Machine) -> Facts:
    """What is known of a host that is only described: its disk."""
    nothing_known = Disk(purpose="runs", path="the directory of the runs", free_gib=math.inf)
    return Facts(installed=Installed(executable=""), output=machine.disk("runs") or nothing_known)


def read_hub(settings: Settings, model: Model, environ: Mapping[str, str]) -> HubFacts | None:
    """The state of the hub's cache for the published model, None when a local one is named."""
    if settings.model.path or not model.published:
        return None
    cache = places(environ)["hugging face cache"]
    home = Path(environ.get("HF_HOME") or cache.parent)
    token_file = Path(environ.get("HF_TOKEN_PATH") or home / "token")
    snapshots = sorted((cache / f"models--{model.published.replace('/', '--')}" / "snapshots").glob("*"))
    return HubFacts(
        repository=model.published,
        cache=read_disk("hugging face cache", cache),
        is_complete=any(_is_complete(snapshot) for snapshot in snapshots),
        has_config=any((snapshot / "config.json").exists() for snapshot in snapshots),
        is_offline=any(environ.get(name, "").upper() in _TRUE for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")),
        has_token=bool(environ.get("HF_TOKEN") or environ.get("HUGGING_FACE_HUB_TOKEN")) or token_file.is_file(),
    )


def port_owner(port: int) -> str | None:
    """Who listens on a TCP port here: `python (process 4242)`, `another user`; None when it is free."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except PermissionError:
            return "the system (ports below 1024 need root)"
        except OSError:
            return _listener(port)
    return None


def address_problem(launch: LaunchSettings) -> str:
    """Why the ranks would not meet at `launch.master_addr`: its name is unknown, or the first node is another one."""
    if launch.master_addr in _HERE:
        return ""
    try:
        found = socket.getaddrinfo(launch.master_addr, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        return f"cannot be looked up: {error.strerror if isinstance(error, OSError) else error}"
    if launch.node_rank == 0 and not any(_is_own(family, address) for family, _, _, _, address in found):
        return "is no address of this machine, which is the first node (launch.node_rank = 0)"
    return ""


def _is_own(family: int, address: tuple[Any, ...]) -> bool:
    try:
        with socket.socket(family) as probe:
            probe.bind((address[0], 0))
    except OSError:
        return False
    return True


def is_clock_synchronised() -> bool | None:
    """Whether the kernel's clock follows a time server; None when it cannot be asked."""
    # struct timex is 208 bytes on 64-bit Linux; all zeros asks and changes nothing.
    state: int = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(256))
    return None if state < 0 else state != _CLOCK_ERROR


def has_weights(directory: Path) -> bool:
    """Whether a Hugging Face directory holds weights that Bridge can read."""
    return any(directory.glob("*.safetensors"))


def _is_complete(snapshot: Path) -> bool:
    """Every shard that the index names is there; links into the cache break when a download is cut off."""
    if (snapshot / "model.safetensors").exists():
        return True
    try:
        index = json.loads((snapshot / "model.safetensors.index.json").read_text(encoding="utf-8"))
        return all((snapshot / name).exists() for name in set(index["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def _data_bytes(data: DataSettings) -> int:
    """Size of the text to read, at least; 0 for data that is ready or invented."""
    if data.source not in ("text", "chat") or not data.path:
        return 0
    path = expanded(data.path)
    limit = int(data.max_megabytes * 1e6)
    total = 0
    files = [path] if path.is_file() else (entry for entry in path.rglob("*") if entry.is_file())
    for count, file in enumerate(files):
        try:
            total += file.stat().st_size
        except OSError:
            continue
        if count >= MAX_FILES or (limit and total >= limit):
            break
    return min(total, limit) if limit else total


def _data_problem(settings: Settings) -> tuple[str, str] | None:
    """What speaks against the data without reading it whole; what is missing is said elsewhere."""
    data = settings.data
    path = expanded(data.path)
    try:
        if data.source == "prefix" and all(_is_readable(f"{data.path}{ending}") for ending in (".bin", ".idx")):
            facts = indexed.check_header(path)
            if settings.launch.route == "bridge":
                indexed.first_held_out(facts.documents, data.validation_percent)
        # Tables and packed files need packages that only the place of the run may have.
        elif data.source in ("text", "chat") and path.is_file() and path.suffix not in _NEEDS_A_PACKAGE:
            chosen.shape(settings, chosen.files(settings))
    except EngineError as problem:
        return problem.message, problem.hint
    return None


def _missing(settings: Settings) -> list[str]:
    """What the settings name and is not there, as `key = path`."""
    data, model = settings.data, settings.model
    wanted: list[tuple[str, str]] = []
    # A pattern names files; whether there are any is seen when they are read.
    if data.source in ("text", "chat") and not set("*?[") & set(data.path) and not data.path.startswith(HUB_PREFIX):
        wanted.append(("data.path", data.path))
    if data.source == "prefix":
        wanted += [("data.path", f"{data.path}{ending}" if data.path else "") for ending in (".bin", ".idx")]
    for key, value in (("data.tokenizer", data.tokenizer), ("model.path", model.path)):
        if value:
            wanted.append((key, value))
    if model.checkpoint:
        tracker = Path(model.checkpoint) / "latest_checkpointed_iteration.txt"
        wanted.append(("model.checkpoint", str(tracker if Path(model.checkpoint).is_dir() else model.checkpoint)))
    return [f"{key} = {value!r}" for key, value in wanted if not value or not _is_readable(value)]


def _is_readable(value: str) -> bool:
    return os.access(expanded(value), os.R_OK)


def _listener(port: int) -> str:
    """The process that listens on `port`, found over the socket's inode; others' processes stay unnamed."""
    inodes = set()
    for table in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/net/{table}").read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        rows = [line.split() for line in lines]
        inodes |= {f"socket:[{row[9]}]" for row in rows if int(row[1].rpartition(":")[2], 16) == port}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(os.readlink(one) in inodes for one in (process / "fd").iterdir()):
                return f"{(process / 'comm').read_text().strip()} (process {process.name})"
        except OSError:
            continue
    return "a process of another user"
