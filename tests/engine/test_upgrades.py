"""Runs and settings of every version that was released open; what a newer one wrote is refused and left alone.

A change of a format keeps the directory of the version before and adds its own under tests/captured/versions.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from engine import settings, settings_file
from engine.errors import EngineError
from engine.plan import plan
from engine.run import state
from engine.run.directory import RunDirectory

VERSIONS = sorted((Path(__file__).parents[1] / "captured" / "versions").iterdir())


@pytest.mark.parametrize("directory", VERSIONS, ids=lambda path: path.name)
def test_a_run_of_that_version_opens(directory: Path):
    run = RunDirectory(directory)
    assert run.read_state().find_step("train").status is state.Status.STOPPED
    assert run.read_plan().step("train") is not None
    assert settings_file.load(run.settings).model.name == "tiny"


def test_the_present_version_is_among_them():
    newest = VERSIONS[-1]
    written = {json.loads((newest / name).read_text())["version"] for name in ("state.json", "plan.json")}
    assert written == {state.VERSION} == {plan.VERSION}
    assert settings_file.load(newest / "settings.toml")
    assert f"version = {settings.VERSION}\n" in (newest / "settings.toml").read_text()


def test_settings_that_were_added_since_get_their_default():
    text = (VERSIONS[0] / "settings.toml").read_text()
    shortened = "\n".join(line for line in text.splitlines() if not line.startswith("hang_s"))
    assert shortened != text
    path = VERSIONS[0] / "settings.toml"
    assert settings_file.load(path).launch.hang_s == settings.Settings().launch.hang_s


@pytest.mark.parametrize("name", ["state.json", "plan.json", "settings.toml"])
def test_a_newer_one_is_refused_politely(name: str, tmp_path: Path):
    shutil.copytree(VERSIONS[-1], tmp_path / "run")
    run = RunDirectory(tmp_path / "run")
    path = run.path / name
    newer = path.read_text().replace('"version": 1', '"version": 2').replace("version = 1\n", "version = 2\n", 1)
    assert newer != path.read_text()
    path.write_text(newer)
    with pytest.raises(EngineError, match="newer gptoss") as refused:
        run.read_state(), run.read_plan(), settings_file.load(run.settings)
    assert refused.value.hint == "upgrade gptoss"
    assert path.read_text() == newer
