"""`gptoss-manifest.json`: what a conversion wrote, from what, and the SHA-256 of every file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.checkpoints.hugging_face import HuggingFaceCheckpoint
from engine.checkpoints.manifest import NAME, VERSION
from engine.paths import write_atomic
from engine.workers.stream.files import Written


def write(
    root: Path, facts: Mapping[str, Any], folder: Path, written: Sequence[Written], small: Iterable[Path]
) -> None:
    """Write the manifest of `root`: `written` lie in `folder`, `small` files are read again for their sums."""
    files = {
        str((folder / one.name).relative_to(root)): {"bytes": one.size_bytes, "sha256": one.sha256} for one in written
    }
    for path in small:
        data = path.read_bytes()
        files[str(path.relative_to(root))] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    record = {"version": VERSION, **facts, "files": dict(sorted(files.items()))}
    write_atomic(root / NAME, json.dumps(record, indent=1) + "\n")


def fingerprint(checkpoint: HuggingFaceCheckpoint) -> dict[str, Any]:
    """What changes when the source does: its config, and each shard's size and time."""
    shards = sorted({tensor.file for tensor in checkpoint.tensors.values()})
    stats = {shard.name: shard.stat() for shard in shards}
    config = json.dumps(dict(checkpoint.config), sort_keys=True).encode()
    return {
        "config": hashlib.sha256(config).hexdigest(),
        "shards": {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()},
    }
