"""`gptoss presets`: the shipped starting points and the person's own."""

from __future__ import annotations

import argparse
from pathlib import Path

from engine import presets
from engine.cli import output
from engine.errors import ExitCode
from engine.options import text_of
from engine.paths import expanded
from engine.settings import Settings, parse_assignments, to_tables
from engine.settings_file import dumps


def list_presets(arguments: argparse.Namespace) -> int:
    """Print every preset, the person's own first."""
    found = presets.all_presets()
    if arguments.json:
        output.print_json([
            {"name": p.name, "title": p.title, "summary": p.summary, "path": str(p.path), "is_user": p.is_user}
            for p in found
        ])  # fmt: skip
    else:
        rows = [(p.name, "yours" if p.is_user else "", p.title) for p in found]
        print(output.clean(output.table(rows, ("PRESET", "", "WHAT IT IS"))))
    return ExitCode.DONE


def show(arguments: argparse.Namespace) -> int:
    """Print a preset as a settings file, every value filled in."""
    found = presets.find(arguments.name)
    if arguments.json:
        changed = to_tables(found.settings, since=Settings())
        output.print_json({"name": found.name, "title": found.title, "summary": found.summary,
                           "settings": to_tables(found.settings), "changed": changed})  # fmt: skip
    else:
        print(output.clean(f"# {found.title}\n# {found.summary}\n{dumps(found.settings)}"), end="")
    return ExitCode.DONE


def diff(arguments: argparse.Namespace) -> int:
    """Print what one preset sets otherwise than another, or than the defaults."""
    before = presets.find(arguments.other).settings if arguments.other else Settings()
    found = presets.differences(before, presets.find(arguments.name).settings)
    if arguments.json:
        output.print_json({key: {"before": old, "after": new} for key, (old, new) in found.items()})
        return ExitCode.DONE
    rows = [(key, text_of(old) or "(empty)", text_of(new) or "(empty)") for key, (old, new) in found.items()]
    heads = ("SETTING", (arguments.other or "the defaults").upper(), arguments.name.upper())
    print(output.clean(output.table(rows, heads)) if rows else "they set the same")
    return ExitCode.DONE


def save(arguments: argparse.Namespace) -> int:
    """Keep a preset of one's own, made from another one or from a settings file."""
    base = presets.find(arguments.source) if arguments.source else None
    settings = (base.settings if base else Settings()).with_values(parse_assignments(arguments.assignments))
    path = presets.save(
        arguments.name,
        settings,
        title=arguments.title,
        summary=arguments.summary or (base.summary if base else ""),
        overwrite=arguments.overwrite,
    )
    return _done(arguments, path, f"saved {path}; start it with: gptoss run {arguments.name}")


def share(arguments: argparse.Namespace) -> int:
    """Write a preset as a file for somebody else."""
    takes_stdout = output.goes_to_stdout(arguments, "file")
    path = expanded(arguments.file)
    text, places = presets.shared(presets.find(arguments.name), path.name)
    for key in places:
        output.say(f"note: {key} names a place on this machine; whoever gets the file must set it anew")
    if takes_stdout:
        output.write_out(text)
        return ExitCode.DONE
    presets.write_shared(text, path)
    return _done(arguments, path, f"wrote {path}; it is taken in with: gptoss presets save NAME --from {path.name}")


def delete(arguments: argparse.Namespace) -> int:
    """Remove a preset of one's own."""
    path = presets.delete(arguments.name)
    return _done(arguments, path, f"deleted {path}")


def _done(arguments: argparse.Namespace, path: Path, sentence: str) -> int:
    if arguments.json:
        output.print_json({"path": str(path)})
    else:
        print(output.clean(sentence))
    return ExitCode.DONE
