"""What the review shows: the plan in words, what was changed, the exact commands and files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from engine import settings_file
from engine.findings import Finding, Severity
from engine.options import Value, text_of
from engine.paths import expanded
from engine.plan.plan import Plan
from engine.run.directory import RunDirectory
from engine.settings import Settings
from gptoss_tui.bridge import Failure, attempt
from gptoss_tui.draft import Draft
from gptoss_tui.finding_rows import finding_parts

type Parts = list[tuple[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewPage:
    """What the review shows, and what of it can be taken elsewhere."""

    parts: Parts
    """Paragraphs as (text, style)."""
    files: Mapping[str, str]
    """Texts that can be copied, by the name of the file they would be."""


def open_page(draft: Draft, points: tuple[Finding, ...]) -> ReviewPage:
    """What can be said without a plan: what stands in its way, and what was changed."""
    return ReviewPage(parts=[*_troubles(points), *_changes(draft)], files={})


def review_page(draft: Draft, plan: Plan, points: tuple[Finding, ...], root: Path) -> ReviewPage:
    """The whole page; slow enough to be made in a thread. `points` is everything that is still open."""
    settings = draft.settings
    script, environment = attempt(lambda: _script(settings, plan, root)), attempt(lambda: _environment(settings, plan))
    files = {"commands.sh": script, "distributed_config.env": environment, "gptoss.toml": settings_file.dumps(settings)}
    parts = [
        *_troubles(points),
        *_changes(draft),
        ("What happens", "title"),
        ("\n".join(f"{i}. {step.name:<8} {step.why}" for i, step in enumerate(plan.steps, start=1)), "text"),
        (" ", ""),
        *_file("Commands (RUN is the name it gets)", script),
        *_file("distributed_config.env" + _port_note(settings), environment),
        ("gptoss.toml: the same settings give the same run", "title"),
        (_marked_toml(draft), "text"),
    ]
    return ReviewPage(parts=parts, files={name: text for name, text in files.items() if isinstance(text, str)})


def _troubles(points: tuple[Finding, ...]) -> Parts:
    told = [finding for finding in points if finding.severity is not Severity.INFO]
    return [("Before it starts", "title"), *finding_parts(told), (" ", "")] if told else []


def _changes(draft: Draft) -> Parts:
    changed = draft.changed()
    start = draft.name or "the defaults"
    if not changed:
        return [(f"As {start}, with nothing changed.", "text"), (" ", "")]
    lines = [change_line(key, draft.base.value(key), value) for key, value in changed.items()]
    return [(f"Changed from {start}", "title"), ("\n".join(lines), "accent"), (" ", "")]


def change_line(key: str, before: Value, after: Value) -> str:
    """What a setting was and what it is, in a column with others."""
    return f"{key:<32} {text_of(before) or 'empty'} → {text_of(after) or 'empty'}"


def _script(settings: Settings, plan: Plan, root: Path) -> str:
    from engine.run import commands

    # The name is given at the start; no directory is made for a look at the commands.
    run = RunDirectory((expanded(settings.output.directory) if settings.output.directory else root) / "RUN")
    return commands.all_steps_script(run, settings, plan)


def _environment(settings: Settings, plan: Plan) -> str:
    from engine import env_file
    from engine.run import commands

    return env_file.render(commands.environment_values(settings, plan, 0))


def _port_note(settings: Settings) -> str:
    return "" if settings.launch.master_port else "  (a free port is chosen at the start)"


def _file(title: str, text: str | Failure) -> Parts:
    shown = (f"{text.message} {text.hint}", "bad") if isinstance(text, Failure) else (text.strip(), "text")
    return [(title, "title"), shown, (" ", "")]


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
