"""argparse with our manner of refusing: what was typed, what is meant perhaps, where to read on."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from engine.errors import SettingsError


class Parser(argparse.ArgumentParser):
    """A parser whose refusals are SettingsErrors, so that they look and end like all others."""

    def __init__(self, **facts: Any) -> None:
        # A shortened option in somebody's script would break when a longer one comes.
        super().__init__(**{"allow_abbrev": False, **facts})

    def error(self, message: str) -> NoReturn:
        """Raise what argparse found wrong."""
        message = message.removeprefix("argument ").replace(": '", " '", 1)
        name = message.partition(":")[0]
        hint = f"one that begins with - is written {name}=VALUE" if "expected one argument" in message else ""
        raise SettingsError(message, hint or self._where())

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does; refuses what is left over where it was typed, to know the options that are near."""
        found, rest = super().parse_known_args(args, namespace)
        if rest:
            self._refuse_rest(rest)
        return found, rest

    def _refuse_rest(self, rest: Sequence[str]) -> NoReturn:
        words = [word for word in rest if word.startswith("-")] or list(rest)
        word = words[0].partition("=")[0]
        known = [name for action in self._actions for name in action.option_strings]
        what = "has no option" if word.startswith("-") else "takes no further word"
        near = _suggest(word, known) if word.startswith("-") else ""
        raise SettingsError(f"{self.prog} {what} {_short(word)}", near or self._where())

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        choices = [str(choice) for choice in action.choices if choice]
        if isinstance(action, argparse._SubParsersAction):
            near = _suggest(str(value), choices) or f"there are: {', '.join(choices)}"
            raise SettingsError(f"there is no {str(action.metavar).lower()} {_short(str(value))}", near)
        name = action.option_strings[0] if action.option_strings else action.dest
        raise SettingsError(
            f"{name} {_short(str(value))} is not allowed; it takes {', '.join(choices)}",
            _suggest(str(value), choices) or self._where(),
        )

    def _where(self) -> str:
        return f"see: {self.prog} --help"


def _suggest(word: str, known: list[str]) -> str:
    from engine.options import suggest  # only for who mistyped: `--help` has no time for it

    return suggest(word, known)


def _short(word: str) -> str:
    return repr(word if len(word) <= 60 else word[:60] + "…")
