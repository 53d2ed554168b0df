"""Questions for the base and the tuned model: typed ones, or held-out chats with the answer that was expected."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from engine.data import chats, harmony
from engine.data.harmony import Style


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a model is to go on from."""

    ids: tuple[int, ...]
    text: str
    """The question as a person reads it."""
    expected: str = ""
    """The answer in the held-out chat; empty for a typed question."""


def typed(prompts: Sequence[str], tokenizer: Path, style: Style) -> list[Question]:
    """Questions that a person typed. Raises SettingsError for a tokenizer that cannot hold chats."""
    encoder = chats.tokenizer(str(tokenizer / "tokenizer.json"), style)
    made = []
    for prompt in prompts:
        # With some answer, which is cut off again: what is before it is what a server sends.
        chat = encoder.encode([{"role": "user", "content": prompt}, {"role": "assistant", "content": "."}])
        made.append(Question(ids=tuple(chat.ids[: chat.mask.index(True)]), text=prompt))
    return made


def held_out(data: Path, tokenizer: Any, count: int) -> list[Question]:
    """The first `count` chats of the validation, up to their first answer."""
    return list(islice(_chats(data / "validation.idx.parquet", tokenizer), count))


def answer_of(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of the last message in what a model wrote, without control tokens."""
    marks = {token: tokenizer.convert_tokens_to_ids(token) for token in harmony.CONTROL_TOKENS}
    ids = list(ids)
    for end in (marks[harmony.RETURN], marks[harmony.CALL], tokenizer.eos_token_id):
        if end in ids:
            ids = ids[: ids.index(end)]
    if marks[harmony.MESSAGE] in ids:
        ids = ids[len(ids) - ids[::-1].index(marks[harmony.MESSAGE]) :]
    return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()


def _chats(file: Path, tokenizer: Any) -> Iterator[Question]:
    import pyarrow.parquet

    mark = tokenizer.convert_tokens_to_ids(harmony.MESSAGE)
    end = tokenizer.convert_tokens_to_ids(harmony.END)
    for batch in pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=16):
        for row in batch.to_pylist():
            starts = [*row["seq_start_id"], len(row["input_ids"])]
            for first, last in zip(starts, starts[1:], strict=False):
                ids, mask = row["input_ids"][first:last], row["loss_mask"][first:last]
                if 1 not in mask:
                    continue
                # The mask of a place is that of the token after it.
                begin = mask.index(1) + 1
                message = ids[:begin]
                while end in message and message[-1] != end:
                    message.pop()  # the header of the answer
                # Another format than Harmony is shown whole.
                shown = message[len(message) - message[::-1].index(mark) : -1] if mark in message else message
                expected = [token for token, counts in zip(ids[1:], mask, strict=False) if counts]
                yield Question(
                    ids=tuple(ids[:begin]),
                    text=tokenizer.decode(shown, skip_special_tokens=True),
                    expected=answer_of(tokenizer, expected),
                )
