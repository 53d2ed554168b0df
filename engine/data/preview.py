"""The first records of what the settings choose, as tokens where a tokenizer is at hand: for a person to look at.

Cheap enough for a screen: without a tokenizer it reads the beginning of one file; with one, the first call also
loads that (a second or two for 200,000 tokens), and later calls find it loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from engine.data import chats, chosen, indexed, records, sources, tokens, toy_chats, vocabulary
from engine.data.harmony import Style
from engine.data.records import Messages, Rejection
from engine.data.shape import CHAT, Unusable
from engine.data.sources import total_bytes
from engine.errors import NotFoundError, SettingsError
from engine.paths import expanded
from engine.settings import Settings

MAX_BYTES = 8_000
"""So much of a text is shown and tokenised."""
MAX_PIECES = 2_000
"""So many tokens of a record are shown."""


@dataclass(frozen=True, slots=True)
class TokenPiece:
    """One token as text; a part of a letter is shown as U+FFFD."""

    text: str
    is_trained: bool = True
    """Whether it counts for the loss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviewRecord:
    """One record."""

    text: str
    """Its text, or its messages with their roles; as it is, control characters included."""
    is_cut: bool = False
    """True when the record is longer than what is shown; the counts are then those of its beginning."""
    tokens: int | None = None
    """None without a tokenizer."""
    trained_tokens: int | None = None
    pieces: tuple[TokenPiece, ...] = ()
    problem: str = ""
    """Why it cannot be used, with its place; its other fields are then empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """What the settings' data looks like."""

    source: str
    kind: str
    """`text` or `chat`."""
    columns: tuple[str, ...] = ()
    files: int = 0
    size_bytes: int = 0
    records: tuple[PreviewRecord, ...] = ()
    tokenizer: str = ""
    """The tokenizer.json that made the tokens; empty when none was given."""
    note: str = ""
    """What else a person should know, in a sentence."""


def tokenizer_at_hand(settings: Settings) -> Path | None:
    """The tokenizer.json of the run where it is on this machine; nothing is downloaded."""
    model = settings.model
    known = settings.data.tokenizer or model.path or (f"openai/{model.name}" if model.name.startswith("gpt-") else "")
    if not known:
        return None
    try:
        found = vocabulary.find(known, allow_download=False)
    except NotFoundError:
        return None
    return found if found.is_file() else None


def preview(settings: Settings, tokenizer: Path | None = None, count: int = 5) -> Preview:
    """The first `count` records; with `tokenizer` (a tokenizer.json or its directory) as tokens.

    Raises SettingsError and NotFoundError, as the run would.
    """
    source = settings.data.source
    file = "" if tokenizer is None else str(tokenizer / "tokenizer.json" if tokenizer.is_dir() else tokenizer)
    if file and not Path(file).is_file():
        raise NotFoundError(f"there is no tokenizer {file}", "give the directory with the model's tokenizer.json")
    if source == "mock":
        return Preview(
            source=source, kind="text", note="Mock data is invented token by token; there is nothing to read."
        )
    if source == "prefix":
        return _of_prefix(settings, file, count)
    is_chat = chosen.learns_from_chats(settings)
    if source == "sample" and is_chat:
        found = [_of_chat(chat, settings, file) for chat in islice(toy_chats.chats(), count)]
        return Preview(source=source, kind=CHAT, records=tuple(found), tokenizer=file, columns=("messages",))
    # Of the sample the whole list is of no interest, and making it reads every file.
    files = sources.sample(count) if source == "sample" else chosen.files(settings)
    shape = chosen.shape(settings, files)
    made: list[PreviewRecord] = []
    for path in files:
        for position, record in islice(records.documents(path, shape), count - len(made)):
            if isinstance(record, Rejection):
                place = records.place(path, position)
                made.append(PreviewRecord(text="", problem=f"{place}: {record.reason}"))
            else:
                made.append(_of_text(record, file) if isinstance(record, bytes) else _of_chat(record, settings, file))
        if len(made) >= count:
            break
    return Preview(
        source=source,
        kind=CHAT if is_chat else shape.kind,
        columns=shape.columns if any(not f.is_lines or f.format == "jsonl" for f in files) else (),
        files=len(files),
        size_bytes=total_bytes(files),
        records=tuple(made),
        tokenizer=file,
    )


