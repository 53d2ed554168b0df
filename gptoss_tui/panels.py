"""What a station shows below its fields: which facts, how they are looked up, what they depend on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gptoss_tui import data_panel, model_panel
from gptoss_tui.widgets.canvas import Row

if TYPE_CHECKING:
    from engine.machine import Machine
    from engine.plan.plan import Plan
    from engine.settings import Settings
    from gptoss_tui.bridge import Services


@dataclass(frozen=True, slots=True, kw_only=True)
class Basis:
    """What a panel may look at, and how."""

    services: Services
    settings: Settings
    plan: Plan | None
    machine: Machine | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """The facts of one station."""

    title: str
    look: Callable[[Basis], Any]
    """Slow; called in a thread."""
    rows: Callable[[Any, Basis, int], list[Row]]
    """The rows of what `look` found and of what follows from it, for a width."""
    depends: Callable[[Basis], object]
    """Nothing is looked up again while this stays the same. The plan is not in it: both are made at once."""


def model_of(basis: Basis) -> object:
    """What the facts about a model depend on."""
    chosen = basis.settings
    return chosen.model, chosen.training.goal, chosen.output.directory, basis.machine is None


def _model_rows(facts: model_panel.ModelFacts, basis: Basis, width: int) -> list[Row]:
    needed = model_panel.needs(basis.settings, basis.plan, basis.machine, facts.model)
    return model_panel.rows(facts, needed, width)


def data_of(basis: Basis) -> object:
    """What the data depends on: also on what of a chat is learnt, and on the tokenizer."""
    chosen = basis.settings
    return chosen.data, chosen.model, chosen.finetune, chosen.training.goal


PANELS = {
    "model": Panel(
        title="what becomes of it",
        look=lambda basis: basis.services.model_facts(basis.settings, basis.machine),
        rows=_model_rows,
        depends=model_of,
    ),
    "data": Panel(
        title="the first records",
        look=lambda basis: basis.services.preview(basis.settings),
        rows=lambda preview, _, width: data_panel.rows(preview, width),
        depends=data_of,
    ),
}
