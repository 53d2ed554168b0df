"""The verb that writes a run as scripts: export-scripts."""

from __future__ import annotations

import argparse

from engine import local_paths, machine_file, presets
from engine.cli import output
from engine.cli.machines import machine_of
from engine.errors import ExitCode, SettingsError
from engine.machine import Machine
from engine.plan.planner import make_plan
from engine.run import exported
from engine.settings import Settings, parse_assignments

ASSUMED_GPU = {"name": "NVIDIA H100 80GB HBM3", "memory_gib": 80.0, "nvlinks": 18, "nvlink_shape": "switch"}


def export_scripts(arguments: argparse.Namespace) -> int:
    """Write the scripts of a preset or a settings file into a new directory."""
    if not arguments.preset or not arguments.output:
        missing = "--preset NAME" if not arguments.preset else "--output DIR"
        example = "for example: gptoss export-scripts --preset rehearsal --output scripts"
        raise SettingsError(f"{missing} is missing", example)
    chosen = presets.find(arguments.preset).settings.with_values(parse_assignments(arguments.assignments))
    settings = local_paths.absolute(chosen)
    plan = make_plan(settings, _machine(arguments, settings))
    directory = output.directory(arguments.output).absolute()
    written, notes = exported.export(settings, plan, directory)
    for note in notes:
        output.say(f"note: {note}")
    if arguments.json:
        output.print_json({"directory": str(directory), "files": [str(path) for path in written], "notes": notes})
        return ExitCode.DONE
    for path in written:
        print(output.clean(str(path)))
    return ExitCode.DONE


def _machine(arguments: argparse.Namespace, settings: Settings) -> Machine:
    """The described machine, the one here, or a usual one where the settings want GPUs and none is here."""
    here = machine_of(arguments)
    wanted = settings.machine
    if arguments.machine or here.gpus or wanted.device == "cpu" or settings.model.name == "tiny":
        return here
    count = wanted.gpus_per_node or 8
    output.say(f"no GPU here: planning for {count} x H100 80GB a node; describe others with --machine FILE")
    tables = {"cluster": {"nodes": wanted.nodes}, "gpu": {"count": count, **ASSUMED_GPU}}
    return machine_file.to_machine(machine_file.describe(tables))
