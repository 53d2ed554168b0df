"""The verbs that start runs: quickstart and run."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from engine import local_paths, presets, settings_file
from engine.cli import follow, lengths, output
from engine.cli.machines import machine_of
from engine.errors import EngineError, ExitCode, PreflightError, SettingsError
from engine.findings import Finding
from engine.machine import Machine
from engine.plan.plan import Plan
from engine.plan.planner import make_plan
from engine.run import changes, commands, start
from engine.run.directory import RunDirectory, check_name
from engine.settings import Settings, parse_assignments
from engine.settings_file import dumps


def quickstart(arguments: argparse.Namespace) -> int:
    """Start a run from a preset, the machine's own when none is named, and follow it."""
    machine = machine_of(arguments)
    name = arguments.preset or _preset_for(machine)
    if not arguments.preset:
        output.say(f"{machine.headline}: using the preset {name}")
    return start_and_follow(arguments, _edited(presets.find(name).settings, machine, arguments), machine)


def run(arguments: argparse.Namespace) -> int:
    """Start a run from a preset or a settings file, or resume one."""
    if arguments.resume:
        return _resume(arguments)
    if not arguments.preset:
        raise SettingsError("no preset was named", "for example: gptoss run rehearsal; list them with: gptoss presets")
    machine = machine_of(arguments)
    settings = _edited(presets.find(arguments.preset).settings, machine, arguments)
    return start_and_follow(arguments, settings, machine)


def _resume(arguments: argparse.Namespace) -> int:
    """Go on with a run, or with --dry-run only tell what that would do."""
    for given, what in ((arguments.preset, "the preset"), (arguments.name, "--name")):
        if given:
            raise SettingsError(f"a run that is resumed keeps its settings and its name: {what} {given!r} says nothing",
                                "leave it out; change settings with --set")  # fmt: skip
    found = start.find(arguments.resume)
    values: dict[str, object] = dict(parse_assignments(arguments.assignments))
    if arguments.length:
        old = settings_file.load(found.settings)
        new = lengths.apply(old.with_values(values), lambda: machine_of(arguments), arguments.length)
        values["training.iterations"] = new.training.iterations
    if arguments.dry_run:
        return _dry_resume(found, values, arguments)
    if arguments.machine:
        raise SettingsError(f"{arguments.machine} describes a machine that is not this one", "leave --machine out")
    for sentence in start.resume(found, values, force=arguments.force).told:
        output.say(sentence)
    return report_start(found, arguments)


def _dry_resume(found: RunDirectory, values: dict[str, object], arguments: argparse.Namespace) -> int:
    """Tell what a resume would do; the run stays as it is."""
    state = start.readable_state(found)
    start.refuse_at_work(found, state)
    machine = machine_of(arguments) if arguments.machine else None
    made = changes.judge(found, state, values, machine=machine, force=arguments.force)
    plan = replace(made.plan, steps=tuple(step for step in made.plan.steps if step.name in made.steps))
    script = commands.all_steps_script(found, made.settings, plan)
    if arguments.json:
        changed = {key: {"old": old, "new": new} for key, (old, new) in made.changed.items()}
        output.print_json(
            {"run": found.name, "changed": changed, "steps": made.steps, "told": made.told, "script": script}
        )
        return ExitCode.DONE
    print(output.clean(script), end="")
    for sentence in made.told:
        output.say(sentence)
    return ExitCode.DONE


def prepare_run(
    settings: Settings, machine: Machine, *, name: str = "", force: bool = False
) -> tuple[RunDirectory, tuple[Finding, ...]]:
    """Plan, check and create a run, not launched yet. Raises PreflightError when a check refuses."""
    plan = make_plan(settings, machine)
    findings = check(settings, plan, machine)
    refuse(findings, force=force)
    return start.create(settings, plan, name), findings


def check(settings: Settings, plan: Plan, machine: Machine) -> tuple[Finding, ...]:
    """What the checks before the start have found."""
    from engine import paths, preflight
    from engine.run import launch_checks

    found = preflight.check(settings, plan, machine, paths.runs_root())
    # Which container runtime or queue is here says nothing of a machine that is only described.
    return found if machine.is_described else (*found, *launch_checks.check(settings, plan))


