"""The length of a training in iterations, tokens, samples, epochs or hours: one truth, five ways to say it.

Settings keep `training.iterations`; the other units follow from the batch, the data and the plan's speed. Pure: what
the data holds and how fast the plan is comes from outside.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.errors import SettingsError
from engine.finetune_settings import GOALS
from engine.number_text import PREFIXES, read_number
from engine.options import Value
from engine.settings import OPTIONS, Settings

UNITS = ("iterations", "tokens", "samples", "epochs", "hours")
_WORDS = {
    "": ("iterations", 1.0),
    "iterations": ("iterations", 1.0),
    "iteration": ("iterations", 1.0),
    "iters": ("iterations", 1.0),
    "tokens": ("tokens", 1.0),
    "token": ("tokens", 1.0),
    "samples": ("samples", 1.0),
    "sample": ("samples", 1.0),
    "epochs": ("epochs", 1.0),
    "epoch": ("epochs", 1.0),
    "hours": ("hours", 1.0),
    "hour": ("hours", 1.0),
    "h": ("hours", 1.0),
    "minutes": ("hours", 1 / 60),
    "minute": ("hours", 1 / 60),
    "min": ("hours", 1 / 60),
    "days": ("hours", 24.0),
    "day": ("hours", 24.0),
    "d": ("hours", 24.0),
}
"""What people type as a unit: ours, and how many of ours it is."""
_AMOUNT = re.compile(r"([0-9][0-9_,]*(?:\.[0-9]+)?(?:e[+-]?[0-9]{1,3})?)[\s-]*([a-z]*)[\s-]*([a-z]*)", re.IGNORECASE)
_EXAMPLE = "write 2B-tokens, 500k-samples, 3-epochs, 10h, or a number of iterations"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """What one iteration is worth."""

    global_batch: int
    sequence_length: int
    data_tokens: float | None = None
    """Tokens of the data that is trained on; None when that is not known."""
    iteration_s: float | None = None
    """The plan's prediction; None when there is none, as on the CPU."""
    fills_batches: bool = False
    """True where the last batch of every epoch is filled with rows that do not count: chats on GPUs."""

    @property
    def tokens(self) -> int:
        """Tokens of one iteration, padding included."""
        return self.global_batch * self.sequence_length

    @property
    def iteration_epochs(self) -> float | None:
        """The part of an epoch that one iteration is; None when the data is not known."""
        if not self.data_tokens:
            return None
        return 1 / math.ceil(self.data_tokens / self.tokens) if self.fills_batches else self.tokens / self.data_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Length:
    """The same training in every unit; None where a unit cannot be known."""

    iterations: int
    tokens: int
    samples: int
    epochs: float | None
    hours: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Amount:
    """What a person asked for."""

    number: float
    unit: str
    """One of UNITS."""


def pace_of(
    settings: Settings,
    estimate: Mapping[str, Any] | None = None,
    data_tokens: float | None = None,
    *,
    is_packed: bool = False,
) -> Pace:
    """The pace of a training; `estimate` is the plan's, `is_packed` says that chats share samples, as on GPUs."""
    speed = (estimate or {}).get("throughput") or {}
    return Pace(
        global_batch=settings.training.global_batch,
        sequence_length=settings.training.sequence_length,
        data_tokens=data_tokens,
        iteration_s=speed.get("iteration_s"),
        fills_batches=is_packed and settings.training.goal in GOALS,
    )


def parse(text: str) -> Amount:
    """What was typed: `2B-tokens`, `3 epochs`, `10h`, `500`. Raises SettingsError."""
    match = _AMOUNT.fullmatch(text.strip())
    number = (read_number(match[1]) if match else None) or math.nan
    found = _unit(match[2].lower(), match[3].lower()) if match else None
    unit, factor = found or ("", math.nan)
    if not (0 < number * factor < math.inf):
        raise SettingsError(f"{text[:60]!r} is no length of a training", _EXAMPLE)
    return Amount(number=number * factor, unit=unit)


