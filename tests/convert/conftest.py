"""What the conversion tests share: the processes with the original code, and the tiny checkpoints."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.convert import models

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
WITHOUT_TORCH = {"test_source.py"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test here but those of the source needs torch."""
    missing = any(importlib.util.find_spec(name) is None for name in ("torch", "megatron", "transformers"))
    for item in items:
        if HERE in item.path.parents and item.path.name not in WITHOUT_TORCH:
            item.add_marker(pytest.mark.engine)
            if missing:
                item.add_marker(pytest.mark.skip(reason="the training packages are not installed"))


class Judge:
    """A process with the original code: bridge_process.py or megatron_lm_process.py."""

    def __init__(self, module: str) -> None:
        self._module = module
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", f"tests.convert.{module}"],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self._answer()

    def ask(self, **question: str) -> dict[str, Any]:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        assert "error" not in answer, answer["error"]
        return answer

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line, f"{self._module} ended with {self._process.wait()}"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()


@pytest.fixture(scope="session")
def bridge() -> Iterator[Judge]:
    process = Judge("bridge_process")
    yield process
    process.close()


@pytest.fixture(scope="session")
def megatron_lm() -> Iterator[Judge]:
    if not os.environ.get("MEGATRON_LM_DIR") and importlib.util.find_spec("megatron.training") is None:
        pytest.skip("this megatron-core is without megatron.training; MEGATRON_LM_DIR may name a checkout")
    process = Judge("megatron_lm_process")
    yield process
    process.close()


type MakeSource = Callable[[str, int], Path]


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> MakeSource:
    """Gives a Hugging Face checkpoint by form and inner size; each is made once. Copy it, do not change it."""

    @cache
    def make(form: str = "bf16", ffn: int = models.SQUARE) -> Path:
        return models.make(tmp_path_factory.mktemp(f"{form}-{ffn}") / "model", form, ffn, shards=2)

    return make