def refuse(findings: tuple[Finding, ...], *, force: bool) -> None:
    """Raise PreflightError for the errors among `findings`; `force` overrides those that allow it."""
    errors = [f for f in findings if f.severity == "error" and not (force and f.ignorable)]
    if errors:
        first = errors[0]
        more = "".join(f"\n        {finding.what}: {finding.fix}" for finding in errors[1:])
        raise PreflightError(f"{first.what}. {first.why}", f"{first.fix}{more}")


def start_and_follow(arguments: argparse.Namespace, settings: Settings, machine: Machine) -> int:
    """Plan, check, start and follow a run, as the command line says; with --dry-run only show it."""
    if arguments.dry_run:
        return _dry_run(arguments, settings, machine)
    if arguments.machine:
        raise SettingsError(
            f"{arguments.machine} describes a machine that is not this one",
            "add --dry-run to see the commands, or write scripts for it: gptoss export-scripts",
        )
    made, findings = prepare_run(settings, machine, name=arguments.name, force=arguments.force)
    for finding in findings:
        if finding.severity != "info":
            output.say(f"{finding.severity}: {finding.what}: {finding.fix}")
    start.launch(made)
    return report_start(made, arguments)


def _edited(base: Settings, machine: Machine, arguments: argparse.Namespace) -> Settings:
    """A preset's settings with what the command line changes."""
    settings = local_paths.absolute(base.with_values(parse_assignments(arguments.assignments)))
    return lengths.apply(settings, lambda: machine, arguments.length)


def report_start(made: RunDirectory, arguments: argparse.Namespace) -> int:
    """Say that the run is under way; then follow it, or leave it to itself."""
    output.say(f"run {made.name} in {made.path}")
    if arguments.detach:
        output.say(f"watch it with: gptoss attach {made.name}")
        if arguments.json:
            output.print_json({"run": made.name, "directory": str(made.path)})
        return ExitCode.DONE
    if arguments.show_screen:
        return int(arguments.show_screen("monitor", made))
    return follow_to_end(made, as_json=arguments.json)


def follow_to_end(made: RunDirectory, *, as_json: bool) -> int:
    """Follow a run without a screen and print what it came to. Ctrl+C leaves the run going."""
    try:
        code = follow.follow(made, as_json=as_json)
    except KeyboardInterrupt:
        output.say(f"\nno longer watching; the run goes on. gptoss attach {made.name} | gptoss stop {made.name}")
        return ExitCode.INTERRUPTED
    facts = follow.summary(made, start.answer_of(made.name, made.read_state).observed())
    if as_json:
        output.print_json(facts, line=True)
    else:
        print(output.clean(follow.describe(facts)))
    return code


def _dry_run(arguments: argparse.Namespace, settings: Settings, machine: Machine) -> int:
    if arguments.name:
        check_name(arguments.name)
    plan = make_plan(settings, machine)
    findings = check(settings, plan, machine)
    example = RunDirectory(Path(settings.output.directory or ".") / (arguments.name or "RUN"))
    script = commands.all_steps_script(example, settings, plan)
    if arguments.json:
        facts = [{"severity": f.severity, "what": f.what, "why": f.why, "fix": f.fix} for f in findings]
        output.print_json({"script": script, "settings": dumps(settings), "findings": facts})
        return ExitCode.DONE
    print(script, end="")
    for finding in findings:
        output.say(f"{finding.severity}: {finding.what}: {finding.fix}")
    return ExitCode.DONE


def _preset_for(machine: Machine) -> str:
    """The rehearsal without GPUs, else the first preset that plans and passes the checks."""
    if not machine.gpus:
        return "rehearsal"
    for preset in presets.suited_first(presets.all_presets(), [gpu.short_name for gpu in machine.gpus]):
        wanted = preset.settings.machine
        if preset.is_user or wanted.device == "cpu" or wanted.nodes > machine.nodes:
            continue
        if preset.settings.launch.route != "bridge":
            continue  # the tutorial's toy is nobody's start
        try:
            plan = make_plan(preset.settings, machine)
            refuse(check(preset.settings, plan, machine), force=False)
        except EngineError as error:
            output.say(f"not {preset.name}: {error.message}")
            continue
        return preset.name
    output.say("no preset can start here as it is; `gptoss new` plans a run for these GPUs")
    return "rehearsal"
