"""A run as a directory of scripts: settings, plan, the workers' source, and one script for each way to start it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from engine import env_file, settings_file
from engine.errors import EngineError, RunError, SettingsError
from engine.launch import container, images, local, scripts, signals, slurm
from engine.launch.command import ENV_FILE, Command, StepRequest
from engine.paths import write_atomic
from engine.plan.plan import Plan
from engine.run import commands, start
from engine.run.directory import RunDirectory
from engine.settings import Settings

RUN, DOCKER, APPTAINER, ENROOT, JOB = "run.sh", "docker.sh", "apptainer.sh", "enroot.sh", "job.sbatch"

_NOTES = {
    RUN: (
        "Set PYTHON to an interpreter that has torch and Megatron; `engine` comes with this directory.",
        "Ctrl+C asks the training to save and to leave.",
    ),
    DOCKER: (
        "Set IMAGE and CONTAINER_RUNTIME to change what is started. HF_TOKEN is taken from your environment.",
        "To stop with a checkpoint, from another terminal: docker exec NAME bash .../signal.sh stop",
    ),
    APPTAINER: (
        "Set IMAGE to another image or to a .sif file. HF_TOKEN is taken from your environment.",
        "To stop with a checkpoint, from another terminal: bash attempts/NN-train/signal.sh stop",
    ),
    ENROOT: (
        "Set IMAGE to another image (registry#name:tag) or to a .sqsh file, CONTAINER to the name of what it unpacks.",
        "HF_TOKEN is taken from your environment.",
        "To stop with a checkpoint, from another terminal: bash attempts/NN-train/signal.sh stop",
    ),
}
_WAYS: dict[str, tuple[str, Callable[[StepRequest], Command]]] = {
    RUN: ("local", local.command),
    DOCKER: ("container", container.command),
    APPTAINER: ("container", images.apptainer),
    ENROOT: ("container", images.enroot),
}
"""Each script, the launcher whose settings it takes, and what makes a step's command."""


def export(settings: Settings, plan: Plan, directory: Path) -> tuple[list[Path], list[str]]:
    """Write every script that the settings allow; return them, and what a person should know of them.

    Raises RunError when the directory is not empty or cannot be written, SettingsError when there is no way to start.
    """
    run = RunDirectory(directory)
    is_ours = False
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise RunError(f"{directory} is not empty", "give a new directory")
        is_ours = True
        return _Export(run, settings, plan).write()
    except OSError as error:
        if is_ours:
            _clear(directory)  # a part of the scripts is of no use, and would be in the way of the next try
        raise RunError(f"{directory} cannot be written: {error.strerror}", "give another directory") from error


def _clear(directory: Path) -> None:
    """Remove what is in `directory`, as far as that is possible."""
    for entry in directory.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


class _Export:
    def __init__(self, run: RunDirectory, settings: Settings, plan: Plan) -> None:
        self.run, self.settings, self.plan = run, settings, plan
        self.written: list[Path] = []
        self.notes: list[str] = []
        self._why: list[str] = []
        self.reasons = {step.name: step.why for step in plan.steps}
        self.port = commands.rendezvous_port(run, settings, 1)
        self.values = commands.environment_values(settings, plan, self.port)

    def write(self) -> tuple[list[Path], list[str]]:
        settings_file.save(self.settings, self.run.settings)
        write_atomic(self.run.plan, self.plan.to_json())
        write_atomic(self.run.environment, env_file.render(self.values, self._old_environment()))
        commands.copy_engine(self.run.path / "source")
        for number, step in enumerate(self.plan.steps, start=1):
            attempt = self.run.attempt(number, step.name)
            attempt.mkdir(parents=True)
            write_atomic(attempt / signals.NAME, signals.SCRIPT, mode=0o755)
        if self.plan.nodes == 1:
            self._scripts(self.run.path)
        else:
            self._try("nodes/", self._nodes)
        self._try(JOB, self._job)
        if not any(path.name in (*_WAYS, JOB) for path in self.written):
            raise self._nothing()
        return self.written, self.notes

    def _nothing(self) -> SettingsError:
        """What to say when every way of starting is ruled out; what was written for them is of no use."""
        _clear(self.run.path)
        return SettingsError("no script can start this run", "\n        ".join(dict.fromkeys(self._why)))

    def _old_environment(self) -> str:
        return start.environment_text(self.settings)

    def _try(self, name: str, write: Callable[[], None]) -> None:
        """One way of starting that the settings rule out must not cost the others."""
        try:
            write()
        except EngineError as error:
            self.notes.append(f"{name} is left out: {error.message} ({error.hint})")
            self._why.append(f"{error.message}: {error.hint}")

    def _requests(self, launcher: str, **changes: object) -> list[StepRequest]:
        settings = self.settings.with_values({"launch.launcher": launcher})
        requests = commands.all_requests(self.run, settings, self.plan, self.port)
        source = self.run.path / "source"
        return [replace(request, source=source, by_hand=True, **changes) for request in requests]  # type: ignore[arg-type]

    def _scripts(self, directory: Path, **changes: object) -> None:
        for name in _WAYS:
            label = str((directory / name).relative_to(self.run.path))
            self._try(label, partial(self._script, directory / name, **changes))

    def _script(self, at: Path, **changes: object) -> None:
        launcher, build = _WAYS[at.name]
        requests = self._requests(launcher, **changes)
        if self.values["NUM_NODES"] != 1 and at.parent.name != "node-0":
            requests = [request for request in requests if request.uses_all_ranks]
        made = {request.step: build(request) for request in requests}
        self._write(at, scripts.all_steps(made, self.reasons, at, _NOTES[at.name]))

    def _nodes(self) -> None:
        if self.values["MASTER_ADDR"] == "localhost":
            self.notes.append(
                "MASTER_ADDR is localhost, which only the first node reaches: export again with "
                "--set launch.master_addr=NAME or change it in every nodes/*/distributed_config.env"
            )
        for rank in range(self.plan.nodes):
            directory = self.run.path / "nodes" / f"node-{rank}"
            directory.mkdir(parents=True)
            own = directory / ENV_FILE
            text = env_file.render({**self.values, "NODE_RANK": rank}, self._old_environment())
            self._write(own, text, mode=0o644)
            self._scripts(directory, own_env_file=own)

    def _job(self) -> None:
        requests = self._requests("slurm")
        for request in requests:
            self._write(request.attempt / slurm.NODE_SCRIPT, slurm.node_script(request))
        at = self.run.path / JOB
        self._write(at, slurm.job_script(requests, at))

    def _write(self, path: Path, text: str, mode: int = 0o755) -> None:
        write_atomic(path, text, mode=mode)
        self.written.append(path)
