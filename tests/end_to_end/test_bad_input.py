"""What a person can get wrong is refused with the value, the limit and the next thing to try."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from engine.plan.layout import Layout
from engine.run.directory import RunDirectory
from tests.end_to_end.conftest import MakeCase
from tests.end_to_end.harness import Zygote, configure, error_of

EP2 = Layout(ep=2, dp=2)


@pytest.mark.parametrize(
    ("changes", "layout", "ranks", "kind", "says"),
    [
        (
            {"training.warmup_iterations": 8},
            Layout(),
            1,
            "SettingsError",
            "training.warmup_iterations is 8; it must be less than the 8 iterations",
        ),
        ({"training.global_batch": 6}, EP2, 2, "SettingsError", "6 is no multiple of"),
        ({}, EP2, 1, "PlanError", "needs 2 ranks; 1 were started"),
        ({"training.recompute": "moe"}, Layout(), 1, "PlanError", "recompute = moe"),
        (
            {"model.checkpoint": "/nowhere"},
            Layout(),
            1,
            "SettingsError",
            "there is no Megatron checkpoint in /nowhere",
        ),
    ],
)
def test_training_refuses(
    zygote: Zygote,
    case: MakeCase,
    changes: dict[str, object],
    layout: Layout,
    ranks: int,
    kind: str,
    says: str,
) -> None:
    run = case(changes, layout)
    _assert_refused(zygote, "train", run, kind, says, ranks)
    assert not run.checkpoints.exists()


def test_training_refuses_data_that_was_not_prepared(zygote: Zygote, case: MakeCase) -> None:
    run = case()
    (run.data / "manifest.json").unlink()
    _assert_refused(zygote, "train", run, "SettingsError", "manifest.json cannot be used")


def test_training_refuses_to_continue_what_was_not_converted(zygote: Zygote, case: MakeCase) -> None:
    run = case()
    shutil.rmtree(run.converted)
    _assert_refused(zygote, "train", run, "SettingsError", "there is no Megatron checkpoint in converted")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data.path": "{here}/nowhere"}, "there is no file or directory"),
        ({"data.path": "{here}/empty"}, "{here}/empty is empty"),
        ({"data.path": "{here}/chats.jsonl"}, "and the goal continue learns text"),
        ({"data.path": "{here}/latin.txt"}, "latin.txt, line 2: byte 0xe9 is not UTF-8"),
        ({"data.path": "{here}/bad.jsonl"}, "bad.jsonl, line 2: its 'words' is a number, not text"),
        ({"data.source": "prefix", "data.path": "{here}/nowhere"}, "there is no {here}/nowhere.idx"),
        (
            {"data.tokenizer": "{here}/none", "data.path": "{here}/good.txt"},
            "there is no tokenizer {here}/none/tokenizer.json",
        ),
    ],
)
def test_preparation_refuses(
    zygote: Zygote, case: MakeCase, tmp_path: Path, changes: dict[str, str], says: str
) -> None:
    (tmp_path / "empty").write_text("")
    (tmp_path / "chats.jsonl").write_text('{"messages": [{"role": "user", "content": "x"}]}\n')
    (tmp_path / "good.txt").write_text("some text\n" * 20)
    (tmp_path / "latin.txt").write_bytes(b"one\ncaf\xe9\n")
    (tmp_path / "none").mkdir()
    (tmp_path / "bad.jsonl").write_text('{"words": "x"}\n{"words": 1}\n')
    chosen = {key: value.format(here=tmp_path) for key, value in changes.items()}
    run = case({"data.source": "text", **chosen})
    before = (run.data / "manifest.json").read_bytes()
    kind = "NotFoundError" if says.startswith("there is no") and "prefix" not in changes.values() else "SettingsError"
    _assert_refused(zygote, "prepare", run, kind, says.format(here=tmp_path))
    assert (run.data / "manifest.json").read_bytes() == before


def test_tokens_of_another_vocabulary_are_refused(zygote: Zygote, case: MakeCase, prepared: RunDirectory) -> None:
    import numpy

    run = case()
    prefix = run.path / "foreign"
    for ending in ("bin", "idx"):
        shutil.copyfile(prepared.data / f"train.{ending}", f"{prefix}.{ending}")
    ids = numpy.memmap(f"{prefix}.bin", dtype=numpy.uint16, mode="r+")
    ids[1000] = 512
    ids.flush()
    configure(run, {"data.source": "prefix", "data.path": str(prefix)})
    _assert_refused(zygote, "prepare", run, "SettingsError", "the token id 512; the model knows 0 to 511")


def test_a_split_without_documents_is_refused(zygote: Zygote, case: MakeCase, prepared: RunDirectory) -> None:
    """Megatron would search it for samples for ever."""
    run = case({"data.source": "prefix", "data.path": str(prepared.data / "train"), "data.validation_percent": 1})
    _assert_refused(zygote, "prepare", run, "SettingsError", "1 % of 11 documents leaves one side without any")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rope_parameters": {"factor": 16.0}}, "factor = 16.0, not 32.0"),
        ({"layer_types": ["full_attention"] * 4}, "layer_types"),
        ({"swiglu_limit": 5.0}, "swiglu_limit = 5.0, not 7.0"),
        ({"model_type": "llama"}, "the model family 'llama'"),
    ],
)
def test_a_model_that_bridge_would_misread_is_refused(
    zygote: Zygote, case: MakeCase, change: dict[str, object], says: str
) -> None:
    run = case()
    file = run.model / "config.json"
    config = json.loads(file.read_text())
    for key, value in change.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    file.write_text(json.dumps(config))
    _assert_refused(zygote, "convert", run, "SettingsError", says)
    assert run.converted.exists()


def test_a_model_directory_without_a_config_is_refused(zygote: Zygote, case: MakeCase, tmp_path: Path) -> None:
    run = case({"model.name": "custom", "model.path": str(tmp_path)})
    _assert_refused(zygote, "convert", run, "SettingsError", "there is no config.json")


@pytest.mark.parametrize(
    ("worker", "source", "says"),
    [
        ("prepare", "sample", "the tokenizer 'openai/gpt-oss-20b' is neither a directory here nor to be had"),
        ("convert", "mock", "openai/gpt-oss-20b cannot be had"),
    ],
)
def test_a_model_that_cannot_be_downloaded_is_refused(
    zygote: Zygote, case: MakeCase, worker: str, source: str, says: str
) -> None:
    run = case({"model.name": "gpt-oss-20b", "data.source": source})
    _assert_refused(zygote, worker, run, "NotFoundError" if worker == "prepare" else "SettingsError", says)


def test_export_needs_a_checkpoint(zygote: Zygote, case: MakeCase) -> None:
    _assert_refused(zygote, "export", case(), "StepFailed", "there is no whole checkpoint")


def test_a_directory_that_is_no_run_is_refused(zygote: Zygote, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "no run")
    run.attempts.mkdir(parents=True)
    _assert_refused(zygote, "train", run, "NotFoundError", "there is no file")


def _assert_refused(zygote: Zygote, worker: str, run: RunDirectory, kind: str, says: str, ranks: int = 1) -> None:
    started = zygote.start(worker, run, ranks)
    assert 1 in zygote.wait(started)
    error = error_of(started.attempt)
    assert error["error"] == kind, error["traceback"]
    assert says in error["message"]
    assert error["hint"]
