"""The loss of a Hugging Face checkpoint by transformers: the whole model where it fits, else a layer at a time."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine.checkpoints import hugging_face
from engine.checkpoints.hugging_face import HuggingFaceCheckpoint
from engine.models import Model
from engine.workers.evaluation import LastEvaluation, read_samples
from engine.workers.report import Report
from engine.workers.stream import resources

_SHARE = 0.8
"""Of the free memory, for the weights of a whole model; the rest is for what it computes."""
_PASS_SHARE = 0.4
"""Of the free memory, for what one pass computes when the weights come a layer at a time."""

type _Answer = Callable[[Any], Any]
"""Gives the logits [samples, sequence, vocabulary] of tokens [samples, sequence], in fp32 on the CPU."""


def losses(report: Report, directory: Path, evaluations: Sequence[LastEvaluation], name: str) -> list[float]:
    """The loss on the samples of each evaluation, as Megatron counts it; `name` is the model's for the progress."""
    checkpoint = hugging_face.read(directory)
    with _answering(report, checkpoint) as (answer, room_bytes):

        def loss(evaluation: LastEvaluation) -> float:
            batches = list(_joined(read_samples(report.run, evaluation), checkpoint.model, room_bytes))
            return _loss(report, answer, batches, name)

        return [loss(evaluation) for evaluation in evaluations]


@contextmanager
def _answering(report: Report, checkpoint: HuggingFaceCheckpoint) -> Iterator[tuple[_Answer, int]]:
    """What answers with the model's logits, and in how much memory; 0 where a micro batch is best."""
    import torch

    from engine.workers.stream.forward import transformers_model

    is_on_gpu = report.plan.device == "gpu"
    # The weights are the same in either format; on a CPU fp32 is the faster and the sharper one.
    precision = "bf16" if is_on_gpu and report.settings.training.precision == "bf16" else "fp32"
    free = _free_bytes(is_on_gpu)
    place = _place(checkpoint, 2 if precision == "bf16" else 4, free, is_on_gpu=is_on_gpu)
    try:
        if place is None:
            report.event("info", "the model does not fit into memory: transformers gets its weights a layer at a time")
            with transformers_model(checkpoint.path, precision, "cuda:0" if is_on_gpu else "cpu") as model:
                yield lambda tokens: _logits(model, tokens), int(_PASS_SHARE * free[0])
        else:
            whole = _whole(checkpoint, precision, place)
            yield lambda tokens: _logits(whole, tokens.to(whole.device)), 0
            del whole
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _free_bytes(is_on_gpu: bool) -> list[int]:
    """Of each GPU, or of the machine. The other ranks have not begun: all GPUs are free for a model."""
    import torch

    if not is_on_gpu:
        return [resources.available_memory_bytes()]
    return [torch.cuda.mem_get_info(number)[0] for number in range(torch.cuda.device_count())]


def _place(
    checkpoint: HuggingFaceCheckpoint, item_bytes: int, free: Sequence[int], *, is_on_gpu: bool
) -> dict[str, Any] | None:
    """Where transformers shall put the whole model, as its arguments; None when it fits nowhere."""
    needed = checkpoint.model.parameters * item_bytes
    if needed >= _SHARE * sum(free):
        return None
    if not is_on_gpu:
        return {}
    # What is being dequantised needs room beside it.
    return {"device_map": "cuda:0" if needed < _SHARE * free[0] and not checkpoint.is_mxfp4 else "auto"}


def _whole(checkpoint: HuggingFaceCheckpoint, precision: str, place: dict[str, Any]) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, Mxfp4Config

    chosen: dict[str, Any] = {"dtype": torch.bfloat16 if precision == "bf16" else torch.float32, **place}
    if checkpoint.is_mxfp4:
        chosen["quantization_config"] = Mxfp4Config(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(checkpoint.path, attn_implementation="eager", **chosen).eval()
    for parameter in model.parameters():
        # Dequantised experts are bf16 whatever is asked for, and would compute in it.
        parameter.data = parameter.data.to(chosen["dtype"])
    return model


def _logits(model: Any, tokens: Any) -> Any:
    import torch

    with torch.inference_mode():
        return model(tokens, use_cache=False).logits.float().cpu()


def _loss(report: Report, answer: _Answer, batches: Sequence[tuple[Any, ...]], name: str) -> float:
    """Megatron's loss: the sum over all tokens that count, divided by their number."""
    import torch

    total = weight = 0.0
    for done, (tokens, labels, mask) in enumerate(batches, 1):
        logits = answer(torch.from_numpy(tokens).long())
        wanted = torch.from_numpy(labels).long().flatten()
        found = torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted, reduction="none")
        counted = torch.from_numpy(mask).flatten()
        total += float((found * counted).sum(dtype=torch.float64))
        weight += float(counted.sum(dtype=torch.float64))
        report.progress(f"loss of the {name} model", done, len(batches), "batches")
    return total / weight


def _joined(batches: Iterator[tuple[Any, ...]], model: Model, room_bytes: int) -> Iterator[tuple[Any, ...]]:
    """Micro batches of the same length together, as many as fit: each pass reads all weights."""
    import numpy

    held: list[tuple[Any, ...]] = []
    for batch in batches:
        tokens = [one[0] for one in (*held, batch)]
        is_alike = len({one.shape[1] for one in tokens}) == 1
        if held and not (is_alike and sum(_bytes(model, *one.shape) for one in tokens) <= room_bytes):
            yield tuple(map(numpy.concatenate, zip(*held, strict=True)))
            held = []
        held.append(batch)
    if held:
        yield tuple(map(numpy.concatenate, zip(*held, strict=True)))


def _bytes(model: Model, samples: int, length: int) -> int:
    """About the most that one pass holds at once: logits and a copy, or a layer's attention or experts."""
    attention = 3 * model.heads * length
    # transformers lets every expert see every token.
    experts = model.experts * (2 * model.hidden + 3 * model.ffn)
    return samples * length * 4 * max(2 * model.vocab, attention, experts)
