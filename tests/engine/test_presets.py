"""Presets: the shipped ones and the person's own, kept, compared, handed on and removed."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

from engine import presets
from engine.errors import SettingsError
from engine.options import Problem, check
from engine.presets import find, save, user_directory
from engine.settings import OPTIONS, Settings
from gptoss_tui.__main__ import main

SHIPPED = [preset.name for preset in presets.all_presets() if not preset.is_user]


@pytest.fixture(autouse=True)
def own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_preset_says_what_it_is_and_where_its_numbers_come_from(name: str) -> None:
    preset = find(name)
    assert preset.title != name and preset.summary.endswith(".")
    comments = [line for line in preset.path.read_text().splitlines() if line.startswith("# ")]
    assert len(comments) >= 2
    for key in OPTIONS:
        assert not isinstance(check(OPTIONS[key], preset.settings.value(key)), Problem)


def test_the_page_lists_every_preset() -> None:
    page = (Path(presets.__file__).parent.parent / "presets" / "README.md").read_text()
    assert [name for name in SHIPPED if f"| `{name}` |" not in page] == []


@pytest.mark.parametrize(
    ("gpus", "first"),
    [
        ([], ["rehearsal"]),
        (["H100 80GB HBM3"] * 8, ["20b-continue-8xh100", "120b-lora-8xh100"]),
        (["H100 80GB HBM3"], ["20b-lora-1xh100"]),
        (["H200"] * 8, ["20b-pretrain-8xh200"]),
        (["L40S"] * 2, ["rehearsal"]),
    ],
)
def test_what_suits_the_machine_comes_first(gpus: list[str], first: list[str]) -> None:
    ordered = presets.suited_first(presets.all_presets(), gpus)
    assert [preset.name for preset in ordered][: len(first)] == first
    assert sorted(preset.name for preset in ordered) == sorted(SHIPPED)


def test_a_saved_preset_is_found_and_holds_only_what_differs() -> None:
    save("mine", Settings().with_values({"training.iterations": 7}))
    preset = find("mine")
    assert preset.settings.training.iterations == 7
    assert set(preset.tables) == {"training"}
    assert preset.is_user


@pytest.mark.parametrize("name", ["", "../evil", "a b", "x" * 200, "-x"])
def test_a_preset_cannot_be_written_or_removed_anywhere_else(name: str) -> None:
    for act in (lambda: save(name, Settings()), lambda: presets.delete(name)):
        with pytest.raises(SettingsError, match="cannot name a preset"):
            act()
    assert not user_directory().exists()


def test_the_verbs_save_compare_share_and_delete(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--set", "training.seed=7", "--set", "data.source=text", "--set", "data.path=/home/me/text"]
    assert main(["presets", "save", "mine", "--from", "20b-sft-8xh100", "--title", "Mine", *words]) == 0
    assert main(["presets", "save", "mine"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(["presets", "diff", "mine", "20b-sft-8xh100", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "data.source": {"before": "sample", "after": "text"},
        "data.path": {"before": "", "after": "/home/me/text"},
        "training.seed": {"before": 1234, "after": 7},
    }
    shared = tmp_path / "for-you.toml"
    assert main(["presets", "share", "mine", str(shared)]) == 0
    assert "data.path names a place on this machine" in capsys.readouterr().err
    assert tomllib.loads(shared.read_text())["title"] == "Mine"
    assert main(["presets", "share", "mine", str(shared)]) == 2
    assert main(["presets", "save", "yours", "--from", str(shared)]) == 0
    assert find("yours").settings == find("mine").settings
    assert main(["presets", "delete", "mine"]) == 0
    assert main(["presets", "delete", "mine"]) == 4
    assert "yours are: yours" in capsys.readouterr().err
    assert main(["presets", "delete", "rehearsal"]) == 2
    assert "comes with gptoss" in capsys.readouterr().err


def test_the_list_marks_one_s_own(capsys: pytest.CaptureFixture[str]) -> None:
    save("mine", Settings())
    assert main(["presets", "--json"]) == 0
    listed = {one["name"]: one["is_user"] for one in json.loads(capsys.readouterr().out)}
    assert listed.pop("mine") is True and not any(listed.values())
    assert sorted(listed) == sorted(SHIPPED)
    assert main(["presets"]) == 0
    assert re.search(r"^mine +yours +mine$", capsys.readouterr().out, re.MULTILINE)
