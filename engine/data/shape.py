"""What a record holds: one text, a chat, or a prompt with its answer; and in which columns."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from engine.errors import SettingsError
from engine.options import suggest

TEXT, CHAT, PROMPT = "text", "chat", "prompt"

_TEXT_COLUMNS = ("text", "content", "raw_content", "document", "body", "markdown", "code", "article")
_CHAT_COLUMNS = ("messages", "conversations", "conversation")
_TOOLS = "tools"
_PROMPT_COLUMNS = (
    ("prompt", "completion"), ("prompt", "response"), ("instruction", "output"), ("instruction", "response"),
    ("input", "output"), ("question", "answer"), ("query", "response"),
)  # fmt: skip


class Unusable(Exception):
    """A record that cannot become training data; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How to take the training data out of a record."""

    kind: str = TEXT
    """`text`, `chat` or `prompt`."""
    column: str = "text"
    """The text, the messages, or the prompt."""
    answer: str = ""
    """The column of the answer, for kind `prompt`."""
    tools: str = ""
    """The column with the definitions of tools, for chats that have one; a record may lack it."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are read."""
        return (self.column, self.answer) if self.answer else (self.column,)

    def text(self, record: object) -> str:
        """The text of `record`. Raises Unusable."""
        value = _column(record, self.column)
        if not isinstance(value, str):
            raise Unusable(f"its {self.column!r} is {_kind(value)}, not text")
        return value

    def messages(self, record: object) -> list[Mapping[str, Any]]:
        """The messages of `record`, oldest first. Raises Unusable."""
        if self.kind == PROMPT:
            prompt, answer = _column(record, self.column), _column(record, self.answer)
            if not isinstance(prompt, str) or not isinstance(answer, str):
                raise Unusable(f"its {self.column!r} and {self.answer!r} are not both text")
            return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        value = _column(record, self.column)
        if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
            raise Unusable(f"its {self.column!r} is {_kind(value)}, not a list of messages")
        assert isinstance(record, Mapping)  # _column saw to that
        return _with_tools(value, record.get(self.tools)) if self.tools else value


def detect(records: Iterable[Mapping[str, Any]], where: str, column: str = "") -> Shape:
    """The shape of `records`; `column` overrides the guess (`prompt,completion` for a pair).

    Raises SettingsError when nothing fits, naming the columns there are.
    """
    held = list(records)
    names = list(dict.fromkeys(str(name) for record in held for name in record))
    if column:
        return _chosen(held, names, where, column)
    for name in _CHAT_COLUMNS:
        if any(isinstance(record.get(name), list) for record in held):
            return Shape(kind=CHAT, column=name, tools=_TOOLS if _TOOLS in names else "")
    for name in _TEXT_COLUMNS:
        if any(isinstance(record.get(name), str) for record in held):
            return Shape(column=name)
    for prompt, answer in _PROMPT_COLUMNS:
        if any(isinstance(record.get(prompt), str) and isinstance(record.get(answer), str) for record in held):
            return Shape(kind=PROMPT, column=prompt, answer=answer)
    texts = [name for name in names if any(isinstance(record.get(name), str) for record in held)]
    if len(texts) == 1:
        return Shape(column=texts[0])
    raise SettingsError(
        f"{where}: none of the columns {', '.join(names) or '(none)'} is known to hold text",
        f"choose one with --column, in a run with data.column, for example {texts[0] if texts else 'NAME'}",
    )


def _chosen(held: list[Mapping[str, Any]], names: list[str], where: str, column: str) -> Shape:
    prompt, comma, answer = (part.strip() for part in column.partition(","))
    for name in (prompt, answer) if comma else (column,):
        if held and name not in names:
            hint = suggest(name, names) or f"choose one of: {', '.join(names)}"
            raise SettingsError(f"{where}: the records have no column {name!r}", hint)
    if comma:
        return Shape(kind=PROMPT, column=prompt, answer=answer)
    is_chat = any(isinstance(record.get(column), list) for record in held)
    return Shape(kind=CHAT if is_chat else TEXT, column=column, tools=_TOOLS if is_chat and _TOOLS in names else "")


def _with_tools(messages: list[Mapping[str, Any]], tools: object) -> list[Mapping[str, Any]]:
    """The messages with a record's definitions of tools in the first instructions."""
    if isinstance(tools, str):
        # Tables hold such lists as JSON: each tool has other columns.
        try:
            tools = json.loads(tools) if tools.strip() else None
        except (ValueError, RecursionError):
            raise Unusable("its 'tools' are not JSON") from None
    if not tools:
        return messages
    if not isinstance(tools, list):
        raise Unusable(f"its 'tools' are {_kind(tools)}, not a list")
    first = messages[0] if messages and messages[0].get("role") in ("system", "developer") else None
    if first is None:
        return [{"role": "developer", "tools": tools}, *messages]
    return [{**first, "tools": [*(first.get("tools") or ()), *tools]}, *messages[1:]]


def _column(record: object, name: str) -> object:
    if not isinstance(record, Mapping):
        raise Unusable(f"it is {_kind(record)}, not an object with columns")
    if name not in record:
        found = ", ".join(str(key) for key in list(record)[:8])
        raise Unusable(f"it has no column {name!r}" + (f"; it has {found}" if found else ""))
    return record[name]


def _kind(value: object) -> str:
    names: dict[type, str] = {
        dict: "an object",
        list: "a list",
        str: "text",
        bool: "true or false",
        type(None): "null",
    }
    return names.get(type(value), "a number" if isinstance(value, (int, float)) else type(value).__name__)
