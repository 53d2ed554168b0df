"""README.md of an exported model: where it came from and what it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.version import __version__

_TEXT = """\
---
library_name: transformers
pipeline_tag: text-generation
tags:
- gpt-oss
- megatron
---
# gpt-oss, exported from Megatron

Exported by gptoss {version} from the Megatron checkpoint `{origin}` as {dtype} safetensors:
{layers} layers, {experts} experts of which each token uses {top_k}, hidden size {hidden}.

`gptoss-manifest.json` holds the SHA-256 of every file.
"""


def text(iteration: Path, config: Mapping[str, Any]) -> str:
    """The card of the model exported from `iteration`."""
    return _TEXT.format(
        version=__version__,
        origin="/".join(iteration.absolute().parts[-2:]),
        dtype=config["dtype"],
        layers=config["num_hidden_layers"],
        experts=config["num_local_experts"],
        top_k=config["num_experts_per_tok"],
        hidden=config["hidden_size"],
    )
