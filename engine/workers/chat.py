"""Tokenises chats in the Harmony format, with a mask of the tokens that the model itself would write."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy

from engine.data import harmony, splits, tokens
from engine.data.job import Job
from engine.data.shape import Unusable
from engine.data.units import Part
from engine.errors import SettingsError
from engine.workers.tokenise import TextWorker, _place


class ChatWorker(TextWorker):
    """Turns chats into tokens and masks."""

    has_masks = True

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._tokenizer = Harmony(job.tokenizer, job.style)

    def accept(self, part: Part, position: int, found: Any, rejections: list[tuple[int, str, str]]) -> Iterator[Any]:
        """The chat `found` tokenised, shortened to fit; nothing for one that cannot be used."""
        try:
            rendered = self._fitting(found)
        except Unusable as error:
            self.reject(part, _place(part, position), str(error), rejections)
            return
        if rendered is not None:
            yield rendered

    def write(self, documents: Sequence[Chat]) -> list[bytes]:
        """Append tokenised chats to their sides; return their digests."""
        lengths = numpy.array([len(chat) for chat in documents], dtype=numpy.int64)
        ids = numpy.concatenate([chat.ids for chat in documents]).astype(self.dtype)
        masks = numpy.concatenate([chat.mask for chat in documents])
        names = [chat.name for chat in documents]
        self.append(names, ids, lengths, masks)
        return names

    def _fitting(self, messages: Sequence[Mapping[str, Any]]) -> Chat | None:
        text = json.dumps(messages, sort_keys=True, ensure_ascii=False, default=str)
        self.counts.text_bytes += len(text)
        name = splits.digest(text.encode("utf-8", "surrogatepass"))
        kept: Sequence[Mapping[str, Any]] | None = messages
        while kept is not None:
            chat = self._tokenizer.encode(kept, name)
            if not self.job.longest or len(chat) <= self.job.longest:
                self.counts.shortened += kept is not messages
                return chat
            kept = harmony.shorten(kept)
        self.counts.too_long += 1
        return None


class Chat:
    """One tokenised chat."""

    def __init__(self, ids: list[int], mask: list[bool], name: bytes) -> None:
        self.ids = ids
        self.mask = mask
        self.name = name

    def __len__(self) -> int:
        return len(self.ids)


class Harmony:
    """A tokenizer that has Harmony's control tokens."""

    def __init__(self, tokenizer_json: str, style: harmony.Style) -> None:
        """Raises SettingsError when it has not."""
        self._encoder = tokens.Tokenizers(tokenizer_json, plain=True)
        self._style = style
        with open(tokenizer_json, encoding="utf-8") as file:
            added = {item["content"]: item["id"] for item in json.load(file).get("added_tokens") or []}
        missing = [token for token in harmony.CONTROL_TOKENS if token not in added]
        if missing:
            raise SettingsError(
                f"{tokenizer_json} has no {missing[0]}: it cannot hold chats in the Harmony format of gpt-oss",
                "use the tokenizer of gpt-oss",
            )
        self._control: dict[str, int] = added

    def encode(self, messages: Sequence[Mapping[str, Any]], name: bytes = b"") -> Chat:
        """The chat as ids and mask. Raises Unusable."""
        ids: list[int] = []
        mask: list[bool] = []
        for piece in harmony.render(messages, self._style):
            try:
                new = [self._control[piece.text]] if piece.is_control else self._encoder.encode_text(piece.text)
            except UnicodeEncodeError:
                raise Unusable("it holds half of a surrogate pair, which is no text") from None
            ids += new
            mask += [piece.is_trained] * len(new)
        return Chat(ids, mask, name)
