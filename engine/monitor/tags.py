"""What trainers call their metrics in TensorBoard and W&B, in our names."""

from __future__ import annotations

import math

from engine.monitor.metrics import Record

_NAMES = {
    # Megatron-LM and Bridge (`training_log`).
    "lm loss": "loss",
    "lm loss validation": "validation_loss",
    "learning-rate": "learning_rate",
    "grad-norm": "grad_norm",
    "iteration-time": "iteration_s",
    "throughput": "tflops_per_gpu",
    "throughput/tflops/device": "tflops_per_gpu",
    "throughput/tokens/device": "",
    "load_balancing_loss": "load_balance_loss",
    # Ours.
    "load_balance": "load_balance",
    "load_balance_least": "load_balance_least",
    "loss-scale": "loss_scale",
    "batch-size": "global_batch",
    "params-norm": "params_norm",
    # NeMo.
    "reduced_train_loss": "loss",
    "val_loss": "validation_loss",
    "lr": "learning_rate",
    "grad_norm": "grad_norm",
    "train_step_timing in s": "iteration_s",
    "consumed_samples": "consumed_samples",
    "global_batch_size": "global_batch",
}
_GIGABYTES = "mem-max-allocated-gigabytes"


def put(record: Record, tag: str, value: float) -> None:
    """Write a scalar into `record` under our name; one that we do not know is left out."""
    if " vs samples" in tag:
        return  # the same value with another step
    name = _NAMES.get(tag)
    if tag == _GIGABYTES:
        name, value = "memory_gib", value * 1e9 / 2**30
    if name is None:
        return
    if math.isfinite(value):
        record[name] = int(value) if name in ("global_batch", "consumed_samples") else value
    elif name:
        before = record.get("not_finite")
        record["not_finite"] = f"{before},{name}" if before else name
