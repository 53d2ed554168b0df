"""Which side of the split a document falls on. Depends on the document alone."""

from __future__ import annotations

import hashlib

DIGEST_BYTES = 16
_SHARE_BYTES = 8
_SHARES = 1 << 8 * _SHARE_BYTES


def digest(document: bytes) -> bytes:
    """16 bytes that name `document`; equal documents have equal ones."""
    return hashlib.blake2b(document, digest_size=DIGEST_BYTES).digest()


def share(name: bytes) -> float:
    """A number in [0, 1) from a `digest`: the document stays on its side when others come or go."""
    return int.from_bytes(name[:_SHARE_BYTES]) / _SHARES
