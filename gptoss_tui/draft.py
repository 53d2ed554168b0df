"""The settings being made: what was typed, what of it is valid, and how to go back. Knows no widget.

Nothing typed is ever lost: a text that is not a value yet is kept as it stands beside the
settings, which hold the last valid value.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from engine import secrets
from engine.errors import EngineError
from engine.options import Option, Problem, Value, parse, text_of
from engine.paths import make_own, state_root
from engine.settings import OPTIONS, Settings, merge, to_tables

LONGEST_TEXT = 4096
"""Longest text a field takes, in characters: the length of the longest path."""
_UNDO_STEPS = 200

type _Step = dict[str, str]
"""The texts that a step replaced, by option; empty where a step was ended."""


class Draft:
    """Settings over a starting point, edited value by value."""

    def __init__(self, base: Settings | None = None, name: str = "") -> None:
        self.base = base or Settings()
        self.name = name
        """The preset it started from; empty for the defaults."""
        self.settings = self.base
        self.problems: dict[str, Problem] = {}
        self.length_text = ""
        """What was typed as the length in another unit; as far as it is one it stands in the iterations."""
        self._texts: dict[str, str] = {}
        self._past: list[_Step] = []
        self._future: list[_Step] = []

    def text(self, key: str) -> str:
        """What stands in the field of an option."""
        typed = self._texts.get(key)
        return text_of(self.settings.value(key)) if typed is None else typed

    def set(self, key: str, text: str) -> Problem | None:
        """Take what was typed for an option; returns the problem with it, if any."""
        self.set_all({key: text})
        return self.problems.get(key)

    def set_all(self, texts: Mapping[str, str]) -> None:
        """Take what was typed, or what it means, for several options at once."""
        texts = {key: text[:LONGEST_TEXT] for key, text in texts.items()}
        before = {key: self.text(key) for key in texts}
        if texts == before:
            return
        # Letters typed one after the other in the same place are one step back.
        if not (self._past and list(self._past[-1]) == list(texts)):
            self._remember(before)
        self._future.clear()
        for key, text in texts.items():
            self._put(key, text)

    def follow(self, key: str, value: Value) -> None:
        """Take a value that follows from others: undo brings back those, and with them this."""
        self._put(key, text_of(value))

    def adopt(self, settings: Settings) -> int:
        """Take every value of `settings` in one step that undo takes back; returns how many were others."""
        wanted = {key: text_of(settings.value(key)) for key in OPTIONS}
        before = {key: self.text(key) for key, text in wanted.items() if self.text(key) != text}
        if before:
            self.close_step()
            self._remember(before)
            self._future.clear()
            for key in before:
                self._put(key, wanted[key])
        return len(before)

    def close_step(self) -> None:
        """End the present undo step, as when another field gets the focus."""
        if self._past and self._past[-1]:
            self._past.append({})

    def undo(self) -> str | None:
        """Take back the last step; returns the option it was about."""
        return self._move(self._past, self._future)

    def redo(self) -> str | None:
        """Make the last undone step again; returns the option it was about."""
        return self._move(self._future, self._past)

    @property
    def can_undo(self) -> bool:
        return any(self._past)

    @property
    def can_redo(self) -> bool:
        return any(self._future)

    def changed(self) -> dict[str, Value]:
        """The valid values that differ from the starting point."""
        return {key: self.settings.value(key) for key in OPTIONS if self.settings.value(key) != self.base.value(key)}

    @property
    def is_changed(self) -> bool:
        return bool(self.changed() or self.problems)

    def save(self, path: Path | None = None) -> None:
        """Keep the draft for the next start. Raises OSError, and SettingsError for one that holds a secret."""
        path = path or draft_path()
        make_own(path.parent)
        value = {
            "name": self.name,
            "base": to_tables(self.base),
            "settings": to_tables(self.settings),
            "texts": {key: self._texts[key] for key in self.problems},
            "length": self.length_text,
        }
        # Replaced whole, but not forced to the disk: this happens at every key press.
        new = path.with_suffix(".new")
        text = json.dumps(value)
        secrets.refuse(text, "the draft")
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
        new.replace(path)

    @classmethod
    def load(cls, path: Path | None = None) -> Draft | None:
        """The draft kept last; None when there is none, or it cannot be read any more."""
        try:
            value = json.loads((path or draft_path()).read_text(encoding="utf-8"))
            draft = cls(merge(Settings(), value["base"]), str(value["name"]))
            draft.settings = merge(Settings(), value["settings"])
            for key, text in value["texts"].items():
                if key in OPTIONS:
                    draft._put(key, str(text))
            draft.length_text = str(value.get("length", ""))[:LONGEST_TEXT]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, EngineError):
            return None
        return draft

    @staticmethod
    def forget(path: Path | None = None) -> None:
        """Remove the kept draft."""
        (path or draft_path()).unlink(missing_ok=True)

    def _remember(self, before: _Step) -> None:
        self._past = [*self._past, before][-_UNDO_STEPS:]

    def _put(self, key: str, text: str) -> Problem | None:
        result = parse(OPTIONS[key], text)
        self._texts[key] = text
        if isinstance(result, Problem):
            self.problems[key] = result
            return result
        self.problems.pop(key, None)
        self.settings = self.settings.with_values({key: result})
        return None

    def _move(self, source: list[_Step], target: list[_Step]) -> str | None:
        while source:
            if step := source.pop():
                target.append({key: self.text(key) for key in step})
                for key, text in step.items():
                    self._put(key, text)
                return next(iter(step))
        return None


def draft_path() -> Path:
    return state_root() / "draft.json"


def option_named_in(text: str) -> Option | None:
    """The first option whose key appears in a message, or None."""
    places = {key: text.find(key) for key in OPTIONS}
    named = [key for key, place in places.items() if place >= 0]
    return OPTIONS[min(named, key=lambda key: (places[key], -len(key)))] if named else None


def explanation(option: Option) -> Mapping[str, str]:
    """Everything the declaration says about an option, by heading."""
    allowed = option.range_text + (f" {option.unit}" if option.unit else "")
    return {
        "help": option.help,
        "why": option.why,
        "allowed": f"Takes {allowed}; {text_of(option.default) or 'empty'} by default.",
        "native": f"In Megatron: {option.native}." if option.native else "",
    }