def _of_text(document: bytes, tokenizer: str) -> PreviewRecord:
    text = document[:MAX_BYTES].decode(errors="ignore")
    is_cut = len(document) > MAX_BYTES
    if not tokenizer:
        return PreviewRecord(text=text, is_cut=is_cut)
    words = _plain(tokenizer, _changed(tokenizer))
    ids = words.encode_text(text)
    return PreviewRecord(text=text, is_cut=is_cut, tokens=len(ids), trained_tokens=len(ids),
                         pieces=_pieces(words, ids, [True] * len(ids)))  # fmt: skip


def _of_chat(messages: Sequence[Mapping[str, Any]], settings: Settings, tokenizer: str) -> PreviewRecord:
    text = "\n".join(_shown(messages))
    shown, is_cut = text[:MAX_BYTES], len(text) > MAX_BYTES
    if not tokenizer:
        return PreviewRecord(text=shown, is_cut=is_cut)
    words = _chat_tokenizer(tokenizer, settings.finetune.effort, _changed(tokenizer))
    try:
        chat = words.encode(messages)
    except Unusable as error:
        return PreviewRecord(text=shown, is_cut=is_cut, problem=str(error))
    mask = [True] * len(chat) if settings.finetune.learn == "everything" else chat.mask
    return PreviewRecord(
        text=shown,
        is_cut=is_cut,
        tokens=len(chat),
        trained_tokens=sum(mask),
        pieces=_pieces(words.words, chat.ids, mask),
    )


def _of_prefix(settings: Settings, tokenizer: str, count: int) -> Preview:
    prefix = expanded(settings.data.path)
    facts = indexed.check_header(prefix)
    found = []
    for ids, is_cut in indexed.first_documents(prefix, count, MAX_PIECES):
        if tokenizer:
            words = _plain(tokenizer, _changed(tokenizer))
            pieces = _pieces(words, ids, [True] * len(ids))
            text = words.decode(ids)
        else:
            pieces, text = (), " ".join(map(str, ids))
        found.append(PreviewRecord(text=text, is_cut=is_cut, tokens=len(ids), trained_tokens=len(ids), pieces=pieces))
    return Preview(
        source="prefix",
        kind="text",
        files=2,
        size_bytes=facts.size_bytes,
        records=tuple(found),
        tokenizer=tokenizer,
        note=f"{facts.documents:,} documents of {facts.token_type} tokens"
        + ("" if tokenizer else "; without the model's tokenizer here only their numbers can be shown"),
    )


def _shown(messages: Messages | Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for message in messages:
        role = message.get("role") or message.get("from") or "?"
        content = message["content"] if "content" in message else message.get("value")
        text = content if isinstance(content, str) else "" if content is None else repr(content)
        yield f"{role}: {text}"
        for call in message.get("tool_calls") or ():
            yield f"{role} calls: {call!r}"


def _pieces(words: tokens.Tokenizers, ids: Sequence[int], mask: Sequence[bool]) -> tuple[TokenPiece, ...]:
    shown = zip(ids[:MAX_PIECES], mask, strict=False)
    return tuple(TokenPiece(words.decode([number]), is_trained) for number, is_trained in shown)


def _changed(tokenizer: str) -> int:
    """Part of the key under which a loaded tokenizer is kept."""
    try:
        return Path(tokenizer).stat().st_mtime_ns
    except OSError as error:
        raise SettingsError(f"{tokenizer} cannot be read: {error.strerror}", "check its permissions") from error


@lru_cache(maxsize=1)
def _plain(tokenizer: str, changed: int) -> tokens.Tokenizers:
    return tokens.Tokenizers(tokenizer)


@lru_cache(maxsize=1)
def _chat_tokenizer(tokenizer: str, effort: str, changed: int) -> chats.ChatTokenizer:
    return chats.tokenizer(tokenizer, Style(effort=effort))
