"""From a screen to the engine and back: slow calls in threads, and their failures as values.

The engine is reached through `Services`, so that a test can stand another one in its place.
Everything is imported when it is first called: none of it is needed for the first frame.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textual.dom import DOMNode
from textual.message import Message
from textual.message_pump import MessagePump
from textual.worker import get_current_worker

from engine.defects import keep_trace
from engine.errors import EngineError, SettingsError
from engine.findings import for_forms
from gptoss_tui import threads
from gptoss_tui.threads import changing

if TYPE_CHECKING:
    from engine.data.preview import Preview
    from engine.findings import Finding
    from engine.imports import Imported
    from engine.machine import GpuSample, Machine
    from engine.monitor.diagnose import Diagnosis
    from engine.monitor.labels import Labels
    from engine.plan.plan import Plan
    from engine.plan.rehearsal import Rehearsal
    from engine.presets import Preset
    from engine.run.asking import Asking, Wanted
    from engine.run.directory import RunDirectory
    from engine.settings import Settings
    from gptoss_tui.draft import Draft
    from gptoss_tui.log_lines import Level
    from gptoss_tui.model_panel import ModelFacts


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a call did not do what it was asked to."""

    message: str
    hint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """Scripts that were written, and what a person should know of them."""

    directory: Path
    files: tuple[Path, ...]
    notes: tuple[str, ...]


class Answer(Message, bubble=False):
    """What a call in a thread came to: a value or a `Failure`."""

    def __init__(self, name: str, value: Any) -> None:
        super().__init__()
        self.name = name
        self.value = value


def attempt(call: Callable[[], Any]) -> Any:
    """The value of `call`, or a `Failure`; a defect is written to a file that the failure names."""
    try:
        return call()
    except EngineError as error:
        return Failure(error.message, for_forms(error.hint))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return Failure(f"{where}{error.strerror or error}", "check that the disk has room and may be written to")
    except Exception as error:
        return Failure(f"unexpected {type(error).__name__}: {error}", keep_trace())


def ask(target: MessagePump, name: str, call: Callable[[], Any]) -> None:
    """Post `call`'s result to `target` as an `Answer`; nothing when it was asked anew meanwhile.

    The body of a thread worker.
    """
    value = attempt(call)
    if not get_current_worker().is_cancelled:
        target.post_message(Answer(name, value))


def ask_from(node: DOMNode, name: str, call: Callable[[], Any]) -> None:
    """Call the engine in a thread; an `Answer` called `name` comes back to `node`, only for the latest question."""
    if threads.are_used_up():
        failure = Failure(f"{threads.MOST_IN_ALL} answers have not come: a disk or share is silent", "try again later")
        node.post_message(Answer(name, failure))
        return
    body = partial(ask, node, name, call)
    node.run_worker(body, thread=True, exclusive=True, exit_on_error=False, group=name)


def changes[**P, T](method: Callable[P, T]) -> Callable[P, T]:
    """Mark what a screen that only watches must not do, and what leaving the program waits for."""

    @wraps(method)
    def guarded(*arguments: P.args, **named: P.kwargs) -> T:
        services = arguments[0]
        assert isinstance(services, Services)
        if services.is_watching:
            raise SettingsError("this view only watches", "start it with: gptoss serve --allow-actions")
        with changing:
            return method(*arguments, **named)

    return guarded


