"""`gptoss new` without questions, and `gptoss import`: settings from presets, files and launch scripts."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from engine import answers, imports, local_paths, presets, secrets, settings_file
from engine.cli import lengths, output, starting
from engine.cli.machines import machine_of
from engine.errors import EngineError, ExitCode, SettingsError
from engine.imports import Imported
from engine.megatron_flags import Told
from engine.options import text_of
from engine.paths import expanded
from engine.plan.planner import make_plan
from engine.settings import Settings, parse_assignments, to_tables
from engine.settings_file import dumps

DECISIONS = ("model.name", "data.source", "training.goal")
"""What nobody can decide for a person: without a preset or a file at least one must be given."""


def new(arguments: argparse.Namespace) -> int:
    """Make settings from what the command line says, asking nothing; keep them, start them or print them."""
    settings = base_settings(arguments)
    if settings is None:
        raise SettingsError(
            f"nothing to start from, and nobody to ask: {', '.join(DECISIONS)} are missing",
            "name a preset or a file, or give --set KEY=VALUE; with questions: gptoss new --plain, in a terminal",
        )
    if missing := answers.missing(settings):
        if arguments.json:
            output.print_json({"missing": missing})
        raise SettingsError(
            "answers are missing:" + "".join(f"\n        {key}: {why}" for key, why in missing.items()),
            " ".join(f"--set {key}=…" for key in missing),
        )
    takes_stdout = output.goes_to_stdout(arguments, "output")
    if takes_stdout and (arguments.launch or arguments.dry_run):
        raise SettingsError(
            "standard output (-) can hold one thing only", "give --output a file to launch or rehearse as well"
        )
    path = _keep(settings, arguments)
    if arguments.launch or arguments.dry_run:
        return starting.start_and_follow(arguments, settings, machine_of(arguments))
    if arguments.json:
        changed = to_tables(settings, since=Settings())
        output.print_json({"path": str(path) if path else None, "settings": to_tables(settings), "changed": changed,
                           "findings": _findings(settings, arguments)})  # fmt: skip
        return ExitCode.DONE
    for text in _findings(settings, arguments):
        output.say(text)
    if path and not takes_stdout:
        print(output.clean(f"wrote {path}; start it with: gptoss run {path}"))
    else:
        _print_settings(settings)
    return ExitCode.DONE


def _print_settings(settings: Settings) -> None:
    """As a settings file, on stdout. Raises SettingsError for a value that is a secret."""
    text = dumps(settings)
    secrets.refuse(text, "standard output")
    output.write_out(text)


def base_settings(arguments: argparse.Namespace) -> Settings | None:
    """What a set-up begins with: preset, imported files, assignments; None when nothing of it was given."""
    if not (arguments.preset or arguments.sources or arguments.assignments):
        return None
    settings = presets.find(arguments.preset).settings if arguments.preset else Settings()
    if arguments.sources:
        found = imports.read([expanded(source) for source in arguments.sources])
        for line in account(found):
            output.say(line)
        settings = settings.with_values(found.values)
    settings = local_paths.absolute(settings.with_values(parse_assignments(arguments.assignments)))
    return lengths.apply(settings, lambda: machine_of(arguments), arguments.length)


def import_files(arguments: argparse.Namespace) -> int:
    """Say what launch scripts and env files come to here; keep it when asked to."""
    takes_stdout = output.goes_to_stdout(arguments, "output")
    found = imports.read([expanded(file) for file in arguments.files])
    path = _keep(found.settings, arguments)
    if arguments.json:
        output.print_json({
            "path": str(path) if path else None,
            "settings": to_tables(found.settings, since=Settings()),
            **{kind: [{"text": one.text, "key": one.key, "why": one.why} for one in told]
               for kind, told in _kinds(found)},
        })  # fmt: skip
        return ExitCode.DONE
    if takes_stdout:
        _print_settings(found.settings)
        output.say("\n".join(account(found)))
    else:
        print(output.clean("\n".join(account(found))))
    missing = answers.missing(found.settings)
    for key, why in missing.items():
        output.say(f"still missing: {key}: {why}")
    if path:
        output.say(f"wrote {path}; go on with: gptoss new {path}")
    elif not takes_stdout:
        output.say("nothing was written: keep it with --output gptoss.toml or --save-preset NAME")
    return ExitCode.DONE


def account(found: Imported) -> list[str]:
    """What became of every word, as lines."""
    heads = {"understood": "understood", "ignored": "ignored", "impossible": "cannot be had here"}
    lines: list[str] = []
    for kind, told in _kinds(found):
        if told:
            lines += [f"{heads[kind]} ({len(told)})", *(f"  {_row(one, found)}" for one in told)]
    return lines


def _kinds(found: Imported) -> Iterable[tuple[str, tuple[Told, ...]]]:
    return (("understood", found.understood), ("ignored", found.ignored), ("impossible", found.impossible))


def _row(one: Told, found: Imported) -> str:
    value = f"{one.key} = {text_of(found.values[one.key])}" if one.key in found.values else one.key
    return ": ".join(part for part in (f"{one.text:<40}", value, one.why) if part)


def _keep(settings: Settings, arguments: argparse.Namespace) -> Path | None:
    """Write the settings where the command line says, if it does. Raises SettingsError."""
    path: Path | None = None
    try:
        if arguments.save_preset:
            path = presets.save(arguments.save_preset, settings, overwrite=arguments.overwrite)
        if arguments.output and arguments.output != output.STDOUT:
            path = expanded(arguments.output)
            if path.exists() and not arguments.overwrite:
                raise SettingsError(f"{path} exists already", "give another file, or --overwrite")
            settings_file.save(settings, path)
    except OSError as error:
        raise SettingsError(
            f"{path} cannot be written: {error.strerror}", "give a file in a directory of yours"
        ) from error
    return path


def _findings(settings: Settings, arguments: argparse.Namespace) -> list[str]:
    """What the plan and the checks say on this machine; the settings may be for another one."""
    try:
        machine = machine_of(arguments)
        plan = make_plan(settings, machine)
        return [str(finding) for finding in starting.check(settings, plan, machine) if finding.severity != "info"]
    except EngineError as error:
        return [f"not on this machine: {error.message} ({error.hint})"]
