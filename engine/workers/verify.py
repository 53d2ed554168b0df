"""The verify step: is the exported model the trained one?

Two independent implementations compute the same thing: transformers with the exported files,
Megatron with the checkpoint. Every tensor, bit for bit; the logits of the same tokens, within and
beyond the sliding window, a layer in memory at a time; the loss over exactly the tokens of the
last evaluation; and, where the training began with the Hugging Face weights, the loss of its first
iteration. What was seen stays in the run as `verification.json`.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.errors import EngineError, StepFailed
from engine.paths import write_atomic
from engine.workers import finetune_lora
from engine.workers.evaluation import LastEvaluation, read_first, read_last, read_of, read_samples
from engine.workers.export import newest_checkpoint
from engine.workers.report import Report, run_worker
from engine.workers.source import hugging_face_source

LOSS_TOLERANCE = {"fp32": 1e-4, "bf16": 1e-2}
"""Largest difference allowed between the losses, in nats, by the format of the training.

fp32: 5e-7 was measured on the tiny model. bf16: 2e-5 there, and 1e-4 with transformers in bf16, too; other
kernels round otherwise.
"""
_SHOWN = 3


def work(report: Report) -> Mapping[str, Any]:
    """Compare, and fail with the numbers when a difference is above its tolerance."""
    if report.rank:
        return {}
    checkpoint = newest_checkpoint(report)
    evaluation = _matching_evaluation(report, checkpoint)
    base = finetune_lora.base_checkpoint(report) if finetune_lora.is_wanted(report.settings) else None
    found = compare(report, checkpoint, Path(report.run.export.name), base)
    problems = list(found["problems"])
    losses: dict[str, float] = {}
    if not problems:
        losses = _losses(report, evaluation)
        problems += _loss_problems(losses, LOSS_TOLERANCE[report.settings.training.precision])
    write_atomic(
        report.run.path / "verification.json",
        json.dumps({**found, **losses, "problems": problems, "is_verified": not problems}, indent=1) + "\n",
    )
    refuse(problems, "the exported model is not the trained one")
    return {**summary(found), **losses}


def compare(report: Report, checkpoint: Path, against: Path, base: Path | None = None) -> dict[str, Any]:
    """Tensors and logits of a Megatron checkpoint against a Hugging Face directory. Raises StepFailed."""
    report.phase(f"comparing {checkpoint} with {against}, tensor by tensor and in what they compute")
    try:
        if report.plan.device == "gpu":
            found = in_child(report, checkpoint, against, base)
        else:
            # This process has no GPU anyway, and may have imported Megatron.
            from engine.workers.stream.verify import verify

            found = verify(checkpoint, against, base=base, on_progress=_progress(report))
    except EngineError as error:
        raise StepFailed(f"{checkpoint} cannot be compared with {against}: {error.message}", error.hint) from error
    if "logits_skipped" in found:
        report.event("warning", found["logits_skipped"])
    return found


def summary(found: Mapping[str, Any]) -> dict[str, Any]:
    """The worst of a comparison, for the record of the step."""
    if "logits" not in found:
        return {"tensors_compared": found["tensors_compared"], "logits_skipped": found["logits_skipped"]}
    worst = max(found["logits"], key=lambda one: one["difference"] / one["allowed"])
    tokens = sum(one["tokens"] for one in found["logits"])
    return {
        "logits_max_difference": worst["difference"],
        "logits_tolerance": worst["allowed"],
        "logits_max_kl": max(one["kl"] for one in found["logits"]),
        "kl_tolerance": found["kl_allowed"],
        "argmax_agreement": sum(one["agreement"] * one["tokens"] for one in found["logits"]) / tokens,
        "tensors_compared": found["tensors_compared"],
    }


def refuse(problems: list[str], what: str) -> None:
    """Raise StepFailed when there are any."""
    if problems:
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        # The logits come last and say most.
        shown = problems[: _SHOWN - 1] + problems[-1:] if len(problems) > _SHOWN else problems
        raise StepFailed(
            f"{what}: {'; '.join(shown)}{more}",
            "do not use it; report it with the versions that gptoss doctor prints",
        )


def in_child(
    report: Report, checkpoint: Path, against: Path, base: Path | None, *, with_logits: bool = True
) -> dict[str, Any]:
    """The comparison in a process that sees no GPU: a layer at a time fits there, a whole model may not on one GPU."""
    job = {"job": "verify", "source": str(checkpoint), "against": str(against), "base": str(base or ""),
           "with_logits": with_logits, "threads": 0}  # fmt: skip
    argv = [sys.executable, "-m", "engine.workers.stream", json.dumps(job)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=_alone(os.environ)) as child:
        assert child.stdout is not None  # it is a pipe
        tell, answer = _progress(report), {}
        for line in child.stdout:
            answer = json.loads(line)
            if "progress" in answer:
                tell(answer["progress"], answer["done"], answer["total"])
    if "result" not in answer:
        message = answer.get("error", f"the comparison ended with code {child.returncode}; see this rank's log")
        raise StepFailed(message, answer.get("hint", ""))
    result: dict[str, Any] = answer["result"]
    return result


def _alone(environment: Mapping[str, str]) -> dict[str, str]:
    """Without what torchrun tells its ranks: the child is none of them. It finds `engine` from any directory."""
    ranks = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    path = os.pathsep.join(filter(None, (str(Path(__file__).resolve().parents[2]), environment.get("PYTHONPATH"))))
    return {**{name: value for name, value in environment.items() if name not in ranks}, "PYTHONPATH": path}


def _progress(report: Report) -> Any:
    return lambda message, done, total: report.progress(message, done, total, "parts")


def _matching_evaluation(report: Report, checkpoint: Path) -> LastEvaluation:
    evaluation = read_of(report.run, int(checkpoint.name.removeprefix("iter_")))
    if evaluation is None:
        last = read_last(report.run)
        at = f"iteration {last.iteration}" if last else "no iteration"
        raise StepFailed(
            f"the last evaluation was at {at}, the exported checkpoint is {checkpoint.name}",
            "run the train step to its end",
        )
    return evaluation


def _losses(report: Report, evaluation: LastEvaluation) -> dict[str, float]:
    """Losses by transformers alone beside those that Megatron reported."""
    report.phase("running the exported model in transformers")
    exported = _load_transformers(report.run.export.name, report)
    found = {"megatron_loss": evaluation.loss, "export_loss": _loss(report, exported, evaluation, "exported")}
    found["loss_difference"] = abs(found["export_loss"] - evaluation.loss)
    found["loss_tolerance"] = LOSS_TOLERANCE[report.settings.training.precision]
    del exported
    _free()
    first = _first_iteration(report)
    if first is None:
        return found
    report.phase("running the model that the training began with in transformers")
    initial = _load_transformers(hugging_face_source(report), report)
    found["initial_loss"] = _loss(report, initial, evaluation, "initial")
    found["first_training_loss"] = first.loss
    found["first_loss_difference"] = abs(_loss(report, initial, first, "initial") - first.loss)
    return found


def _first_iteration(report: Report) -> LastEvaluation | None:
    """The first iteration's samples and loss, where its weights were the Hugging Face ones and it is wanted."""
    settings = report.settings
    is_wanted = settings.model.name == "tiny" or settings.output.verify_first_loss
    began_with_them = settings.training.goal != "pretrain" and not settings.model.checkpoint
    return read_first(report.run) if is_wanted and began_with_them else None


