"""One process with Megatron in it answers the questions of every test here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests.plan_megatron.questions import ACTIVATIONS, PARAMETERS, VERDICTS, Question


@pytest.fixture(scope="session")
def ask() -> Callable[[Question], dict[str, Any]]:
    """Megatron's answer to a question of questions.py."""
    questions = (*PARAMETERS, *VERDICTS, *ACTIVATIONS)
    done = subprocess.run(
        [sys.executable, "-m", "tests.plan_megatron.facts"],
        input=json.dumps([question.to_json() for question in questions]),
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answers = json.loads(done.stdout)
    return lambda question: answers[questions.index(question)]
