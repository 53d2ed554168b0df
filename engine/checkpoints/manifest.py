"""The manifest that a conversion leaves: read it, and compare it with the files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.errors import CheckpointError
from engine.paths import file_text, open_file

NAME, VERSION = "gptoss-manifest.json", 1
_PIECE_BYTES = 8 << 20


def read(root: Path) -> dict[str, Any] | None:
    """The manifest of `root`, or None when there is none. Raises CheckpointError for a damaged one."""
    path = root / NAME
    try:
        value = json.loads(file_text(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {error}", "convert again") from error
    if not isinstance(value, dict) or not isinstance(value.get("files"), dict):
        raise CheckpointError(f"{path} lists no files", "convert again")
    version = value.get("version", VERSION)
    if not isinstance(version, int) or version > VERSION:
        raise CheckpointError(f"{path} was written by a newer gptoss", "upgrade gptoss")
    if strange := [name for name, facts in value["files"].items() if not _is_listing(name, facts)]:
        raise CheckpointError(f"{path} does not say what {strange[0]!r} holds", "convert again")
    return value


def _is_listing(name: str, facts: object) -> bool:
    """Whether an entry names a file below the manifest, its size and its sum."""
    path = Path(name)
    is_below = name and "\0" not in name and not path.is_absolute() and ".." not in path.parts
    if not is_below or not isinstance(facts, dict):
        return False
    size = facts.get("bytes")
    return isinstance(size, int) and 0 <= size < 1 << 63 and isinstance(facts.get("sha256"), str)


def differences(
    root: Path, manifest: dict[str, Any], on_progress: Callable[[str, int, int], None] | None = None
) -> list[str]:
    """What differs between the files and the manifest, in words; reads every file whole."""
    found = []
    total = sum(int(facts["bytes"]) for facts in manifest["files"].values())
    done = 0
    for name, facts in manifest["files"].items():
        path = root / name
        try:
            size = path.stat().st_size
            if size != facts["bytes"]:
                found.append(f"{name} has {size:,} and not {facts['bytes']:,} bytes")
                continue
            if sha256(path) != facts["sha256"]:
                found.append(f"{name} differs from what was written")
        except OSError as error:
            found.append(f"{name} cannot be read: {error.strerror}")
        except UnicodeError:  # half a surrogate pair
            found.append(f"{name!r} is no name of a file")
        done += int(facts["bytes"])
        if on_progress:
            on_progress(f"{done / 1e9:.2f} of {total / 1e9:.2f} GB compared with their sums", done, total)
    return found


def sha256(path: Path) -> str:
    """The SHA-256 of a file. Raises OSError."""
    digest = hashlib.sha256()
    with open_file(path) as file:
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()
