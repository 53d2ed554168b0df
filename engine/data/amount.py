"""How many tokens the data of a training has, where that can be told on this machine without preparing it."""

from __future__ import annotations

from pathlib import Path

from engine.data import chosen, indexed, vocabulary
from engine.data.inspect import inspect
from engine.data.preview import tokenizer_at_hand
from engine.settings import HUB_PREFIX, Settings


def trained_tokens(settings: Settings) -> float | None:
    """Tokens that one epoch trains on; None for mock data, the hub, and text without the model's tokenizer here.

    Exact for a .bin/.idx pair, an estimate for text and chats. Raises SettingsError and NotFoundError for bad data.
    """
    data = settings.data
    share = 1 - data.validation_percent / 100
    if data.source == "prefix":
        prefix = Path(data.path).expanduser()
        return indexed.count_tokens(prefix) * share
    tokenizer = tokenizer_at_hand(settings)
    is_toy = data.source == "sample" and chosen.learns_from_chats(settings)
    # Counting what lies on the hub would download it.
    if data.source == "mock" or is_toy or tokenizer is None or data.path.startswith(HUB_PREFIX):
        return None
    files = chosen.files(settings)
    found = inspect(data.path, files, chosen.shape(settings, files), vocabulary.read(tokenizer))
    if found.tokens is None:
        return None
    read_bytes = min(found.text_bytes.value, data.max_megabytes * 1e6 or found.text_bytes.value)
    return found.tokens.value * share * (read_bytes / found.text_bytes.value if found.text_bytes.value else 0)
