"""What the conversion tests share: one process with Megatron-Bridge, and the tiny checkpoints."""

from __future__ import annotations

import importlib.util
import json
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


class Bridge:
    """The process of bridge_process.py."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.convert.bridge_process"],
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
        assert line, f"the process with Megatron-Bridge ended with {self._process.wait()}"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()


@pytest.fixture(scope="session")
def bridge() -> Iterator[Bridge]:
    process = Bridge()
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
