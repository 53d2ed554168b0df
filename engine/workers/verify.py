"""The verify step: is the exported model the trained one?

Two independent implementations compute the same thing: transformers with the exported files,
Megatron with the checkpoint. Every tensor, bit for bit; the logits of the same tokens, within and
beyond the sliding window, a layer in memory at a time; the loss over exactly the tokens of the
last evaluation; and, where the training began with the Hugging Face weights, the loss of its first
iteration. What was seen stays in the run as `verification.json`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.errors import EngineError, StepFailed
from engine.paths import write_atomic
from engine.workers import finetune_lora, losses
from engine.workers.evaluation import LastEvaluation, read_first, read_last, read_of
from engine.workers.export import newest_checkpoint
from engine.workers.report import Report, run_worker
from engine.workers.source import hugging_face_directory

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
    measured: dict[str, float] = {}
    if not problems:
        measured = _losses(report, evaluation)
        problems += _loss_problems(measured, LOSS_TOLERANCE[report.settings.training.precision])
    write_atomic(
        report.run.path / "verification.json",
        json.dumps({**found, **measured, "problems": problems, "is_verified": not problems}, indent=1) + "\n",
    )
    refuse(problems, "the exported model is not the trained one")
    return {**summary(found), **measured}


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
    [exported] = losses.losses(report, Path(report.run.export.name), [evaluation], "exported")
    found = {
        "megatron_loss": evaluation.loss,
        "export_loss": exported,
        "loss_difference": abs(exported - evaluation.loss),
        "loss_tolerance": LOSS_TOLERANCE[report.settings.training.precision],
    }
    first = _first_iteration(report)
    if first is None:
        return found
    report.phase("running the model that the training began with in transformers")
    origin = hugging_face_directory(report)
    found["initial_loss"], initial = losses.losses(report, origin, [evaluation, first], "initial")
    found["first_training_loss"] = first.loss
    found["first_loss_difference"] = abs(initial - first.loss)
    return found


def _first_iteration(report: Report) -> LastEvaluation | None:
    """The first iteration's samples and loss, where its weights were the Hugging Face ones and it is wanted."""
    settings = report.settings
    is_wanted = settings.model.name == "tiny" or settings.output.verify_first_loss
    began_with_them = settings.training.goal != "pretrain" and not settings.model.checkpoint
    return read_first(report.run) if is_wanted and began_with_them else None


def _loss_problems(measured: Mapping[str, float], allowed: float) -> list[str]:
    """Written so that NaN, which is not above anything, is a problem too."""
    problems = []
    if not measured["loss_difference"] <= allowed:
        problems.append(
            f"the loss on the last evaluation's text is {measured['export_loss']:.6f}, "
            f"Megatron's was {measured['megatron_loss']:.6f}; allowed is a difference of {allowed:g}"
        )
    if "first_loss_difference" in measured and not measured["first_loss_difference"] <= allowed:
        problems.append(
            f"the first iteration's loss was {measured['first_training_loss']:.6f}, which is not that of the "
            f"Hugging Face weights: it differs by {measured['first_loss_difference']:.3g}, allowed is {allowed:g}"
        )
    return problems


if __name__ == "__main__":
    sys.exit(run_worker("verify", work, sys.argv[1:]))
