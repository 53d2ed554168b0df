"""The command of each step of a run: the one place where the run directory meets a launcher."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from engine.launch import local
from engine.launch.command import Command, StepRequest
from engine.plan.plan import Plan, PlannedStep
from engine.run.directory import RunDirectory
from engine.settings import Settings


def for_step(run: RunDirectory, settings: Settings, plan: Plan, step: PlannedStep, attempt: Path) -> Command:
    """The command that carries out `step` on this node."""
    return local.command(
        StepRequest(
            run=run.path,
            attempt=attempt,
            step=step.name,
            ranks_per_node=step.ranks_per_node,
            nodes=plan.nodes,
            uses_all_ranks=step.ranks_per_node == plan.ranks_per_node and step.ranks_per_node * plan.nodes > 1,
            device=plan.device,
            layout=plan.layout,
            python=_python(settings),
            source=source_for(run, settings),
            gpus=plan.gpus,
        )
    )


def environment_values(settings: Settings, plan: Plan, port: int) -> dict[str, str | int]:
    """The five keys of distributed_config.env."""
    return {
        "GPUS_PER_NODE": plan.ranks_per_node,
        "NUM_NODES": plan.nodes,
        "MASTER_ADDR": settings.launch.master_addr,
        "MASTER_PORT": port,
        "NODE_RANK": settings.launch.node_rank,
    }


def all_steps_script(run: RunDirectory, settings: Settings, plan: Plan) -> str:
    """Every step in order, to be read or run by hand."""
    parts = [
        "#!/usr/bin/env bash",
        f"# The steps of the run {run.name}, as gptoss carries them out one by one.",
        "set -euo pipefail",
    ]
    for number, step in enumerate(plan.steps, start=1):
        attempt = run.attempt(number, step.name)
        script = for_step(run, settings, plan, step, attempt).script()
        body = [line for line in script.splitlines() if not line.startswith(("#!", "set -euo"))]
        parts += [
            "",
            f"# {number}. {step.why}",
            f"mkdir -p {shlex.quote(str(attempt))}",
            "(",
            *(f"  {x}" for x in body),
            ")",
        ]
    return "\n".join(parts) + "\n"


def source_for(run: RunDirectory, settings: Settings) -> Path | None:
    """Where another interpreter finds `engine`: a directory of the run that holds nothing else.

    Our whole site-packages on its path would mix two installations of torch.
    """
    # Not resolved: two virtual environments may share one real interpreter.
    if Path(_python(settings)).absolute() == Path(sys.executable).absolute():
        return None
    return run.path / "source"


def _python(settings: Settings) -> str:
    return settings.launch.python or sys.executable
