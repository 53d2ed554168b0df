"""Whether transformers and Megatron compute the same logits, and whether there is memory to see it."""

from __future__ import annotations

from pathlib import Path

import torch

from engine.checkpoints.hugging_face import HuggingFaceCheckpoint
from engine.checkpoints.torch_dist import DistributedCheckpoint
from engine.models import Model
from engine.workers.stream import forward, logits, resources
from engine.workers.stream.files import OnProgress
from engine.workers.stream.torch_tensors import TORCH_DTYPES

_MEGATRON_BYTES = 1 << 30
"""Megatron, Bridge and transformers, imported: 0.55 GiB is the peak of a verify step of the tiny model."""


def compare(
    reference: HuggingFaceCheckpoint,
    stored: DistributedCheckpoint,
    precision: str,
    base: Path | None = None,
    on_progress: OnProgress | None = None,
) -> list[logits.Comparison]:
    """transformers with the reference against Megatron with the checkpoint, at three lengths."""
    torch.set_num_threads(resources.cores())
    prompts = logits.prompts(reference.model.vocab, reference.model.window)
    layers = reference.model.layers

    def telling(who: str) -> forward.OnLayer | None:
        if on_progress is None:
            return None
        return lambda layer: on_progress(f"logits by {who}: layer {layer + 1} of {layers}", layer, layers)

    expected = forward.transformers_logits(reference.path, prompts, precision, telling("transformers"))
    found = forward.megatron_logits(stored.path, prompts, precision, base, telling("Megatron"))
    return logits.compare(expected, found)


def precision_for(model: Model) -> str:
    """fp32, the sharper, where there is memory for it."""
    return "fp32" if needed_bytes(model, "fp32") <= resources.available_memory_bytes() else "bf16"


def needed_bytes(model: Model, precision: str) -> int:
    """About what computing them needs: the largest matrix of either model, both sides' logits, and Megatron."""
    weights = _most_at_once(model) * TORCH_DTYPES[precision].itemsize
    rows = sum(prompt.shape[1] for prompt in logits.prompts(2, model.window))
    return weights + 2 * rows * model.vocab * torch.float32.itemsize + _MEGATRON_BYTES


def _most_at_once(model: Model) -> int:
    """Parameters that are in memory together: the vocabulary's, or a layer's with one of its experts."""
    layer = model.layer_parameters - (model.experts - 1) * model.expert_parameters
    return max(layer, model.embedding_parameters)