def iterations_of(amount: Amount, pace: Pace) -> int:
    """The iterations that an amount comes to: at least the data asked for, at most the time.

    Raises SettingsError when the unit cannot be converted, or the number is one that no training can have.
    """
    iterations = _whole(amount.number / _per_iteration(amount, pace), is_limit=amount.unit == "hours")
    option = OPTIONS["training.iterations"]
    if not (option.minimum or 1) <= iterations <= (option.maximum or math.inf):
        raise SettingsError(
            f"{amount.number:g} {amount.unit} are {iterations:,} iterations; a training has {option.range_text}",
            f"one iteration is {pace.tokens:,} tokens"
            + (f" and takes {pace.iteration_s:.2f} s" if pace.iteration_s else ""),
        )
    return iterations


def as_settings(amount: Amount, settings: Settings, pace: Pace) -> dict[str, Value]:
    """The settings that make a training so long. Raises SettingsError.

    Epochs of chats are kept as such: the prepare step counts the chats and sets the iterations; until then they are
    what `pace` makes of them, where it knows the data.
    """
    if amount.unit == "epochs" and settings.training.goal in GOALS:
        known = {"training.iterations": iterations_of(amount, pace)} if pace.data_tokens else {}
        return {**known, "finetune.epochs": amount.number}
    values: dict[str, Value] = {"training.iterations": iterations_of(amount, pace)}
    # It would come before the iterations.
    return {**values, "finetune.epochs": 0.0} if settings.finetune.epochs else values


def followed(settings: Settings, pace: Pace) -> int | None:
    """The iterations that `finetune.epochs` come to; None where it decides nothing, or cannot be told."""
    epochs = settings.finetune.epochs
    if settings.training.goal not in GOALS or not epochs or not pace.data_tokens:
        return None
    try:
        return iterations_of(Amount(number=epochs, unit="epochs"), pace)
    except SettingsError:
        return None


def length_of(iterations: int, pace: Pace) -> Length:
    """A number of iterations in every unit."""
    tokens = iterations * pace.tokens
    return Length(
        iterations=iterations,
        tokens=tokens,
        samples=iterations * pace.global_batch,
        epochs=iterations * pace.iteration_epochs if pace.iteration_epochs else None,
        hours=iterations * pace.iteration_s / 3600 if pace.iteration_s else None,
    )


def describe(length: Length) -> str:
    """One line: `500 iterations = 262.1M tokens = 64,000 samples = 1.3 epochs = 2.4 h`."""
    parts = [f"{length.iterations:,} iterations", f"{short(length.tokens)} tokens", f"{length.samples:,} samples"]
    if length.epochs is not None:
        parts.append(f"{length.epochs:,.{2 if length.epochs < 100 else 0}f} epochs")
    if length.hours is not None:
        parts.append(f"{length.hours:,.1f} h" if length.hours >= 1 else f"{length.hours * 60:.0f} min")
    return " = ".join(parts)


def short(count: float) -> str:
    """A large count as people say it: 2.1B, 300M, 512."""
    for letter, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return f"{count:g}"


def _unit(first: str, second: str) -> tuple[str, float] | None:
    """A unit, or a prefix before one, together or apart: `h`, `b tokens`, `btokens`."""
    if not second and first in _WORDS:
        return _WORDS[first]
    word = second or first[1:]
    prefix = first if second else first[:1]
    if prefix not in PREFIXES or word not in _WORDS or not word:
        return None
    unit, factor = _WORDS[word]
    return unit, factor * PREFIXES[prefix]


def _per_iteration(amount: Amount, pace: Pace) -> float:
    """How much of the amount's unit one iteration is."""
    if amount.unit == "epochs":
        if not pace.iteration_epochs:
            raise SettingsError(
                f"{amount.number:g} epochs: how many tokens the data has is not known",
                "prepare it first (gptoss data prepare), or give the length in tokens or iterations",
            )
        return pace.iteration_epochs
    if amount.unit == "hours":
        if not pace.iteration_s:
            raise SettingsError(
                f"{amount.number:g} hours: the plan predicts no speed for this machine",
                "give the length in tokens or iterations",
            )
        return pace.iteration_s / 3600
    return {"iterations": 1, "samples": pace.global_batch, "tokens": pace.tokens}[amount.unit]


def _whole(iterations: float, *, is_limit: bool) -> int:
    # Not to let 2.0000000001 become 3: the quotient of two floats is off by its last bit.
    nearest = round(iterations)
    if abs(iterations - nearest) <= 1e-9 * max(1.0, iterations):
        return nearest
    return math.floor(iterations) if is_limit else math.ceil(iterations)
