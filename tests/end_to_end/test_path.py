"""The whole path with the real Megatron: every layout trains the same model, every export is the trained one."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from engine.data.manifest import Manifest
from engine.plan.layout import Layout
from engine.run.directory import RunDirectory, read_records
from tests.end_to_end import released
from tests.end_to_end.conftest import MakeCase
from tests.end_to_end.harness import Zygote, configure, copy_run, losses, make_run, result_of

LAYOUTS = (Layout(ep=2, dp=2), Layout(pp=2), Layout(tp=2))
ROUNDING = 2e-6
"""Losses of about 6 in fp32: the last printed digit, 5e-7, may differ by the order of a sum."""


def test_one_rank_from_text_to_a_verified_export(zygote: Zygote, trained: RunDirectory) -> None:
    result = zygote.run("verify", trained)
    assert result["logits_max_difference"] <= result["logits_tolerance"] < 0.01
    assert result["argmax_agreement"] == 1.0
    assert result["loss_difference"] <= result["loss_tolerance"] == 1e-4
    assert result["export_loss"] < result["initial_loss"] - 0.3
    assert result["first_training_loss"] == pytest.approx(losses(trained)[1])
    assert result["first_loss_difference"] <= 1e-5
    seen = json.loads((trained.path / "verification.json").read_text())
    assert [one["tokens"] for one in seen["logits"]] == [8, 24, 64]


def test_the_training_reports_what_it_did(trained: RunDirectory) -> None:
    attempt = next(trained.attempts.glob("*-train"))
    result = result_of(attempt)
    assert result["iteration"] == 8
    assert result["last_loss"] < result["first_loss"] - 0.3
    assert result["validation_loss"] < result["first_validation_loss"]
    records = [record for record in read_records(trained.metrics) if "loss" in record]
    assert [record["iteration"] for record in records] == list(range(1, 9))
    assert {
        "grad_norm", "learning_rate", "tokens_per_s", "tokens_per_s_per_gpu", "iteration_s", "consumed_samples",
        "skipped", "nan_iterations", "memory_gib", "load_balance", "load_balance_least",
    } <= records[-1].keys()  # fmt: skip
    # Two of four experts for each token: no one can have more than twice the mean.
    assert all(0 <= record["load_balance_least"] < 1 < record["load_balance"] <= 2 for record in records)
    assert records[-1]["consumed_samples"] == 64
    assert "tflops_per_gpu" not in records[-1]
    kinds = [(event["kind"], event.get("iteration")) for event in read_records(trained.events)]
    assert ("checkpoint", 4) in kinds and ("checkpoint", 8) in kinds
    progress = [event for event in read_records(trained.events) if event["kind"] == "progress"]
    assert all(0 <= event["done"] <= event["total"] for event in progress)
    assert {(event["step"], event["done"] == event["total"]) for event in progress} >= {
        ("prepare", True), ("train", True), ("export", True),
    }  # fmt: skip


def test_the_first_loss_is_that_of_guessing(trained: RunDirectory) -> None:
    assert losses(trained)[1] == pytest.approx(6.238, abs=0.1)  # ln(512)


@pytest.mark.parametrize("layout", [*LAYOUTS, Layout(tp=2, ep=2), Layout(pp=2, vpp=2)], ids=str)
def test_a_layout_trains_the_same_model(zygote: Zygote, trained: RunDirectory, case: MakeCase, layout: Layout) -> None:
    run = case(layout=layout)
    in_layout = layout in LAYOUTS
    if in_layout:
        # Conversion and verification may use the layout; elsewhere they take what one rank made.
        shutil.rmtree(run.converted)
        zygote.run("convert", run, ranks=2)
    zygote.run("train", run, ranks=2)
    assert losses(run) == pytest.approx(losses(trained), abs=ROUNDING)
    norms = [r["grad_norm"] for r in read_records(run.metrics) if "grad_norm" in r]
    one_rank = [r["grad_norm"] for r in read_records(trained.metrics) if "grad_norm" in r]
    assert norms == pytest.approx(one_rank, rel=2e-5)
    # Each step may have as many ranks as the training, or one.
    zygote.run("export", run, ranks=1 if in_layout else 2)
    result = zygote.run("verify", run, ranks=2 if in_layout else 1)
    assert result["argmax_agreement"] == 1.0
    assert result["logits_max_difference"] < 1e-5


def test_bf16_is_exported_as_bf16_and_verified_in_fp32(zygote: Zygote, tmp_path: Path) -> None:
    run = make_run(tmp_path, "bf16", {"training.precision": "bf16"})
    for step in ("prepare", "convert", "train", "export"):
        zygote.run(step, run)
    assert json.loads((run.export / "config.json").read_text())["dtype"] == "bfloat16"
    result = zygote.run("verify", run)
    assert result["logits_max_difference"] < 1e-4
    assert result["loss_difference"] < result["loss_tolerance"]


def test_the_released_format_goes_all_the_way(zygote: Zygote, tmp_path: Path) -> None:
    """MXFP4 in, bf16 out, every expert there; Bridge's own export leaves them out of such a model."""
    import numpy

    bf16 = {"training.precision": "bf16"}
    tiny = make_run(tmp_path, "tiny", bf16)
    zygote.run("prepare", tiny)
    released.make(tiny.model, tmp_path / "released")
    standing_still = {"training.learning_rate": 0.0, "training.iterations": 2, "training.warmup_iterations": 0}
    model = {"model.name": "custom", "model.path": str(tmp_path / "released"), "data.source": "mock"}
    run = make_run(tmp_path, "run", {**bf16, **standing_still, **model})
    for step in ("prepare", "convert", "train", "export"):
        zygote.run(step, run)
    before, after = (released.read(path / "model.safetensors") for path in (tmp_path / "released", run.export))
    for layer in range(4):
        for part in ("gate_up_proj", "down_proj"):
            name = f"model.layers.{layer}.mlp.experts.{part}"
            assert numpy.array_equal(released.as_floats(after, name), released.dequantised(before, name)), name
    assert after["lm_head.weight"] == before["lm_head.weight"]
    assert "quantization_config" not in json.loads((run.export / "config.json").read_text())
    assert (run.export / "tokenizer.json").exists()
    assert zygote.run("verify", run)["argmax_agreement"] == 1.0


