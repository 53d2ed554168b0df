"""The verify step: is the exported model the trained one?

Two independent implementations compute the same thing: transformers with the exported files,
Megatron with the checkpoint. First the logits of the same tokens, at lengths within and beyond
the sliding window; then the loss over exactly the tokens of the last evaluation.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import StepFailed
from engine.plan.layout import Layout
from engine.workers import finetune_export, finetune_lora, profile
from engine.workers.evaluation import LastEvaluation, read_last, read_samples
from engine.workers.export import newest_checkpoint
from engine.workers.report import Report, require, run_worker
from engine.workers.source import hugging_face_source

LOGITS_TOLERANCE = {"fp32": 2e-4, "bf16": 0.1}
"""Largest difference allowed, as a share of the largest logit, by the format that is computed in.

fp32: the same sums in another order; 1e-6 was measured on the tiny model.
bf16: 8 bits of mantissa through every layer; 5e-3 was measured on the 4 layers of the tiny model, deeper
ones add more, and a token whose experts are nearly tied may choose others. It sees a wrong window, sink or
expert, which move logits by about their own size, and not a norm that is 1 % off; fp32 does.
"""

LOSS_TOLERANCE = {"fp32": 1e-4, "bf16": 1e-2}
"""Largest difference allowed between the losses, in nats, by the format of the training.

fp32: 5e-7 was measured on the tiny model. bf16: 2e-5 there, and 1e-4 with transformers in bf16, too; other
kernels round otherwise.
"""


@dataclass(frozen=True, slots=True)
class Comparison:
    """How far two sets of logits are apart."""

    difference: float
    largest: float
    agreement: float
    """Share of the positions at which both predict the same token."""


def work(report: Report) -> Mapping[str, Any]:
    """Compare, and fail with the numbers when a difference is above its tolerance."""
    from engine.workers import model

    model.load_engine(report)
    training = report.settings.training.precision
    # The weights are the same in either format; on a CPU fp32 is the faster and the sharper one.
    computed = "fp32" if report.plan.device == "cpu" else training
    checkpoint = newest_checkpoint(report)
    evaluation = _matching_evaluation(report, checkpoint)
    prompts = _prompts(report, evaluation)
    expected: list[Any] = []
    losses: dict[str, float] = {}
    if report.rank == 0:
        expected, losses = _ask_transformers(report, evaluation, prompts, computed)
    found = _ask_megatron(report, checkpoint, prompts, computed)
    if report.rank:
        return {}
    comparison = _compare(expected, found)
    finetune_export.check_adapter(report, checkpoint)
    result: dict[str, Any] = {
        "logits_max_difference": comparison.difference,
        "logits_tolerance": LOGITS_TOLERANCE[computed] * comparison.largest,
        "argmax_agreement": comparison.agreement,
        "megatron_loss": evaluation.loss,
        "loss_difference": abs(losses["export_loss"] - evaluation.loss),
        "loss_tolerance": LOSS_TOLERANCE[training],
        **losses,
    }
    _judge(result)
    return result


def _judge(result: Mapping[str, Any]) -> None:
    """Raises StepFailed. Written so that NaN, which is not above anything, fails too."""
    hint = "do not use the export; report it with the versions that gptoss doctor prints"
    require(
        result["logits_max_difference"] <= result["logits_tolerance"],
        f"the exported model is not the trained one: logits differ by {result['logits_max_difference']:.3g}, "
        f"allowed are {result['logits_tolerance']:.3g} ({result['argmax_agreement']:.1%} of the predictions agree)",
        hint,
    )
    require(
        result["loss_difference"] <= result["loss_tolerance"],
        f"the exported model is not the trained one: its loss on the last evaluation's text is "
        f"{result['export_loss']:.6f}, Megatron's was {result['megatron_loss']:.6f}; "
        f"allowed is a difference of {result['loss_tolerance']:g}",
        hint,
    )


def _matching_evaluation(report: Report, checkpoint: Path) -> LastEvaluation:
    evaluation = read_last(report.run)
    if evaluation is None or checkpoint.name != f"iter_{evaluation.iteration:07d}":
        at = f"iteration {evaluation.iteration}" if evaluation else "no iteration"
        raise StepFailed(
            f"the last evaluation was at {at}, the newest checkpoint is {checkpoint.name}",
            "run the train step to its end",
        )
    return evaluation


def _prompts(report: Report, evaluation: LastEvaluation) -> list[Any]:
    """Held-out text, cut to a length within the sliding window and to two beyond it."""
    import torch

    from engine.workers.source import load_config

    window = load_config(report).sliding_window
    tokens, _, _ = next(read_samples(report.run, evaluation))
    stream = torch.from_numpy(tokens).long().flatten()
    # Sequence parallelism divides the tokens among up to 8 ranks.
    lengths = {max(8, length // 8 * 8) for length in (window // 2, 2 * window, 4 * window)}
    return [stream[:length][None] for length in sorted(lengths) if length <= len(stream)]


def _ask_transformers(
    report: Report, evaluation: LastEvaluation, prompts: list[Any], precision: str
) -> tuple[list[Any], dict[str, float]]:
    """Logits of the prompts and the loss over the evaluation's samples, by the exported files alone."""
    report.phase("running the exported model in transformers")
    model = _load_transformers(report.run.export.name, precision, report)
    logits = [_logits(model, prompt) for prompt in prompts]
    losses = {"export_loss": _loss(report, model, evaluation, "export")}
    del model
    _free()
    if report.settings.model.name == "tiny":
        initial = _load_transformers(hugging_face_source(report), precision, report)
        losses["initial_loss"] = _loss(report, initial, evaluation, "initial")
    return logits, losses


