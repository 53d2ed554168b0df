"""Which GPUs CUDA_VISIBLE_DEVICES leaves, in which order. Pure: no driver is asked.

The rules are CUDA's as torch repeats them (torch/cuda/__init__.py, `_parse_visible_devices`,
2.13): the first entry decides between numbers, `GPU-` and `MIG-` ids, the first entry that
names nothing ends the list, and naming something twice leaves nothing at all.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

VARIABLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, slots=True, kw_only=True)
class Visible:
    """The UUIDs that CUDA shows, in its order, and what is wrong with the variable."""

    uuids: tuple[str, ...]
    problem: str = ""
    """One sentence, empty when every entry names a GPU."""


def select(value: str | None, gpus: Sequence[str], slices: Sequence[str] = ()) -> Visible:
    """Apply the variable's `value` to the UUIDs of GPUs (by number) and of MIG slices."""
    if value is None:
        return Visible(uuids=tuple(gpus))
    entries = value.split(",") if value else []
    words = _words(entries)
    chosen: list[str] = []
    for word in words:
        uuid = _resolve(word, gpus, slices)
        if uuid is None:
            break
        chosen.append(uuid)
    if twice := _first_repeated(words) or _first_repeated(chosen):
        return Visible(uuids=(), problem=f"{VARIABLE}={value} names {twice} twice; CUDA then shows no GPU")
    if len(chosen) == len(entries):
        return Visible(uuids=tuple(chosen))
    return Visible(uuids=tuple(chosen), problem=_describe(entries, len(chosen), gpus))


def _words(entries: Sequence[str]) -> list[str | int]:
    """The entries up to the first that does not look like the others: numbers, or ids of one kind."""
    kind = next((prefix for prefix in ("GPU-", "MIG-") if entries and entries[0].startswith(prefix)), "")
    words: list[str | int] = []
    for entry in entries:
        if kind and entry.startswith(kind):
            words.append(entry)
            continue
        # CUDA reads the digits and ignores what follows them: `1,2x` is `1,2`.
        number = None if kind else re.match(r"\s*\+?(\d+)", entry)
        if number is None:
            break
        words.append(int(number[1]))
    return words


def _resolve(word: str | int, gpus: Sequence[str], slices: Sequence[str]) -> str | None:
    if isinstance(word, int):
        return gpus[word] if word < len(gpus) else None
    matches = [uuid for uuid in (*gpus, *slices) if uuid.startswith(word)]
    return matches[0] if len(matches) == 1 else None


def _first_repeated(words: Sequence[str | int]) -> str:
    return next((str(word) for index, word in enumerate(words) if word in words[:index]), "")


def _describe(entries: Sequence[str], used: int, gpus: Sequence[str]) -> str:
    entry, after = entries[used].strip(), len(entries) - used - 1
    if entry in ("-1", "NoDevFiles"):
        return ""  # the usual ways to say: none from here on
    rest = f"; CUDA ignores it and the {after} after it" if after else ""
    there = f"there are GPUs 0 to {len(gpus) - 1}" if gpus else "there is no GPU"
    return f"{VARIABLE} names {entry!r}, which is not one GPU here{rest} ({there})"
