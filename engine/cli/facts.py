"""The verbs that print facts: settings, doctor, completion."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from engine.cli import output
from engine.errors import ExitCode, SettingsError
from engine.options import Option
from engine.paths import expanded
from engine.settings import OPTIONS, find_option


def settings(arguments: argparse.Namespace) -> int:
    """List every setting, or explain one."""
    if arguments.action == "explain":
        return _explain(arguments)
    if arguments.key:
        raise SettingsError(
            f"settings {arguments.action} takes no key, and {arguments.key!r} was given",
            f"one setting alone: gptoss settings explain {arguments.key}",
        )
    if arguments.action == "page":
        if arguments.json:
            output.print_json({"page": settings_page()})
        else:
            print(settings_page(), end="")
        return ExitCode.DONE
    if arguments.json:
        output.print_json([_option_facts(option) for option in OPTIONS.values()])
    else:
        rows = [(o.key, f"{o.default!r}", o.unit, o.help) for o in OPTIONS.values()]
        print(output.table(rows, ("SETTING", "DEFAULT", "UNIT", "WHAT IT IS")))
    return ExitCode.DONE


def doctor(arguments: argparse.Namespace) -> int:
    """Say what this machine has, and what is missing for a run on it."""
    from engine import machine_file, versions
    from engine.cli.machines import machine_of

    takes_stdout = output.goes_to_stdout(arguments, "save_machine")
    machine = machine_of(arguments)
    if takes_stdout:
        output.write_out(machine_file.dumps(machine))
    elif arguments.save_machine:
        machine_file.save(machine, expanded(arguments.save_machine))
        output.say(f"wrote {arguments.save_machine}; plan for it anywhere with: gptoss --machine FILE plan")
    device = "gpu" if machine.gpus else "cpu"
    here = () if machine.is_described else versions.check(device=device, driver_cuda=machine.cuda_version)
    findings = (*machine.findings, *here)
    if arguments.json:
        output.print_json({
            "machine": machine.to_json(),
            "findings": [finding.to_json() for finding in findings],
        })  # fmt: skip
    else:
        tell = output.say if takes_stdout else _print
        tell(machine.headline)
        for finding in findings:
            tell(f"\n{finding.severity}: {finding.what}\n  {finding.why}\n  {finding.fix}".rstrip())
        if not findings:
            tell("nothing is missing")
    return ExitCode.STEP_FAILED if any(finding.severity == "error" for finding in findings) else ExitCode.DONE


def _print(text: str) -> None:
    print(output.clean(text))


def completion(arguments: argparse.Namespace) -> int:
    """Print the completion script of a shell."""
    import shtab

    from engine.cli.parser import build

    print(shtab.complete(build(), arguments.shell))
    return ExitCode.DONE


def settings_page() -> str:
    """docs/settings.md, from the same declaration as the forms and the checks."""
    lines = [
        "# Settings",
        "",
        "Every value that can be chosen, as `gptoss settings page` prints it. Set one with",
        "`--set table.name=value`, or in a TOML file: `[table]`, `name = value`.",
    ]
    table = ""
    for option in OPTIONS.values():
        if option.table != table:
            table = option.table
            lines += ["", f"## [{table}]"]
        default = f"`{option.default!r}`".replace("'", '"')
        unit = f" {option.unit}" if option.unit else ""
        lines += ["", f"### {option.key}", "", option.help + (f" {option.why}" if option.why else ""), ""]
        lines += [f"Default {default}; takes {option.range_text}{unit}."]
        lines += [f"In Megatron or Megatron-Bridge: `{option.native}`."] if option.native else []
    return "\n".join(lines) + "\n"


def _explain(arguments: argparse.Namespace) -> int:
    if not arguments.key:
        raise SettingsError("which setting?", "for example: gptoss settings explain training.learning_rate")
    option = find_option(arguments.key)
    facts = _option_facts(option)
    if arguments.json:
        output.print_json(facts)
        return ExitCode.DONE
    lines = [option.key, f"  {option.help}", f"  {option.why}" if option.why else ""]
    lines += [f"  default  {option.default!r}", f"  takes    {option.range_text} {option.unit}".rstrip()]
    lines += [f"  Megatron {option.native}" if option.native else ""]
    print("\n".join(line for line in lines if line))
    return ExitCode.DONE


def _option_facts(option: Option) -> dict[str, Any]:
    return {**asdict(option), "kind": option.kind.__name__, "range": option.range_text}
