"""Reads .bin/.idx pairs with Megatron's own IndexedDataset and says what it found."""

from __future__ import annotations

import json
import sys
from typing import Any

_PROBES = 64


def main() -> int:
    """Read prefixes from stdin, print documents and tokens of each."""
    prefixes = json.load(sys.stdin)["prefixes"]
    try:
        from megatron.core.datasets.indexed_dataset import IndexedDataset
    except ImportError as error:
        print(json.dumps({"skipped": str(error)}))
        return 0
    print(json.dumps({"prefixes": {prefix: _facts(IndexedDataset(prefix)) for prefix in prefixes}}))
    return 0


def _facts(dataset: Any) -> dict[str, int]:
    lengths, documents = dataset.sequence_lengths, len(dataset.document_indices) - 1
    for number in range(0, documents, max(1, documents // _PROBES)):
        if len(dataset[number]) != int(lengths[number]):
            raise ValueError(f"document {number} has {len(dataset[number])} tokens, its index says {lengths[number]}")
    return {"documents": documents, "tokens": int(lengths.sum(dtype="int64"))}


if __name__ == "__main__":
    sys.exit(main())
