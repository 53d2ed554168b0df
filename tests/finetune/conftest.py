"""What the tests of fine-tuning share: one imported Megatron, one run after SFT, one after LoRA."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.plan.layout import Layout
from engine.run.directory import RunDirectory
from tests.end_to_end.conftest import zygote  # noqa: F401 - a fixture
from tests.end_to_end.harness import Zygote, configure, copy_run, make_run

HERE = Path(__file__).parent

CHATS: dict[str, object] = {
    "training.goal": "sft",
    "data.source": "sample",
    "data.max_megabytes": 0.0,
    "data.validation_percent": 10.0,
    "training.iterations": 50,
    "training.sequence_length": 96,
    "training.global_batch": 4,
    "training.micro_batch": 2,
    # A constant rate: another implementation needs no schedule to do the same.
    "training.schedule": "constant",
    "training.minimum_learning_rate": 3e-3,
    "training.warmup_iterations": 0,
    "training.adam_beta2": 0.98,
    "training.checkpoint_interval": 50,
    "training.evaluation_interval": 50,
}
LORA: dict[str, object] = {
    **CHATS,
    "training.goal": "lora",
    "finetune.lora_targets": "attention+experts+router",
    # The tiny router has four rows.
    "finetune.lora_rank": 4,
    "finetune.lora_alpha": 8,
}
SHORT: dict[str, object] = {
    "training.iterations": 4,
    "training.checkpoint_interval": 2,
    "training.evaluation_interval": 2,
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that drive workers need the training packages; the others do not."""
    missing = any(importlib.util.find_spec(name) is None for name in ("torch", "megatron", "transformers"))
    for item in items:
        if HERE in item.path.parents and "zygote" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.engine)
            if missing:
                item.add_marker(pytest.mark.skip(reason="the training packages are not installed"))


@pytest.fixture(scope="session")
def prepared(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:  # noqa: F811
    """A run with its chats and its converted model. Copy it, do not change it."""
    run = make_run(tmp_path_factory.mktemp("chats"), "prepared", CHATS)
    zygote.run("prepare", run)
    zygote.run("convert", run)
    return run


@pytest.fixture(scope="session")
def tuned(zygote: Zygote, prepared: RunDirectory, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:  # noqa: F811
    """A run after SFT and its export. Copy it, do not change it."""
    run = copy_run(prepared, tmp_path_factory.mktemp("sft"), "tuned")
    zygote.run("train", run)
    zygote.run("export", run)
    return run


@pytest.fixture(scope="session")
def adapted(zygote: Zygote, prepared: RunDirectory, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:  # noqa: F811
    """A run after LoRA and its export. Copy it, do not change it."""
    run = copy_run(prepared, tmp_path_factory.mktemp("lora"), "adapted")
    configure(run, LORA)
    zygote.run("train", run)
    zygote.run("export", run)
    return run


type MakeCase = Callable[..., RunDirectory]


@pytest.fixture
def case(prepared: RunDirectory, tmp_path: Path) -> MakeCase:
    """Makes a prepared run with other settings or another layout."""

    def make(changes: dict[str, Any], layout: Layout | None = None, name: str = "run") -> RunDirectory:
        run = copy_run(prepared, tmp_path, name)
        configure(run, {**CHATS, **changes}, layout)
        return run

    return make
