"""What going on with a run would do: which settings change, whether they may, which steps are carried out, in words.

Judges a resume as a whole and writes nothing; `start.resume` carries it out, a dry run only tells it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

from engine import presets, settings_file
from engine.checkpoints import training
from engine.errors import PreflightError, RunError
from engine.findings import Finding
from engine.local_paths import absolute_values
from engine.machine import Machine, detect
from engine.monitor.cures import EDITED
from engine.options import Value
from engine.paths import file_text
from engine.plan import schedule
from engine.plan.plan import Plan
from engine.plan.planner import make_plan
from engine.run import launch_checks, rotation
from engine.run.directory import RunDirectory
from engine.run.state import State, Status
from engine.settings import Settings

_CHANGEABLE = (
    "training.iterations",
    "training.checkpoint_interval",
    "training.evaluation_interval",
    "training.evaluation_iterations",
    "training.patience",
    "launch.",
    "output.keep_checkpoints",
    *EDITED,
)
"""Settings that may change within a run: how far, how often and how, and what cures a failure."""

_PLANNED = ("layout.", "machine.", "training.micro_batch", "training.global_batch", "training.recompute")
"""Those that the plan was made from."""

_SAVED_SCHEDULE = re.compile(r"^\s+lr_decay_iters:\s*(\d+)\s*$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumption:
    """A resume that may be carried out."""

    settings: Settings
    plan: Plan
    changed: Mapping[str, tuple[Value, Value]]
    """Old and new value of each setting that differs."""
    has_new_plan: bool
    steps: tuple[str, ...]
    """The steps that are carried out, in order; those among them that are finished, again."""
    told: tuple[str, ...]
    """What it means, a sentence each."""

    def state(self, before: State) -> State:
        """The state from which the supervisor sets out."""
        steps = tuple(
            replace(step, status=Status.PENDING, message="") if step.name in self.steps else step
            for step in before.steps
        )
        return replace(before, status=Status.PENDING, steps=steps, message="", job=None, ended=None)


def judge(
    run: RunDirectory,
    state: State,
    values: Mapping[str, object] | None = None,
    *,
    machine: Machine | None = None,
    force: bool = False,
) -> Resumption:
    """What resuming `run`, which is in `state`, with changed settings does.

    Args:
        values: `table.name` keys; relative paths count from the working directory.
        machine: where it is planned again if a change asks for that; this one when None.
        force: overrides the checks that may be wrong.

    Raises RunError when the run has nothing left to do or a change would make another run of it, SettingsError and
    PlanError for values that cannot be, PreflightError when a check refuses.
    """
    wanted = dict(values or {})
    for key in wanted:
        if not key.startswith(_CHANGEABLE):
            raise RunError(f"{key} cannot change within a run", "start another run: gptoss run PRESET --set ...")
    old = settings_file.load(run.settings)
    # Checked first: what is no value of the setting is no path either.
    checked = old.with_values(wanted)
    new = old.with_values(absolute_values({key: checked.value(key) for key in wanted}))
    new, of_schedule = schedule.keep(old, new, *_trained(run, old))
    changed = presets.differences(old, new)
    if "launch.route" in changed and (newest := rotation.newest_whole(run, old)) is not None:
        # Each would take the other's checkpoints for damaged ones, and put them aside.
        raise RunError(
            f"launch.route cannot become {new.launch.route}: the checkpoint of iteration {newest} is of "
            f"{old.launch.route}",
            "start another run: gptoss run PRESET --set ...",
        )
    steps = _steps(state, old, new, changed)
    if not steps:
        raise RunError(f"{run.name} has finished", "prolong it with: --set training.iterations=N")
    # Also for what is so already: a resume that was cut short may have kept the settings and not the plan.
    plan, has_new_plan = _plan(run, state, new, {*changed, *wanted}, machine)
    if changed:
        _refuse((*schedule.check(new.training), *_launch_findings(new, plan, changed)), force=force)
    told = [f"{key}: {_shown(before)} becomes {_shown(after)}" for key, (before, after) in changed.items()]
    told += [of_schedule] if of_schedule else []
    told += [f"it carries out {', '.join(steps)}{_from(run, new) if 'train' in steps else ''}"]
    return Resumption(
        settings=new, plan=plan, changed=changed, has_new_plan=has_new_plan, steps=steps, told=tuple(told)
    )


def _steps(state: State, old: Settings, new: Settings, changed: Mapping[str, object]) -> tuple[str, ...]:
    names = [step.name for step in state.steps]
    open_steps = {step.name for step in state.steps if step.status is not Status.FINISHED}
    if any(key.startswith("data.") for key in changed):
        open_steps |= set(names)
    goes_on = new.training.iterations > old.training.iterations or new.training.patience != old.training.patience
    if goes_on and "train" in names:
        open_steps |= set(names[names.index("train") :])
    return tuple(name for name in names if name in open_steps)


def _plan(
    run: RunDirectory, state: State, new: Settings, keys: Collection[str], machine: Machine | None
) -> tuple[Plan, bool]:
    known = run.read_plan()
    if not any(key.startswith(_PLANNED) for key in keys):
        return known, False
    plan = make_plan(new, machine or detect())
    names = {step.name for step in state.steps}
    return replace(plan, steps=tuple(step for step in plan.steps if step.name in names)), True


def _launch_findings(new: Settings, plan: Plan, changed: Mapping[str, object]) -> Iterator[Finding]:
    if any(key.startswith("launch.") for key in changed):
        yield from launch_checks.check(new, plan)


def _refuse(findings: tuple[Finding, ...], *, force: bool) -> None:
    errors = [found for found in findings if found.severity == "error" and not (force and found.ignorable)]
    if errors:
        more = "".join(f"\n        {found.what}: {found.fix}" for found in errors[1:])
        raise PreflightError(errors[0].what, f"{errors[0].fix}{more}")


def _trained(run: RunDirectory, settings: Settings) -> tuple[int | None, int | None]:
    """The iteration that training goes on from, and over how many the rate falls there, as far as it is known."""
    newest = rotation.newest_whole(run, settings)
    if newest is None:
        return None, None
    try:
        text = file_text(training.directory(run.checkpoints, newest) / "run_config.yaml")
    except (OSError, UnicodeDecodeError):
        return newest, None  # Megatron-LM writes none
    found = _SAVED_SCHEDULE.search(text)
    return newest, int(found[1]) if found else None


def _from(run: RunDirectory, settings: Settings) -> str:
    newest = rotation.newest_whole(run, settings)
    return "" if newest is None else f"; training goes on from its checkpoint of iteration {newest}"


def _shown(value: Value) -> str:
    return '""' if value == "" else str(value)
