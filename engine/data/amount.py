"""How many tokens the data of a training has, where that can be told on this machine without preparing it."""

from __future__ import annotations

from engine.data import chosen, indexed, toy_chats, vocabulary
from engine.data.inspect import inspect
from engine.data.preview import tokenizer_at_hand
from engine.paths import expanded
from engine.settings import HUB_PREFIX, Settings

BYTES_PER_TOKEN = 4
"""Of English text, where no tokenizer is at hand."""


def trained_tokens(settings: Settings, *, is_packed: bool = True) -> float | None:
    """Tokens that one epoch trains on, padding included; None where they cannot be told.

    That is so for mock data, the hub, and text without the model's tokenizer here. Exact for a .bin/.idx pair, an
    estimate for text and chats; `is_packed` says that several chats share a sample, as on GPUs, else each is padded
    to one. Raises SettingsError and NotFoundError for bad data.
    """
    data = settings.data
    share = 1 - data.validation_percent / 100
    if data.source == "prefix":
        prefix = expanded(data.path)
        return indexed.count_tokens(prefix) * share
    # Counting what lies on the hub would download it.
    if data.source == "mock" or data.path.startswith(HUB_PREFIX):
        return None
    if chosen.learns_from_chats(settings):
        return _chat_tokens(settings, is_packed=is_packed) * share
    tokenizer = tokenizer_at_hand(settings)
    if tokenizer is None:
        return None
    files = chosen.files(settings)
    found = inspect(data.path, files, chosen.shape(settings, files), vocabulary.read(tokenizer))
    if found.tokens is None:
        return None
    read_bytes = min(found.text_bytes.value, data.max_megabytes * 1e6 or found.text_bytes.value)
    return found.tokens.value * share * (read_bytes / found.text_bytes.value if found.text_bytes.value else 0)


def _chat_tokens(settings: Settings, *, is_packed: bool) -> float:
    """The prepare step counts them again, exactly: here a guess without a tokenizer is better than none."""
    length = settings.training.sequence_length
    if settings.data.source == "sample":
        toys = [sum(len(one["content"]) for one in messages) for messages in toy_chats.chats()]
        return sum(toys) / BYTES_PER_TOKEN if is_packed else len(toys) * length
    files = chosen.files(settings)
    tokenizer = tokenizer_at_hand(settings) if is_packed else None
    words = vocabulary.read(tokenizer) if tokenizer is not None else None
    found = inspect(settings.data.path, files, chosen.shape(settings, files), words)
    if not is_packed:
        return found.records.value * length
    return found.tokens.value if found.tokens is not None else found.text_bytes.value / BYTES_PER_TOKEN
