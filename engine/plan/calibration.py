"""Read calibration.toml: GPU families, the share of their peak that training reaches, published rows."""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from engine.errors import PlanError
from engine.options import suggest


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """Shares of the data sheet's peaks that gpt-oss training reaches; see calibration.toml."""

    name: str
    gemm: float
    experts: float
    attention: float
    memory: float
    nvlink: float
    network: float
    all_to_all_network_gb_per_s: float
    host_ms: float
    packed_host_ms: float
    tensor_host_ms: float
    context_attention_tflops: float
    gemm_fp8: float = 0.45
    experts_fp8: float = 0.40
    host_ms_fp8: float | None = None
    fitted_to: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What one kind of GPU can do, by its data sheet."""

    name: str
    memory_gib: float
    capability: tuple[int, int]
    bf16_tflops: float
    """Dense peak."""
    fp8_tflops: float
    """Dense peak, 0 where there is no FP8."""
    memory_gb_per_s: float
    nvlink_gb_per_s: float
    """One direction of one GPU; 0 without NVLink."""
    nvlink_domain: int
    """GPUs that NVLink joins."""
    network_gb_per_s: float
    """One direction of one GPU out of its NVLink domain."""
    architecture: Architecture
    match: tuple[str, ...] = ()
    max_memory_gib: float = float("inf")
    published: tuple[str, ...] = ()
    """Precisions with a published row on this family; the others are extrapolated."""
    is_known: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """One measured row, with the arguments that reproduce it."""

    name: str
    source: str
    model: str
    goal: str
    gpu: str
    gpus_per_node: int
    nodes: int
    precision: str
    gradient_precision: str
    sequence_length: int
    global_batch: int
    micro_batch: int
    tp: int
    pp: int
    cp: int
    ep: int
    recompute: tuple[str, ...]
    tokens_per_s_per_gpu: float
    fitted: bool = False
    """True when a constant was chosen with this row in view."""
    excluded: str = ""
    """Why the row is shown and not counted; empty when it counts."""


def families() -> tuple[Family, ...]:
    """Every GPU family that is known by name."""
    return _read()[0]


def published() -> tuple[Published, ...]:
    """Every published row."""
    return _read()[1]


def published_beside(model: str, goal: str, gpu: str, world_size: int, sequence_length: int) -> Published | None:
    """The published row nearest in size, then in length, for the same model, goal and GPU; None without one."""
    # Training on from released weights is the same work as from scratch.
    goal = "pretrain" if goal == "continue" else goal
    rows = [row for row in published() if (row.model, row.goal, row.gpu) == (model, goal, gpu) and not row.excluded]

    def distance(row: Published) -> tuple[float, float]:
        size, length = row.gpus_per_node * row.nodes / world_size, row.sequence_length / sequence_length
        return abs(math.log(size)), abs(math.log(length))

    return min(rows, key=distance, default=None)


def find_family(name: str) -> Family:
    """The family called `name`: `H100`, `A100-80GB`, `GB300`. Raises PlanError for an unknown one."""
    wanted = name.upper().replace(" ", "-").replace("_", "-")
    for family in families():
        if family.name.upper() == wanted:
            return family
    loose = {
        "A100": "A100-80GB",
        "4090": "RTX-4090",
        "RTXPRO6000": "RTX-PRO-6000",
        "PRO-6000": "RTX-PRO-6000",
    }
    if wanted.replace("-", "") in loose or wanted in loose:
        return find_family(loose.get(wanted) or loose[wanted.replace("-", "")])
    names = [family.name for family in families()]
    hint = suggest(wanted, names) or "use one of " + ", ".join(names)
    raise PlanError(f"the GPU family {name!r} is not known", hint)


def recognise(name: str, memory_gib: float, capability: tuple[int, int] | None) -> Family:
    """The family of a GPU with NVML's `name`; a low guess of its class when it is not in the table."""
    words = name.upper()
    for family in families():
        if all(word in words for word in family.match) and memory_gib <= family.max_memory_gib:
            return family
    return _generic(name, memory_gib, capability or (8, 0))


@cache
def _read() -> tuple[tuple[Family, ...], tuple[Published, ...], tuple[dict[str, Any], ...]]:
    text = files("engine.plan").joinpath("calibration.toml").read_text(encoding="utf-8")
    tables = tomllib.loads(text)
    architectures = {item["name"]: Architecture(**item) for item in tables["architecture"]}
    rows = tuple(Published(**{**row, "recompute": tuple(row["recompute"])}) for row in tables["published"])
    generic = tuple({**item, "architecture": architectures[item["architecture"]]} for item in tables["generic"])
    return tuple(_family(item, architectures) for item in tables["family"]), rows, generic


def _family(item: dict[str, Any], architectures: dict[str, Architecture]) -> Family:
    facts = {key: value for key, value in item.items() if key not in ("memory_mib", "source")}
    facts |= {
        "memory_gib": item["memory_mib"] / 1024,
        "capability": tuple(item["capability"]),
        "fp8_tflops": item.get("fp8_tflops", 0.0),
        "architecture": architectures[item["architecture"]],
        "match": tuple(item["match"]),
        "published": tuple(item.get("published", ())),
    }
    return Family(**facts)


def _generic(name: str, memory_gib: float, capability: tuple[int, int]) -> Family:
    known = [item for item in _read()[2] if tuple(item["capability"]) <= capability] or [_read()[2][0]]
    nearest = known[-1]
    return Family(
        name=name,
        memory_gib=memory_gib,
        capability=capability,
        bf16_tflops=nearest["bf16_tflops"],
        fp8_tflops=nearest.get("fp8_tflops", 0.0),
        memory_gb_per_s=nearest["memory_gb_per_s"],
        nvlink_gb_per_s=0.0,
        nvlink_domain=1,
        network_gb_per_s=12.0,
        architecture=nearest["architecture"],
        is_known=False,
    )
