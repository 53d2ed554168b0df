"""The shape of the code: what may import what, and how long a module may be."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "megatron", "transformers", "numpy", "tokenizers", "safetensors"}
MAX_LINES = 600


def _imported_by(code: str) -> set[str]:
    """Top-level modules in sys.modules after `code` ran in a fresh interpreter."""
    listing = code + "\nimport sys; print('\\n'.join({name.partition('.')[0] for name in sys.modules}))"
    out = subprocess.run([sys.executable, "-c", listing], capture_output=True, text=True, check=True)
    return set(out.stdout.split())


def _engine_modules() -> list[str]:
    paths = [path for path in (ROOT / "engine").rglob("*.py") if "workers" not in path.parts]
    return sorted(".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths if path.stem != "__init__")


def test_the_engine_loads_no_training_library_and_no_interface():
    code = "import " + ", ".join(_engine_modules())
    assert not _imported_by(code) & (HEAVY | {"textual", "rich", "questionary"})


def test_help_loads_no_interface():
    code = "from engine.cli import parser; parser.build().format_help()"
    assert not _imported_by(code) & (HEAVY | {"textual", "rich", "questionary", "psutil", "pynvml"})


def test_the_screens_load_no_training_library():
    modules = [path for path in (ROOT / "gptoss_tui").rglob("*.py") if path.stem not in ("__init__", "__main__")]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in modules]
    assert not _imported_by("import " + ", ".join(names)) & HEAVY


def test_workers_need_nothing_that_a_training_container_lacks():
    """Read without running: heavy libraries are not installed beside every test run."""
    light = {"psutil", "pynvml", "platformdirs", "tomli_w", "questionary", "textual", "rich", "shtab"}
    for path in (ROOT / "engine" / "workers").rglob("*.py"):
        for line in path.read_text().splitlines():
            words = line.split()
            if words[:1] in (["import"], ["from"]):
                assert words[1].partition(".")[0] not in light, f"{path.name}: {line}"


@pytest.mark.parametrize("package", ["engine", "gptoss_tui"])
def test_no_module_is_too_long(package):
    long = {
        str(path.relative_to(ROOT)): count
        for path in (ROOT / package).rglob("*.py")
        if (count := len(path.read_text().splitlines())) > MAX_LINES
    }
    assert not long
