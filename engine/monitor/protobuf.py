"""Fields of a protobuf message by number, for files whose library is not wanted for a few of them."""

from __future__ import annotations

from collections.abc import Iterator


def fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(number, value) of every field: a varint as int, everything else as its bytes.

    Raises ValueError or IndexError for what is no message.
    """
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        kind = key & 7
        if kind == 0:
            value, position = _varint(message, position)
            yield key >> 3, value
            continue
        if kind == 2:
            size, position = _varint(message, position)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind} is not used any more")
        if position + size > len(message):
            raise ValueError("a field ends after its message")
        yield key >> 3, message[position : position + size]
        position += size


def text(value: int | memoryview) -> str:
    """A field that holds a string."""
    return "" if isinstance(value, int) else bytes(value).decode("utf-8", "replace")


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError("a number has more than 64 bits")