def test_full_recomputation_changes_nothing(zygote: Zygote, trained: RunDirectory, case: MakeCase) -> None:
    run = case({"training.recompute": "full"})
    zygote.run("train", run)
    assert losses(run) == losses(trained)


def test_pretraining_starts_from_random_weights(zygote: Zygote, trained: RunDirectory, case: MakeCase) -> None:
    run = case({"training.goal": "pretrain", "training.iterations": 4})
    shutil.rmtree(run.converted)
    zygote.run("train", run)
    assert losses(run)[1] != pytest.approx(losses(trained)[1], abs=1e-4)
    zygote.run("export", run)
    zygote.run("verify", run)


def test_training_starts_from_a_checkpoint_of_another_run(
    zygote: Zygote, trained: RunDirectory, case: MakeCase
) -> None:
    run = case({"model.checkpoint": str(trained.checkpoints)})
    zygote.run("train", run)
    assert losses(run)[1] < losses(trained)[1] - 0.3


@pytest.mark.parametrize("source", ["mock", "prefix", "text"])
def test_other_data(zygote: Zygote, prepared: RunDirectory, case: MakeCase, source: str, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog.\n" * 200)
    path = {"mock": "", "prefix": str(prepared.data / "train"), "text": str(text)}[source]
    run = case({"data.source": source, "data.path": path, "data.validation_percent": 20, "training.iterations": 4})
    result = zygote.run("prepare", run)
    assert (result["train_tokens"] > 0 and result["validation_tokens"] > 0) or source == "mock"
    zygote.run("train", run)
    zygote.run("export", run)
    zygote.run("verify", run)


def test_preparing_twice_gives_the_same_files(zygote: Zygote, prepared: RunDirectory, case: MakeCase) -> None:
    run = case()
    (run.data / "left over").touch()
    zygote.run("prepare", run)
    # The same inputs: what is there is used again.
    assert (run.data / "left over").exists()
    with (run.data / "train.bin").open("ab") as file:
        file.write(b"x")
    zygote.run("prepare", run)
    assert not (run.data / "left over").exists()
    assert dataclasses.replace(Manifest.load(run.data), notices=()) == Manifest.load(prepared.data)
    for name in ("data/train.bin", "data/validation.idx", "model/model.safetensors"):
        assert (run.path / name).read_bytes() == (prepared.path / name).read_bytes(), name
    assert not list(run.path.glob(".*"))


def test_a_run_directory_can_be_moved(zygote: Zygote, trained: RunDirectory, tmp_path: Path) -> None:
    for config in trained.path.rglob("run_config.yaml"):
        assert str(trained.path.parent) not in config.read_text()
    moved = copy_run(trained, tmp_path, "elsewhere")
    shutil.rmtree(moved.export)
    zygote.run("export", moved)
    zygote.run("verify", moved)
    configure(moved, {"training.iterations": 10, "training.decay_iterations": 8})
    assert zygote.run("train", moved)["iteration"] == 10


def test_torchrun_starts_a_worker(prepared: RunDirectory, case: MakeCase) -> None:
    """Nothing is imported beforehand and no variable is set: the command as a person would type it."""
    run = case()
    shutil.rmtree(run.converted)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "-m", "engine.workers.convert", str(run.path)], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert result_of(run.attempt(0, "convert"))["parameters"] == 349_808
    assert (run.converted / "latest_checkpointed_iteration.txt").read_text() == "0"