def _loss_problems(losses: Mapping[str, float], allowed: float) -> list[str]:
    """Written so that NaN, which is not above anything, is a problem too."""
    problems = []
    if not losses["loss_difference"] <= allowed:
        problems.append(
            f"the loss on the last evaluation's text is {losses['export_loss']:.6f}, "
            f"Megatron's was {losses['megatron_loss']:.6f}; allowed is a difference of {allowed:g}"
        )
    if "first_loss_difference" in losses and not losses["first_loss_difference"] <= allowed:
        problems.append(
            f"the first iteration's loss was {losses['first_training_loss']:.6f}, which is not that of the "
            f"Hugging Face weights: it differs by {losses['first_loss_difference']:.3g}, allowed is {allowed:g}"
        )
    return problems


def _load_transformers(path: str, report: Report) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, Mxfp4Config

    from engine.workers.files import size_bytes

    # The weights are the same in either format; on a CPU fp32 is the faster and the sharper one.
    in_bf16 = report.plan.device == "gpu" and report.settings.training.precision == "bf16"
    chosen: dict[str, Any] = {"dtype": torch.bfloat16 if in_bf16 else torch.float32}
    if hasattr(AutoConfig.from_pretrained(path), "quantization_config"):
        chosen["quantization_config"] = Mxfp4Config(dequantize=True)
    if report.plan.device == "gpu":
        free, _ = torch.cuda.mem_get_info()
        # The other ranks have not begun: their GPUs are free for a model that one cannot hold.
        fits = "quantization_config" not in chosen and Path(path).is_dir() and size_bytes(Path(path)) < 0.8 * free
        chosen["device_map"] = "cuda:0" if fits else "auto"
    return AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager", **chosen).eval()


def _logits(model: Any, tokens: Any) -> Any:
    import torch

    with torch.inference_mode():
        return model(tokens.to(model.device), use_cache=False).logits.float().cpu()


def _loss(report: Report, model: Any, evaluation: LastEvaluation, name: str) -> float:
    """Megatron's loss: the sum over all tokens that count, divided by their number."""
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


def _free() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


if __name__ == "__main__":
    sys.exit(run_worker("verify", work, sys.argv[1:]))
