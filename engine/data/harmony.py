"""Chats as gpt-oss was trained to read them, with what the model itself would write marked as trained.

The format is OpenAI's Harmony (openai/harmony, docs/format.md). Control tokens are pieces of their own;
what people wrote never becomes one. Trained is what the model would produce: from behind the first
`<|start|>assistant` of a turn to the token that ends the turn. An older turn is closed by <|end|> in a
chat's history although the model had said <|return|>; that token is therefore shown and not trained.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.data import harmony_tools
from engine.data.shape import Unusable

START, MESSAGE, END, CHANNEL = "<|start|>", "<|message|>", "<|end|>", "<|channel|>"
RETURN, CALL, CONSTRAIN = "<|return|>", "<|call|>", "<|constrain|>"
CONTROL_TOKENS = (START, MESSAGE, END, CHANNEL, RETURN, CALL, CONSTRAIN)

ROLES = ("system", "developer", "user", "assistant", "tool")
_THINKING = ("thinking", "reasoning_content", "reasoning")
_EFFORTS = ("low", "medium", "high")
# Other data sets' words for the same things (ShareGPT, for one).
_ROLE_NAMES = {
    "human": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function": "tool",
}


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a rendered chat."""

    text: str
    is_trained: bool = False
    is_control: bool = False
    """True for one control token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """What is added to every chat."""

    effort: str = "medium"
    """The reasoning effort that the system message names: low, medium or high."""
    identity: str = "You are ChatGPT, a large language model trained by OpenAI."
    knowledge_cutoff: str = "2024-06"
    date: str = ""
    """The date that the system message names; empty leaves the line out."""

    def system_text(self, has_tools: bool = False) -> str:
        """The system message of gpt-oss (openai/harmony, `SystemContent`)."""
        date = f"\nCurrent date: {self.date}" if self.date else ""
        return (
            f"{self.identity}\nKnowledge cutoff: {self.knowledge_cutoff}{date}\n\nReasoning: {self.effort}\n\n"
            "# Valid channels: analysis, commentary, final. Channel must be included for every message."
            + (harmony_tools.SYSTEM_LINE if has_tools else "")
        )


def render(messages: Sequence[Mapping[str, Any]], style: Style) -> list[Piece]:
    """The chat as pieces in order. Raises Unusable for one that cannot be trained on."""
    turns = checked(messages)
    last_user = max((i for i, turn in enumerate(turns) if turn["role"] == "user"), default=-1)
    has_tools = any(turn.get("tools") for turn in turns)
    pieces = list(_message("system", style.system_text(has_tools)))
    previous_calls: list[str] = []
    was_assistant = False
    for number, turn in enumerate(turns):
        role = turn["role"]
        if role == "assistant":
            is_last = number == len(turns) - 1
            keeps_thinking = number > last_user
            pieces += _assistant(turn, is_last, keeps_thinking, was_assistant)
            previous_calls = [_function(call)[0] for call in turn.get("tool_calls") or []]
        elif role == "tool":
            name = str(turn.get("name") or (previous_calls.pop(0) if previous_calls else ""))
            if not name:
                raise Unusable(f"message {number + 1}: a tool result without the name of its tool")
            pieces += _message(f"{_tool(name)} to=assistant", text_of(turn, number), "commentary")
        elif role == "user":
            pieces += _message("user", text_of(turn, number))
        else:
            pieces += _message("developer", _instructions(turn, number))
        was_assistant = role == "assistant"
    return pieces


def shorten(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]] | None:
    """The chat without its oldest exchange, instructions kept; None when only one exchange is left."""
    names = [_role(message) for message in messages]
    users = [i for i, name in enumerate(names) if name == "user"]
    if len(users) < 2:
        return None
    kept = [message for message, name in zip(messages[: users[1]], names, strict=False) if name in ROLES[:2]]
    return [*kept, *messages[users[1] :]]


def checked(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The messages with their roles in our words, up to the last answer. Raises Unusable."""
    turns = []
    for number, message in enumerate(messages, 1):
        role = _role(message)
        if role not in ROLES:
            raise Unusable(f"message {number}: the role {role!r} is unknown; known are {', '.join(ROLES)}")
        if message.get("tools") and role not in ROLES[:2]:
            raise Unusable(f"message {number}: a message of the {role} defines tools; the system or developer does")
        turns.append({**message, "role": role})
    if not any(turn["role"] == "assistant" for turn in turns):
        raise Unusable("it has no answer of the assistant: there is nothing to learn")
    while turns[-1]["role"] != "assistant":
        # A question without its answer at the end teaches nothing.
        turns.pop()
    return turns


