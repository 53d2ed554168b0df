"""What the review shows: the plan in words, what was changed, the exact commands and files."""

from __future__ import annotations

from pathlib import Path

from engine import settings_file
from engine.findings import Finding, Severity
from engine.plan.plan import Plan
from engine.run.directory import RunDirectory
from engine.settings import Settings
from gptoss_tui.bridge import Failure, attempt
from gptoss_tui.draft import Draft, text_of
from gptoss_tui.finding_rows import finding_parts

type Parts = list[tuple[str, str]]


def review_parts(draft: Draft, plan: Plan, findings: tuple[Finding, ...], root: Path) -> Parts:
    """Everything as (text, style) paragraphs; slow enough to be called in a thread."""
    return [
        *_troubles(findings),
        *_changes(draft),
        ("What happens", "title"),
        ("\n".join(f"{i}. {step.name:<8} {step.why}" for i, step in enumerate(plan.steps, start=1)), "text"),
        (" ", ""),
        *_commands(draft.settings, plan, root),
        ("gptoss.toml: the same settings give the same run", "title"),
        (_marked_toml(draft), "text"),
    ]


def _troubles(findings: tuple[Finding, ...]) -> Parts:
    told = [finding for finding in findings if finding.severity is not Severity.INFO]
    return [("Before it starts", "title"), *finding_parts(told), (" ", "")] if told else []


def _changes(draft: Draft) -> Parts:
    changed = draft.changed()
    start = draft.name or "the defaults"
    if not changed:
        return [(f"As {start}, with nothing changed.", "text"), (" ", "")]
    lines = [f"{key:<32} {text_of(draft.base.value(key))} → {text_of(value)}" for key, value in changed.items()]
    return [(f"Changed from {start}", "title"), ("\n".join(lines), "accent"), (" ", "")]


def _commands(settings: Settings, plan: Plan, root: Path) -> Parts:
    from engine import env_file
    from engine.run import commands

    # The name is given at the start; no directory is made for a look at the commands.
    run = RunDirectory((Path(settings.output.directory).expanduser() if settings.output.directory else root) / "RUN")
    script = attempt(lambda: commands.all_steps_script(run, settings, plan))
    environment = attempt(lambda: env_file.render(commands.environment_values(settings, plan, 0)))
    if isinstance(script, Failure):
        return [("Commands", "title"), (f"{script.message} {script.hint}", "bad"), (" ", "")]
    parts: Parts = [("Commands (RUN is the name it gets)", "title"), (script.strip(), "text"), (" ", "")]
    if isinstance(environment, str):
        note = "" if settings.launch.master_port else "  (a free port is chosen at the start)"
        parts += [(f"distributed_config.env{note}", "title"), (environment.strip(), "text"), (" ", "")]
    return parts


def _marked_toml(draft: Draft) -> str:
    """The settings file, with a mark on the lines that differ from the starting point."""
    table = ""
    changed = draft.changed()
    lines = []
    for line in settings_file.dumps(draft.settings).splitlines():
        if line.startswith("["):
            table = line.strip("[]")
        key = f"{table}.{line.partition(' = ')[0]}"
        lines.append(f"{'▸' if key in changed else ' '} {line}")
    return "\n".join(lines)
