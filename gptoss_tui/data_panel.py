"""What the Data station shows: the first records as the training will see them, token by token."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.cells import cell_len

from engine import answers
from gptoss_tui import words
from gptoss_tui.log_file import readable
from gptoss_tui.widgets.canvas import Row, Span
from gptoss_tui.widgets.note import wrap

if TYPE_CHECKING:
    from engine.data.preview import Preview, PreviewRecord, TokenPiece
    from engine.settings import Settings

RECORDS = 3
_MOST_TEXT_ROWS = 4
_MOST_CHAT_ROWS = 10
"""What Harmony puts around a chat already takes some."""
_BOUNDARY: Span = ("│", "rule")


def read(settings: Settings) -> Preview:
    """The first records; a tokenizer that is not here leaves out the tokens. For a thread.

    Raises EngineError, as the run would.
    """
    from engine.data.preview import Preview, preview, tokenizer_at_hand

    if missing := answers.missing(settings).get("data.path"):
        return Preview(source=settings.data.source, kind="", note=missing)
    return preview(settings, tokenizer_at_hand(settings), count=RECORDS)


def rows(preview: Preview, width: int) -> list[Row]:
    """Files, then each record with its size and its tokens."""
    found: list[Row] = [((line, "muted"),) for line in wrap(_summary(preview), width)]
    for number, record in enumerate(preview.records, start=1):
        found += _record(number, record, width, is_chat=preview.kind == "chat")
    return found


def _summary(preview: Preview) -> str:
    parts = []
    if preview.files:
        parts.append(f"{words.plural(preview.files, 'file')}, {words.count(preview.size_bytes)}B")
    if preview.columns:
        parts.append("from " + ", ".join(preview.columns))
    if preview.note:
        parts.append(preview.note)
    if not preview.tokenizer and preview.records and preview.source != "prefix":
        parts.append("the model's tokenizer is not on this machine yet: text without its tokens")
    elif any(record.trained_tokens != record.tokens for record in preview.records):
        parts.append("what counts for the loss is bold, the rest dim")
    return "; ".join(parts) or "nothing to show"


def _record(number: int, record: PreviewRecord, width: int, *, is_chat: bool) -> list[Row]:
    most = _MOST_CHAT_ROWS if is_chat else _MOST_TEXT_ROWS
    if record.problem:
        return [((line, "bad"),) for line in wrap(f"✗ {record.problem}", width)]
    size = ""
    if record.tokens is not None:
        size = words.plural(record.tokens, "token")
        if record.trained_tokens != record.tokens:
            size += f", {record.trained_tokens:,} of them learnt"
        if record.is_cut:
            size = f"begins with {size}"
    if record.pieces:
        head: Row = ((f"{number}  ", "strong"), (size, "muted"))
        return [head, *_tokens(record.pieces, width, most, record.trained_tokens != record.tokens)]
    # A chat has a message a line; of a text the line breaks are shown as they are.
    lines = record.text.splitlines() if is_chat else [record.text]
    shown = [part for line in lines for part in wrap(_one_line(line), width - 3)][:most]
    return [((f"{number if place == 0 else '':<3}", "strong"), (line, "text")) for place, line in enumerate(shown)]


def _tokens(pieces: tuple[TokenPiece, ...], width: int, most: int, is_masked: bool) -> list[Row]:
    """Tokens with a line between them: the boundaries need no colour."""
    made: list[list[Span]] = [[]]
    used = 0
    for piece in pieces:
        style = "text" if not is_masked else "strong" if piece.is_trained else "muted"
        text = words.shorten(_one_line(piece.text), width - 1)
        size = cell_len(text) + 1
        if used + size > width and used:
            if len(made) == most:
                made[-1].append(("…", "muted"))
                break
            made.append([])
            used = 0
        made[-1] += [(text, style), _BOUNDARY]
        used += size
    return [tuple(row) for row in made]


def _one_line(text: str) -> str:
    return readable(text.replace("\r\n", "\n").replace("\n", "⏎").replace("\t", "→").encode("utf-8", "replace"))
