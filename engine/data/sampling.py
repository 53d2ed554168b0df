"""A few windows spread evenly over the inputs, and the records in them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from engine.data import records
from engine.data.records import Found, Messages
from engine.data.shape import Shape
from engine.data.sources import SourceFile, total_bytes
from engine.data.units import Part

WINDOW_BYTES = 1 << 20
_SMALLEST_WINDOW = 64 << 10
"""Most records are shorter, so that one begins in it."""


def windows(files: Sequence[SourceFile], count: int, size: int = WINDOW_BYTES) -> list[Part]:
    """At most `count` windows of `size` bytes, evenly over all bytes.

    A compressed file and a table can only be read from a beginning: the whole, or a row group.
    """
    total = total_bytes(list(files))
    if total <= count * size:
        return [Part(file=file, number=number) for number, file in enumerate(files)]
    step, found = total / count, []
    before = 0
    wanted = [step * (i + 0.5) for i in range(count)]
    for number, file in enumerate(files):
        inside = [place - before for place in wanted if before <= place < before + file.size_bytes]
        before += file.size_bytes
        if not inside:
            continue
        if file.is_lines and not file.compression:
            for place in inside:
                start = max(0, min(int(place), file.size_bytes - size))
                found.append(Part(file=file, number=number, start=start, end=start + size))
        elif file.is_lines:
            found.append(Part(file=file, number=number))
        else:
            groups = len(records.table_parts(file))
            chosen = dict.fromkeys(int(place * groups / file.size_bytes) for place in inside)
            found += [Part(file=file, number=number, start=group, end=group + 1) for group in chosen]
    return found


def read(part: Part, shape: Shape, limit_bytes: int) -> Iterator[Found]:
    """The records of a window, until they hold `limit_bytes`."""
    held = 0
    for position, found in records.documents(part.file, shape, part.start, part.end):
        yield position, found
        held += len(found) if isinstance(found, bytes) else len(str(found))
        if held >= limit_bytes:
            return


def documents(files: Sequence[SourceFile], shape: Shape, count: int, limit_bytes: int) -> Iterator[bytes]:
    """Documents from `count` windows, `limit_bytes` from each; chats by the text of their messages."""
    for part in windows(files, count, max(limit_bytes, _SMALLEST_WINDOW)):
        for _, found in read(part, shape, limit_bytes):
            if isinstance(found, bytes):
                yield found
            elif isinstance(found, list):
                yield text_of_chat(found)


def text_of_chat(messages: Messages) -> bytes:
    """What the messages say, roles and control tokens left out."""
    contents = (message.get("content", message.get("value")) for message in messages)
    return "\n".join(text for text in contents if isinstance(text, str)).encode("utf-8", "replace")