def _assistant(turn: Mapping[str, Any], is_last: bool, keeps_thinking: bool, continues: bool) -> Iterator[Piece]:
    thinking = next((str(turn[name]) for name in _THINKING if turn.get(name)), "")
    calls = turn.get("tool_calls") or []
    content = content_of(turn)
    if content is None and not calls and not thinking:
        raise Unusable("an answer of the assistant is empty")
    channel = str(turn.get("channel") or ("commentary" if calls else "final"))
    parts: list[tuple[str, str, str]] = []
    if thinking and keeps_thinking:
        parts.append(("", "analysis", thinking))
    if content and (channel != "analysis" or keeps_thinking):
        parts.append(("", channel, content))
    for call in calls:
        name, arguments = _function(call)
        parts.append((f" to={_tool(name)}", "commentary", arguments))
    for number, (recipient, name, text) in enumerate(parts):
        ends_turn = number == len(parts) - 1 and name == "final"
        last_piece = CALL if recipient else RETURN if is_last and ends_turn else END
        yield Piece(START, continues or number > 0, True)
        # The header of a turn's first message is what the server writes; the model goes on from there.
        yield Piece("assistant", continues or number > 0)
        if recipient:
            yield Piece(recipient, True)
        yield Piece(CHANNEL, True, True)
        yield Piece(name + (" " if recipient else ""), True)
        if recipient:
            yield Piece(CONSTRAIN, True, True)
            yield Piece("json", True)
        yield Piece(MESSAGE, True, True)
        yield Piece(text, True)
        yield Piece(last_piece, not (ends_turn and last_piece == END), True)


def _message(header: str, text: str, channel: str = "") -> Iterator[Piece]:
    yield Piece(START, is_control=True)
    yield Piece(header)
    if channel:
        yield Piece(CHANNEL, is_control=True)
        yield Piece(channel)
    yield Piece(MESSAGE, is_control=True)
    yield Piece(text)
    yield Piece(END, is_control=True)


def _instructions(turn: Mapping[str, Any], number: int) -> str:
    tools = turn.get("tools") or ()
    if isinstance(tools, str) or not isinstance(tools, Sequence):
        raise Unusable(f"message {number + 1}: its tools are no list")
    parts = [harmony_tools.section(tools)] if tools else []
    # A message that only defines tools needs no words.
    if not tools or content_of(turn) is not None:
        parts.insert(0, f"# Instructions\n\n{text_of(turn, number)}")
    return "\n\n".join(parts)


def _role(message: Mapping[str, Any]) -> str:
    name = str(message.get("role") or message.get("from") or "")
    return _ROLE_NAMES.get(name, name)


def text_of(turn: Mapping[str, Any], number: int) -> str:
    """What message `number` (from 0) says. Raises Unusable when it says nothing."""
    content = content_of(turn)
    if content is None:
        raise Unusable(f"message {number + 1} ({turn['role']}) has no content")
    return content


def content_of(turn: Mapping[str, Any]) -> str | None:
    """What a message says, in one text; None for nothing. Raises Unusable for a picture or the like."""
    value = turn["content"] if "content" in turn else turn.get("value")
    if isinstance(value, list):
        texts = [part.get("text") for part in value if isinstance(part, Mapping) and part.get("type") == "text"]
        if len(texts) != len(value) or not all(isinstance(text, str) for text in texts):
            raise Unusable("a message holds something other than text (an image?): gpt-oss reads text only")
        value = "".join(map(str, texts))
    if value is not None and not isinstance(value, str):
        raise Unusable("the content of a message is not text")
    return value or None


def _function(call: Mapping[str, Any]) -> tuple[str, str]:
    function = call.get("function") if isinstance(call, Mapping) else None
    function = function if isinstance(function, Mapping) else call
    name, arguments = function.get("name"), function.get("arguments", {})
    if not isinstance(name, str) or not name:
        raise Unusable("a call of a tool has no name")
    return name, arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _tool(name: str) -> str:
    return name if "." in name else f"functions.{name}"
