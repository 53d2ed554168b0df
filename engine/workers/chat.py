"""Tokenises chats, with a mask of the tokens that the model itself would write."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy

from engine.data import chats, harmony, splits
from engine.data.chats import Chat
from engine.data.shape import Unusable
from engine.data.units import Part
from engine.workers.tokenise import TextWorker, place


@dataclass(slots=True)
class Named:
    """A chat with the digest that chooses its side."""

    chat: Chat
    name: bytes

    def __len__(self) -> int:
        return len(self.chat)


class ChatWorker(TextWorker):
    """Turns chats into tokens and masks."""

    has_masks = True

    def load(self) -> None:
        """Raises SettingsError for a tokenizer that cannot hold chats."""
        self._tokenizer = chats.tokenizer(self.job.tokenizer, self.job.style)

    def accept(self, part: Part, position: int, found: Any, rejections: list[tuple[int, str, str]]) -> Iterator[Any]:
        """The chat `found` tokenised, shortened to fit; nothing for one that cannot be used."""
        try:
            rendered = self._fitting(found)
        except Unusable as error:
            self.reject(part, place(part, position), str(error), rejections)
            return
        if rendered is not None:
            yield rendered

    def write(self, documents: Sequence[Named]) -> list[bytes]:
        """Append tokenised chats to their sides; return their digests."""
        lengths = numpy.array([len(one) for one in documents], dtype=numpy.int64)
        ids = numpy.concatenate([one.chat.ids for one in documents]).astype(self.dtype)
        masks = numpy.concatenate([one.chat.mask for one in documents])
        names = [one.name for one in documents]
        self.append(names, ids, lengths, masks)
        return names

    def _fitting(self, messages: Sequence[Mapping[str, Any]]) -> Named | None:
        text = json.dumps(messages, sort_keys=True, ensure_ascii=False, default=str)
        self.counts.text_bytes += len(text)
        name = splits.digest(text.encode("utf-8", "surrogatepass"))
        kept: Sequence[Mapping[str, Any]] | None = messages
        while kept is not None:
            chat = self._tokenizer.encode(kept)
            if not self.job.longest or len(chat) <= self.job.longest:
                self.counts.shortened += kept is not messages
                return Named(chat, name)
            kept = harmony.shorten(kept)
        self.counts.too_long += 1
        return None