def _load_transformers(path: str, precision: str, report: Report) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    from engine.workers.files import size_bytes

    chosen: dict[str, Any] = {"dtype": torch.bfloat16 if precision == "bf16" else torch.float32}
    if report.plan.device == "gpu":
        free, _ = torch.cuda.mem_get_info()
        # The other ranks have not begun: their GPUs are free for a model that one cannot hold.
        chosen["device_map"] = "cuda:0" if size_bytes(Path(path)) < 0.8 * free else "auto"
    return AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager", **chosen).eval()


def _logits(model: Any, tokens: Any) -> Any:
    import torch

    with torch.inference_mode():
        return model(tokens.to(model.device), use_cache=False).logits.float().cpu()


def _loss(report: Report, model: Any, evaluation: LastEvaluation, name: str) -> float:
    """Megatron's validation loss: the sum over all tokens that count, divided by their number."""
    import torch

    total = weight = 0.0
    batches = list(read_samples(report.run, evaluation))
    for done, (tokens, labels, mask) in enumerate(batches, 1):
        logits = _logits(model, torch.from_numpy(tokens).long())
        wanted = torch.from_numpy(labels).long().flatten()
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted, reduction="none")
        counted = torch.from_numpy(mask).flatten()
        total += float((losses * counted).sum(dtype=torch.float64))
        weight += float(counted.sum(dtype=torch.float64))
        report.progress(f"loss of the {name} model", done, len(batches), "batches")
    return total / weight


def _ask_megatron(report: Report, checkpoint: Path, prompts: list[Any], precision: str) -> list[Any]:
    """Logits of the prompts by the Megatron checkpoint; on every rank."""
    from engine.workers import model

    bridge = model.make_bridge(report, with_weights=False)
    config = model.config_of(bridge)
    layout = profile.layout_for(report.plan.layout, report.world_size, config.num_local_experts)
    with model.joined_ranks(report):
        report.phase("running the checkpoint in Megatron")
        megatron = model.build(report, bridge, layout, with_weights=False, precision=precision)
        finetune_lora.load(report, megatron, checkpoint)
        return [_forward(megatron, prompt, layout, config.vocab_size) for prompt in prompts]


def _forward(megatron: list[Any], tokens: Any, layout: Layout, vocabulary_size: int) -> Any:
    import torch
    from megatron.core.pipeline_parallel import get_forward_backward_func

    for chunk in megatron:
        chunk.eval()
    device = next(megatron[0].parameters()).device
    tokens = tokens.to(device)
    positions = torch.arange(tokens.shape[1], device=device)[None]

    def step(_data: Any, chunk: Any) -> tuple[Any, Any]:
        output = chunk(input_ids=tokens, position_ids=positions, attention_mask=None)
        return output, lambda output, non_loss_data: output.float()

    with torch.inference_mode():
        collected = get_forward_backward_func()(
            forward_step_func=step,
            data_iterator=[None] * len(megatron) if len(megatron) > 1 else None,
            model=megatron,
            num_microbatches=1,
            seq_length=tokens.shape[1],
            micro_batch_size=1,
            forward_only=True,
            collect_non_loss_data=True,
        )
    # The last stage has them; ranks are numbered stage by stage.
    source = (layout.pp - 1) * (layout.world_size // layout.pp)
    shape = (1, tokens.shape[1], vocabulary_size)
    logits = collected[0].contiguous() if collected else torch.empty(shape, device=device)
    torch.distributed.broadcast(logits, src=source)
    return logits.cpu()


def _compare(expected: list[Any], found: list[Any]) -> Comparison:
    pairs = list(zip(expected, found, strict=True))
    same = sum(int((a.argmax(-1) == b.argmax(-1)).sum()) for a, b in pairs)
    return Comparison(
        difference=max(float((a - b).abs().max()) for a, b in pairs),
        largest=max(float(a.abs().max()) for a in expected),
        agreement=same / sum(a.shape[1] for a in expected),
    )


def _free() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


if __name__ == "__main__":
    sys.exit(run_worker("verify", work, sys.argv[1:]))
