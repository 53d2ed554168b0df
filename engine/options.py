"""How a settable value is declared, checked and parsed. Knows no particular value.

One declaration (`option(...)` on a dataclass field) feeds the form, the prompts,
`--set key=value`, the docs page and the validation.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, get_type_hints

from engine.number_text import read_number

type Value = bool | int | float | str

_LONGEST_NAME = 200
_HUGE = 10**300
"""About where a whole number is none of Python's floats any more."""
_TRUE, _FALSE = {"true", "yes", "on", "1"}, {"false", "no", "off", "0"}
_TYPE_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One settable value: what it is, what it may be, and why anyone would care."""

    key: str
    """`table.name`, for example `training.learning_rate`."""
    kind: type
    """bool, int, float or str."""
    default: Value
    help: str
    """One sentence: what it is."""
    why: str
    """One or two sentences: why it matters, what happens when it is wrong."""
    unit: str = ""
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    native: str = ""
    """The name of the setting in Megatron or Megatron-Bridge, where it has one."""
    advanced: bool = False
    is_path: bool = False
    """A file or directory; a relative one counts from where the person is."""

    @property
    def table(self) -> str:
        return self.key.partition(".")[0]

    @property
    def name(self) -> str:
        return self.key.partition(".")[2]

    @property
    def range_text(self) -> str:
        """The legal values in words, for help and error texts."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        if self.minimum is not None and self.maximum is not None:
            return f"{_plain(self.minimum)} to {_plain(self.maximum)}"
        if self.minimum is not None:
            return f"{_plain(self.minimum)} or more"
        return _TYPE_NAMES[self.kind]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One value that cannot be used: which, why, and what to try."""

    key: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.key}: {self.message}" + (f" ({self.hint})" if self.hint else "")


def option(
    default: Value,
    *,
    help: str,
    why: str = "",
    unit: str = "",
    choices: tuple[str, ...] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    native: str = "",
    advanced: bool = False,
    is_path: bool = False,
) -> Any:
    """Declare a settable value; the arguments are those of `Option`."""
    facts = {
        "help": help,
        "why": why,
        "unit": unit,
        "choices": choices,
        "minimum": minimum,
        "maximum": maximum,
        "native": native,
        "advanced": advanced,
        "is_path": is_path,
    }
    return field(default=default, metadata=facts)


def options_of(table: str, owner: type) -> tuple[Option, ...]:
    """The options that the dataclass `owner` declares, as `table.name`."""
    types = get_type_hints(owner)
    found = []
    for item in fields(owner):
        if item.default is MISSING:
            raise TypeError(f"{owner.__name__}.{item.name} has no default")
        found.append(Option(key=f"{table}.{item.name}", kind=types[item.name], default=item.default, **item.metadata))
    return tuple(found)


def parse(option: Option, text: str) -> Value | Problem:
    """Read what a person typed for `option`; whitespace around it does not count."""
    text = text.strip()
    if option.kind is bool:
        if text.lower() in _TRUE | _FALSE:
            return text.lower() in _TRUE
        return _problem(option, text, "type true or false")
    if option.kind is str:
        return check(option, text)
    number = read_number(text, option.unit)
    if number is None or (option.kind is int and not isinstance(number, int)):
        return _problem(option, text, f"type {_TYPE_NAMES[option.kind]}")
    return check(option, number)


def check(option: Option, value: object) -> Value | Problem:
    """`value` as `option` may hold it, or the problem with it."""
    # bool is an int to Python and not to a person.
    if option.kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < _HUGE else math.inf
    if type(value) is not option.kind:
        return _problem(option, value, f"give {_TYPE_NAMES[option.kind]}")
    if isinstance(value, str):
        return _check_text(option, value)
    if isinstance(value, float) and not math.isfinite(value):
        return _problem(option, value, "give a finite number")
    if not isinstance(value, bool):
        assert isinstance(value, (int, float))
        low, high = option.minimum, option.maximum
        if (low is not None and value < low) or (high is not None and value > high):
            return _problem(option, value, f"give {option.range_text}")
    return value


def text_of(value: Value) -> str:
    """A value as a person would type it: `yes`, `100`, `1e-5`."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        # repr writes 1e-05; %g keeps the digits that matter of everything people type.
        text = repr(value)
        mantissa, e, exponent = text.partition("e")
        return f"{mantissa}e{int(exponent)}" if e else text.removesuffix(".0")
    return str(value)


def suggest(word: str, known: list[str]) -> str:
    """`did you mean X?`, or an empty string when nothing is near."""
    if len(word) > _LONGEST_NAME:
        return ""  # comparing a pasted file would take seconds
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"did you mean {near[0]}?" if near else ""


def _check_text(option: Option, value: str) -> str | Problem:
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in value):
        return _problem(option, value, "control characters and line breaks are not allowed")
    if option.choices and value not in option.choices:
        return _problem(option, value, suggest(value, list(option.choices)) or f"give {option.range_text}")
    return value


def _plain(number: float) -> str:
    """A limit as people write it: 100,000,000 and not 1e+08."""
    if not float(number).is_integer():
        return f"{number:g}"
    return f"{int(number):,}" if abs(number) >= 10_000 else str(int(number))


def _problem(option: Option, value: object, hint: str) -> Problem:
    shown = repr(value)
    if len(shown) > 60:
        shown = shown[:57] + "…" + shown[0]
    allowed = option.range_text + (f" {option.unit}" if option.unit else "")
    return Problem(key=option.key, message=f"{shown} is not allowed; it takes {allowed}", hint=hint)
