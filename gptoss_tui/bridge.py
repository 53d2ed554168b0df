"""From a screen to the engine and back: slow calls in threads, and their failures as values.

The engine is reached through `Services`, so that a test can stand another one in its place.
Everything is imported when it is first called: none of it is needed for the first frame.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textual.message import Message
from textual.message_pump import MessagePump
from textual.worker import get_current_worker

from engine.defects import keep_trace
from engine.errors import EngineError, SettingsError

if TYPE_CHECKING:
    from engine.findings import Finding
    from engine.machine import GpuSample, Machine
    from engine.plan.plan import Plan
    from engine.presets import Preset
    from engine.run.directory import RunDirectory
    from engine.settings import Settings


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a call did not do what it was asked to."""

    message: str
    hint: str = ""


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
        return Failure(error.message, error.hint)
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


class Services:
    """The engine as the screens use it. Every method may raise EngineError or OSError."""

    described: Path | None = None
    """A machine file to plan for in place of this machine."""

    def presets(self) -> tuple[Preset, ...]:
        from engine.presets import all_presets

        return all_presets()

    def save_preset(self, name: str, settings: Settings) -> Path:
        from gptoss_tui.saved_presets import save

        return save(name, settings)

    def machine(self) -> Machine:
        if self.described is not None:
            from engine.machine_file import load

            return load(self.described)
        from engine.machine import detect

        return detect()

    def sample_gpus(self) -> tuple[GpuSample, ...]:
        from engine.machine import sample_gpus

        return sample_gpus()

    def plan(self, settings: Settings, machine: Machine) -> Plan:
        from engine.plan.planner import make_plan

        return make_plan(settings, machine)

    def check(self, settings: Settings, plan: Plan, machine: Machine) -> tuple[Finding, ...]:
        from engine.cli.starting import check

        return check(settings, plan, machine)

    def versions(self) -> tuple[Finding, ...]:
        from engine.versions import check

        return check()

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

    def resume(self, run: RunDirectory) -> None:
        from engine.run.start import resume

        resume(run)

    def stop(self, run: RunDirectory) -> None:
        from engine.run.start import stop

        stop(run)

    def kill(self, run: RunDirectory) -> None:
        from engine.run.start import kill

        kill(run)

    def runs_root(self) -> Path:
        from engine.paths import runs_root

        return runs_root()