class Services:
    """The engine as the screens use it. Every method may raise EngineError or OSError."""

    is_watching = False
    """True where nothing may be changed: what is marked with `changes` is refused."""
    described: Path | None = None
    """A machine file to plan for in place of this machine."""

    def presets(self) -> tuple[Preset, ...]:
        from engine.presets import all_presets

        return all_presets()

    @changes
    def save_preset(self, name: str, settings: Settings) -> Path:
        from engine.presets import save

        return save(name, settings, overwrite=False)

    @changes
    def delete_preset(self, name: str) -> Path:
        from engine.presets import delete

        return delete(name)

    def rehearsal(self, settings: Settings, plan: Plan, machine: Machine) -> Rehearsal:
        from engine.plan.rehearsal import rehearse

        return rehearse(settings, plan, machine)

    @changes
    def export_scripts(self, settings: Settings, plan: Plan, directory: Path) -> Exported:
        from engine.run.exported import export

        directory = directory.absolute()
        files, notes = export(settings, plan, directory)
        return Exported(directory=directory, files=tuple(files), notes=tuple(notes))

    @changes
    def keep_copy(self, name: str, text: str) -> Path:
        """Write what was copied, for terminals that give no clipboard away; replaces the last one of that name."""
        from engine.paths import make_own, state_root, write_atomic

        path = state_root() / "copied" / name
        make_own(path.parent)
        write_atomic(path, text, mode=0o600)
        return path

    def machine(self) -> Machine:
        if self.described is not None:
            from engine.machine_file import load

            return load(self.described)
        from engine.machine import detect

        return detect()

    def sample_gpus(self) -> tuple[GpuSample, ...]:
        from engine.machine import sample_gpus

        return sample_gpus()

    def plan(self, settings: Settings, machine: Machine, *, with_alternatives: bool = True) -> Plan:
        from engine.plan.planner import make_plan

        return make_plan(settings, machine, with_alternatives=with_alternatives)

    def check(self, settings: Settings, plan: Plan, machine: Machine) -> tuple[Finding, ...]:
        from engine.cli.starting import check

        return check(settings, plan, machine)

    def model_facts(self, settings: Settings, machine: Machine | None) -> ModelFacts:
        from gptoss_tui.model_panel import read

        return read(settings, machine, self.runs_root())

    def preview(self, settings: Settings) -> Preview:
        from gptoss_tui.data_panel import read

        return read(settings)

    @changes
    def use_token(self, token: str) -> None:
        """Let the runs started from here use a Hugging Face token; it goes no further than their environment."""
        if not (token.isascii() and token.isprintable() and " " not in token):
            raise SettingsError("that is no token: it has a space or a letter that no token has", "paste it again")
        os.environ["HF_TOKEN"] = token

    def data_tokens(self, settings: Settings, *, is_packed: bool = True) -> float | None:
        from engine.data.amount import trained_tokens

        return trained_tokens(settings, is_packed=is_packed)

    def import_files(self, paths: list[Path]) -> Imported:
        from engine.imports import read

        return read(paths)

    def versions(self) -> tuple[Finding, ...]:
        from engine.versions import check

        return check()

    @changes
    def start(self, settings: Settings, plan: Plan, name: str = "") -> RunDirectory:
        if self.described is not None:
            raise SettingsError(
                f"{self.described} describes a machine that is not this one",
                "write scripts for it: gptoss export-scripts",
            )
        # The plan that was shown is the one that is carried out.
        from engine.run.start import create, launch

        run = create(settings, plan, name)
        launch(run)
        return run

    @changes
    def resume(self, run: RunDirectory, changes: Mapping[str, object] | None = None) -> None:
        from engine.run.start import resume

        resume(run, changes)

    def cause_of(self, run: RunDirectory) -> Diagnosis | None:
        from engine.run.cause import cause_of

        return cause_of(run)

    @changes
    def label_run(self, run: RunDirectory, written: Labels) -> None:
        from engine.monitor import labels

        labels.write(run.path, written)

    @changes
    def export_log(self, job: str, paths: tuple[Path, ...], level: Level) -> str:
        from gptoss_tui.feed import export_log

        return export_log(job, paths, level)

    @changes
    def keep_draft(self, draft: Draft) -> None:
        draft.save()

    @changes
    def stop(self, run: RunDirectory) -> None:
        from engine.run.start import stop

        stop(run)

    @changes
    def kill(self, run: RunDirectory) -> None:
        from engine.run.start import kill

        kill(run)

    @changes
    def ask_models(self, run: RunDirectory, wanted: Wanted) -> Asking:
        """Not for watchers: it loads two models."""
        from engine.run.asking import Asking

        return Asking(run, wanted)

    def runs_root(self) -> Path:
        from engine.paths import runs_root

        return runs_root()
