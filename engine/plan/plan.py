"""The Plan: settings made concrete for one machine. What workers and launchers read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from engine.errors import RunError
from engine.plan.layout import Layout

VERSION = 1

STEP_NAMES = ("prepare", "convert", "train", "export", "verify")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedStep:
    """One step of a run: a worker and how many ranks of it."""

    name: str
    ranks_per_node: int
    why: str
    """One sentence: what this step is for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Settings + machine + layout, frozen, with the reasons for each choice."""

    device: str
    """`gpu` or `cpu`."""
    layout: Layout
    ranks_per_node: int
    nodes: int
    steps: tuple[PlannedStep, ...]
    gpus: tuple[int, ...] = ()
    """NVML indices of the GPUs of this node, empty on the CPU."""
    reasons: tuple[str, ...] = ()
    estimate: Mapping[str, Any] = field(default_factory=dict)
    """Predicted memory and throughput; see docs/planning.md."""

    @property
    def world_size(self) -> int:
        return self.ranks_per_node * self.nodes

    def step(self, name: str) -> PlannedStep | None:
        return next((step for step in self.steps if step.name == name), None)

    def to_json(self) -> str:
        return json.dumps({"version": VERSION, **asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read `plan.json`. Raises RunError for a newer version or a damaged file."""
        try:
            value = json.loads(text)
            if value.pop("version") > VERSION:
                raise RunError("plan.json was written by a newer gptoss", "upgrade gptoss")
            return cls(
                **{
                    **value,
                    "layout": Layout(**value["layout"]),
                    "steps": tuple(PlannedStep(**step) for step in value["steps"]),
                    "gpus": tuple(value["gpus"]),
                    "reasons": tuple(value["reasons"]),
                }
            )
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise RunError(f"plan.json is damaged: {error}", "start the run anew from its settings.toml") from error
