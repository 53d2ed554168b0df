"""The command of each step of a run: the one place where the run directory meets a launcher."""

from __future__ import annotations

import os
import shutil
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path

import engine
from engine.launch import launchers, scripts, slurm
from engine.launch.command import Command, StepRequest
from engine.plan.plan import Plan, PlannedStep
from engine.run import containers, hosts
from engine.run.directory import RunDirectory
from engine.settings import Settings


def for_step(
    run: RunDirectory, settings: Settings, plan: Plan, step: PlannedStep, attempt: Path, port: int = 0
) -> Command:
    """The command that carries out `step`. Raises SettingsError when the launcher cannot do it."""
    return launchers.command(request_for(run, settings, plan, step, attempt, port))


def request_for(
    run: RunDirectory, settings: Settings, plan: Plan, step: PlannedStep, attempt: Path, port: int = 0
) -> StepRequest:
    """`step` in the plain values that every launcher takes."""
    return StepRequest(
        run=run.path,
        attempt=attempt,
        step=step.name,
        ranks_per_node=step.ranks_per_node,
        nodes=plan.nodes,
        uses_all_ranks=step.name == "train",
        device=plan.device,
        layout=plan.layout,
        python=_python(settings),
        own_python=sys.executable,
        settings=settings,
        source=source_for(run, settings),
        gpus=plan.gpus,
        user=(os.getuid(), os.getgid()),
        runtime=containers.runtime_for(settings.launch),
        caches=containers.caches_for(settings),
        hosts=hosts.read(settings.machine.hosts) if settings.launch.launcher == "ssh" else (),
        environment=environment_values(settings, plan, port or rendezvous_port(run, settings, 1)),
    )


def environment_values(settings: Settings, plan: Plan, port: int) -> dict[str, str | int]:
    """The five keys of distributed_config.env."""
    address = settings.launch.master_addr
    if address == "localhost" and plan.nodes > 1 and settings.machine.hosts:
        address = hosts.read(settings.machine.hosts)[0].rpartition("@")[2]
    return {
        "GPUS_PER_NODE": plan.ranks_per_node,
        "NUM_NODES": plan.nodes,
        "MASTER_ADDR": address,
        "MASTER_PORT": port,
        "NODE_RANK": settings.launch.node_rank,
    }


def rendezvous_port(run: RunDirectory, settings: Settings, attempt: int) -> int:
    """The port to meet at when another node's free ports cannot be seen.

    Each attempt has its own, so that what is left of the last one is not met; all lie below
    the kernel's own range, which starts at 32768.
    """
    return settings.launch.master_port or 20_000 + (zlib.crc32(str(run.path).encode()) + attempt) % 12_000


def all_requests(run: RunDirectory, settings: Settings, plan: Plan, port: int = 0) -> list[StepRequest]:
    """What a launcher is told of each step, in order, as the first attempts."""
    return [
        request_for(run, settings, plan, step, run.attempt(number, step.name), port)
        for number, step in enumerate(plan.steps, start=1)
    ]


def all_steps_script(run: RunDirectory, settings: Settings, plan: Plan) -> str:
    """Every step in order, to be read or run by hand."""
    requests = all_requests(run, settings, plan)
    if settings.launch.launcher == "slurm":
        # Our part only submits and follows; what is carried out is the batch script.
        return slurm.job_script(requests, run.command)
    reasons: Mapping[str, str] = {step.name: step.why for step in plan.steps}
    made = {request.step: launchers.command(request) for request in requests}
    return scripts.all_steps(made, reasons, run.command)


def source_for(run: RunDirectory, settings: Settings) -> Path | None:
    """Where another interpreter finds `engine`: a directory of the run that holds nothing else.

    Our whole site-packages on its path would mix two installations of torch.
    """
    # Not resolved: two virtual environments may share one real interpreter.
    is_ours = Path(_python(settings)).absolute() == Path(sys.executable).absolute()
    return None if is_ours and settings.launch.launcher == "local" else run.path / "source"


def place_source(run: RunDirectory, settings: Settings) -> None:
    """Copy `engine` into the run for an interpreter that does not have it; replaces an older copy.

    A copy and no link: a container or another node sees the run and not our installation.
    """
    source = source_for(run, settings)
    if source is None:
        return
    shutil.rmtree(source, ignore_errors=True)
    copy_engine(source)


def copy_engine(source: Path) -> None:
    """Make `source` a directory that holds `engine` and nothing else. Raises OSError."""
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(engine.__file__).resolve().parent, source / "engine", ignore=ignore)


def _python(settings: Settings) -> str:
    if settings.launch.python:
        return settings.launch.python
    # Ours is not in the container; its own is called so in NVIDIA's images.
    return "python" if is_in_container(settings) else sys.executable


def is_in_container(settings: Settings) -> bool:
    """True when the workers run inside an image."""
    launch = settings.launch
    return launch.launcher == "container" or (launch.launcher == "slurm" and launch.runtime in ("pyxis", "apptainer"))
