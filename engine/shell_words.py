"""The words of a shell script's commands, read without running anything.

Follows plain assignments, arrays and the first branch of each `if`; loops, functions, `case` and `else` are not
followed, and what the shell would compute (`$(…)`, backticks) stays unknown. Enough for launch scripts.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field

from engine.errors import SettingsError

_SEPARATORS = frozenset("\n;|&")
_OPENERS = {"while": "done", "until": "done", "for": "done", "select": "done", "case": "esac", "{": "}"}
"""Words that begin what is not followed, and the word that ends it."""
_ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(\+?)=(.*)", re.DOTALL)
_REFERENCE = re.compile(r"\$(?:\{([A-Za-z_][A-Za-z0-9_]*)(?:\[[@*]\])?(?::?-([^{}$`]*))?\}|([A-Za-z_][A-Za-z0-9_]*))")
_MOST_LETTERS = 1_000_000
"""That variables may be filled in with; some lines of `A=$A$A` would fill any memory."""
_PRODUCT = re.compile(r"\s*\$?\{?\w+\}?(\s*\*\s*\$?\{?\w+\}?)*\s*")


@dataclass(frozen=True, slots=True)
class Word:
    """One word of a command."""

    text: str
    """With every known variable filled in."""
    is_known: bool = True
    """False when the shell would have to run to know it."""


@dataclass(slots=True)
class Script:
    """What a script sets and starts, as far as it can be read."""

    commands: list[list[Word]] = field(default_factory=list)
    exported: dict[str, Word] = field(default_factory=dict)
    """Variables that the started programs see."""
    skips: set[str] = field(default_factory=set)
    """Words of the shell whose blocks were not followed."""


def read(text: str) -> Script:
    """The commands of `text`. Raises SettingsError when it is no shell script."""
    lexer = shlex.shlex(_without_comments(text), posix=True, punctuation_chars="();<>|&\n")
    lexer.whitespace, lexer.commenters, lexer.whitespace_split = " \t\r\f\v", "", True
    try:
        return _Reader(list(lexer)).read()
    except ValueError as error:
        raise SettingsError(f"it cannot be read as a shell script: {error}", "close the quote") from error


def words_of(text: str) -> list[str]:
    """One line as words. Raises ValueError for an open quote."""
    return shlex.split(text, comments=True)


def _without_comments(text: str) -> str:
    """`text` without comments and with continued lines joined; an apostrophe in a comment opens no quote."""
    kept: list[str] = []
    quote, position = "", 0
    while position < len(text):
        letter = text[position]
        if letter == "\\" and quote != "'":
            pair = text[position : position + 2]
            kept.append("" if pair == "\\\n" else pair)
            position += 2
            continue
        if letter == "#" and not quote and (not kept or kept[-1][-1:] in "\n \t;(" or not kept[-1]):
            end = text.find("\n", position)
            position = len(text) if end < 0 else end
            continue
        if (
            letter in "012"
            and not quote
            and kept
            and kept[-1] in (" ", "\t")
            and text[position + 1 : position + 2] in ("<", ">")
        ):
            position += 1  # the number of a stream that is redirected, no word
            continue
        if letter in "'\"" and quote in ("", letter):
            quote = "" if quote else letter
        kept.append(letter)
        position += 1
    return "".join(kept)


class _Reader:
    def __init__(self, tokens: list[str]) -> None:
        self._tokens = [part for token in tokens for part in _split_operators(token)]
        self._position = 0
        self._variables: dict[str, Word] = {}
        self._arrays: dict[str, list[Word]] = {}
        self._script = Script()
        self._letters = 0

    def read(self) -> Script:
        for command in self._commands():
            self._take(command)
        return self._script

    def _commands(self) -> Iterator[list[str]]:
        """Raw commands at the top level and in first branches, arrays and redirections taken out."""
        command: list[str] = []
        while (token := self._next()) is not None:
            if token in _SEPARATORS:
                if command:
                    yield command
                command = []
            elif not command and self._is_control(token):
                continue
            elif token == "(":
                self._parenthesis(command)
            elif set(token) <= set("<>&"):
                self._next()  # where it goes to or comes from
            elif token != ")":
                command.append(token)
        if command:
            yield command

    def _is_control(self, token: str) -> bool:
        """True for a word of the shell itself at the start of a command; goes past blocks that are not followed."""
        if token in ("else", "elif"):
            self._skip("if", "fi", token)
        elif token in _OPENERS:
            self._skip(token, _OPENERS[token], token)
        else:
            return token in ("then", "do", "fi", "if", "!", "time")
        return True

    def _next(self) -> str | None:
        if self._position >= len(self._tokens):
            return None
        self._position += 1
        return self._tokens[self._position - 1]

    def _skip(self, opener: str, end: str, what: str) -> None:
        """Go past the matching `end`, over nested blocks that end the same way."""
        openers = {word for word, its_end in _OPENERS.items() if its_end == end} | {opener}
        self._script.skips.add(what)
        depth = 1
        while depth and (token := self._next()) is not None:
            depth += (token in openers) - (token == end)

    def _parenthesis(self, command: list[str]) -> None:
        """An array, a computed value, a function or a subshell."""
        inner: list[str] = []
        depth = 1
        while (token := self._next()) is not None:
            depth += (token == "(") - (token == ")")
            if not depth:
                break
            inner.append(token)
        last = command[-1] if command else ""
        if (match := _ASSIGNMENT.fullmatch(last)) and not match[3]:
            words = [word for token in inner if token not in _SEPARATORS for word in self._expand(token)]
            old = self._arrays.get(match[1], []) if match[2] else []
            self._arrays[match[1]] = [*old, *words]
            command.pop()
        elif last.endswith("$"):
            command[-1] = last[:-1] + self._computed(inner)

    def _computed(self, inner: list[str]) -> str:
        """`$((A * B))` as a number where both are known; anything else as a mark of the unknown."""
        text = "".join(inner[1:-1]) if inner[:1] == ["("] and inner[-1:] == [")"] else ""
        if not _PRODUCT.fullmatch(text):
            return "`"
        product = 1
        for factor in text.split("*"):
            name = factor.strip().strip("${}")
            value = self._variables.get(name, Word(name))
            if not (value.is_known and value.text.isdigit()):
                return "`"
            product *= int(value.text)
        return str(product)

    def _take(self, command: list[str]) -> None:
        exports = command[0] in ("export", "declare", "local", "readonly")
        words = command[1:] if exports else command
        while words and (match := _ASSIGNMENT.fullmatch(words[0])):
            value = self._joined(match[3])
            if match[2] and (old := self._variables.get(match[1])):
                value = Word(old.text + value.text, old.is_known and value.is_known)
            self._variables[match[1]] = value
            if exports or len(words) > 1:
                self._script.exported[match[1]] = value
            words = words[1:]
        if words and not exports:
            self._script.commands.append([word for token in words for word in self._expand(token)])

    def _expand(self, token: str) -> list[Word]:
        """A token as the words that it becomes."""
        if (match := _REFERENCE.fullmatch(token)) and (name := match[1] or match[3]) in self._arrays:
            self._count(sum(len(word.text) + 1 for word in self._arrays[name]))
            return list(self._arrays[name])
        word = self._joined(token)
        if word.text.startswith("--") and " " in word.text:
            # "--vocab-size 128256" in an array that is expanded without quotes.
            return [Word(part, not set("$`") & set(part)) for part in word.text.replace("'", "").split()]
        return [word]

    def _joined(self, token: str) -> Word:
        """A token with its variables filled in."""
        is_known = "`" not in token and "$(" not in token

        def fill(match: re.Match[str]) -> str:
            nonlocal is_known
            value = self._variables.get(match[1] or match[3])
            if value is None and match[2] is not None:
                value = Word(match[2])
            if value is None or not value.is_known:
                is_known = False
                return match[0]
            self._count(len(value.text))
            return value.text

        text = _REFERENCE.sub(fill, token)
        return Word(text, is_known and "$" not in text)

    def _count(self, letters: int) -> None:
        """Take note of letters that are filled in. Raises SettingsError for too many."""
        self._letters += letters
        if self._letters > _MOST_LETTERS:
            raise SettingsError(
                f"its variables grow to more than {_MOST_LETTERS:,} letters",
                "give the command line that starts the training",
            )


def _split_operators(token: str) -> list[str]:
    """shlex hands out runs such as `))` and `;\\n` as one token."""
    if token and set(token) <= set("();|&\n"):
        return list(token)
    return [token]
