"""Chats as tokens, each with a mark of whether the model learns to write it.

A tokenizer with gpt-oss's control tokens renders Harmony. Another one renders its own chat template; then
trained is what the template adds for an answer behind its own prompt for one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from engine.data import harmony, optional, tokens
from engine.data.shape import Unusable
from engine.errors import SettingsError

TEMPLATE_FILE = "chat_template.jinja"


@dataclass(slots=True)
class Chat:
    """One tokenised chat."""

    ids: list[int]
    mask: list[bool]

    def __len__(self) -> int:
        return len(self.ids)


class ChatTokenizer(Protocol):
    """Turns chats into tokens."""

    words: tokens.Tokenizers

    def encode(self, messages: Sequence[Mapping[str, Any]]) -> Chat:
        """The chat as ids and mask. Raises Unusable for one that cannot be trained on."""
        ...


def tokenizer(tokenizer_json: str, style: harmony.Style) -> ChatTokenizer:
    """Harmony where the tokenizer has its control tokens, else its own template. Raises SettingsError."""
    with open(tokenizer_json, encoding="utf-8") as file:
        added = {item["content"]: item["id"] for item in json.load(file).get("added_tokens") or []}
    missing = [token for token in harmony.CONTROL_TOKENS if token not in added]
    if not missing:
        return Harmony(tokenizer_json, style, added)
    config = _config(Path(tokenizer_json).parent)
    if not config.get("chat_template"):
        raise SettingsError(
            f"{tokenizer_json} has no {missing[0]}, which the Harmony format of gpt-oss needs, and no chat template",
            "use the tokenizer of gpt-oss, or one with a chat_template",
        )
    return Template(tokenizer_json, config, list(added))


class Harmony:
    """For a tokenizer with Harmony's control tokens: each is a piece of its own, people's text never becomes one."""

    def __init__(self, tokenizer_json: str, style: harmony.Style, control: Mapping[str, int]) -> None:
        self.words = tokens.Tokenizers(tokenizer_json, plain=True)
        self._style = style
        self._control = control

    def encode(self, messages: Sequence[Mapping[str, Any]]) -> Chat:
        chat = Chat([], [])
        for piece in harmony.render(messages, self._style):
            try:
                new = [self._control[piece.text]] if piece.is_control else self.words.encode_text(piece.text)
            except UnicodeEncodeError:
                raise Unusable("it holds half of a surrogate pair, which is no text") from None
            chat.ids += new
            chat.mask += [piece.is_trained] * len(new)
        return chat


class Template:
    """For any other tokenizer with a chat template."""

    def __init__(self, tokenizer_json: str, config: Mapping[str, Any], control: Sequence[str]) -> None:
        """Raises SettingsError for a template that is none."""
        self.words = tokens.Tokenizers(tokenizer_json)
        self._control = control
        self._known = {name: _token(config.get(name)) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
        sandbox = optional.load("jinja2.sandbox", "a tokenizer's own chat template")
        self._errors: type[Exception] = optional.load("jinja2", "a tokenizer's own chat template").TemplateError
        made = sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        made.globals["raise_exception"] = _refuse
        made.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
        try:
            self._template = made.from_string(config["chat_template"])
        except self._errors as error:
            raise SettingsError(f"the chat template beside {tokenizer_json} is broken: {error}",
                                "copy the model's tokenizer files again") from error  # fmt: skip

    def encode(self, messages: Sequence[Mapping[str, Any]]) -> Chat:
        turns = [
            # A call of a tool needs no words.
            {**turn, "content": harmony.content_of(turn) or "" if turn.get("tool_calls") else harmony.text_of(turn, at)}
            for at, turn in enumerate(harmony.checked(messages))
        ]
        for number, turn in enumerate(turns, 1):
            spelt = next((token for token in self._control if token in turn["content"]), "")
            if spelt:
                raise Unusable(f"message {number} spells out the control token {spelt}, which would become one")
        text = self._render(turns)
        spans = list(self._trained(turns, text))
        ids, offsets = self.words.encode_with_offsets(text)
        return Chat(ids, [any(start < end and low <= start < high for low, high in spans) for start, end in offsets])

    def _trained(self, turns: Sequence[Mapping[str, Any]], text: str) -> Iterator[tuple[int, int]]:
        """Where in `text` the answers are."""
        for number, turn in enumerate(turns):
            if turn["role"] != "assistant":
                continue
            before = self._render(turns[:number], add_generation_prompt=True)
            until = self._render(turns[: number + 1])
            if not text.startswith(until) or not until.startswith(before):
                raise Unusable(f"message {number + 1}: the chat template writes older turns in another way than new "
                               "ones; train on chats with one answer")  # fmt: skip
            yield len(before), len(until)

    def _render(self, turns: Sequence[Mapping[str, Any]], add_generation_prompt: bool = False) -> str:
        try:
            made: str = self._template.render(
                messages=list(turns), add_generation_prompt=add_generation_prompt, **self._known
            )
        except (self._errors, TypeError) as error:
            raise Unusable(f"the chat template refuses it: {error}") from error
        return made


def _config(directory: Path) -> dict[str, Any]:
    """The tokenizer's configuration with its template, wherever that is written."""
    try:
        config: dict[str, Any] = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        config = {}
    if (directory / TEMPLATE_FILE).is_file():
        config["chat_template"] = (directory / TEMPLATE_FILE).read_text(encoding="utf-8")
    named = config.get("chat_template")
    if isinstance(named, list):
        config["chat_template"] = next((one["template"] for one in named if one.get("name") == "default"), "")
    return config


def _token(value: object) -> str:
    return str(value.get("content", "")) if isinstance(value, Mapping) else str(value or "")


def _refuse(message: str) -> None:
    raise Unusable(f"the chat template refuses it: {message}")
