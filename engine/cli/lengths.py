"""`--length 2B-tokens`: a training's length in any unit, made iterations at entry."""

from __future__ import annotations

from collections.abc import Callable

from engine import length
from engine.cli import output
from engine.data.amount import trained_tokens
from engine.finetune_settings import GOALS
from engine.machine import Machine
from engine.plan.planner import make_plan
from engine.settings import Settings


def apply(settings: Settings, machine: Callable[[], Machine], text: str) -> Settings:
    """`settings` with the length that was asked for, saying what it became; as they are for an empty text.

    Raises SettingsError for a length that cannot be converted, PlanError where hours need a plan that cannot be made.
    """
    if not text:
        return settings
    amount = length.parse(text)
    estimate = make_plan(settings, machine()).estimate if amount.unit == "hours" else None
    # Epochs of chats stay epochs: the prepare step counts them.
    is_counted = amount.unit == "epochs" and settings.training.goal not in GOALS
    pace = length.pace_of(settings, estimate, trained_tokens(settings) if is_counted else None)
    values = length.as_settings(amount, settings, pace)
    made = settings.with_values(values)
    output.say(f"length: {text} = " + ", ".join(f"{key} {value:,}" for key, value in values.items()))
    if "training.iterations" in values:
        output.say(f"        {length.describe(length.length_of(made.training.iterations, pace))}")
    return made
