"""A checkpoint that would call something when Megatron unpickles it is told from one that would not."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest

from engine.checkpoints import danger
from engine.plan.layout import Layout
from engine.plan.plan import Plan, PlannedStep
from engine.run import launch_checks
from engine.settings import Settings


class Evil:
    def __reduce__(self):  # type: ignore[no-untyped-def]
        return os.system, ("touch /tmp/hit",)


def _save(path: Path, value: object, protocol: int, *, zipped: bool) -> None:
    data = pickle.dumps(value, protocol)
    if not zipped:
        path.write_bytes(data)
        return
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(("name", "zipped"), [(".metadata", False), ("common.pt", True), ("train_state.pt", False)])
def test_what_a_pickle_calls_is_named(protocol: int, name: str, zipped: bool, tmp_path: Path) -> None:
    directory = tmp_path / "iter_0000001"
    directory.mkdir()
    _save(directory / name, OrderedDict(a=[1, "x"], b={"c"}), protocol, zipped=zipped)
    assert danger.foreign_names(tmp_path) == []
    _save(directory / name, {"a": 1, "b": [Evil(), Evil()]}, protocol, zipped=zipped)
    assert danger.foreign_names(tmp_path) == [f"iter_0000001/{name}: {os.system.__module__}.system"]


def test_nonsense_is_no_danger(tmp_path: Path) -> None:
    (tmp_path / ".metadata").write_bytes(b"\x80\x04no pickle")
    (tmp_path / "common.pt").write_bytes(b"PK\x03\x04 no zip")
    assert danger.foreign_names(tmp_path) == []


CALLS = ("torch.hub load", "torch.storage _load_from_bytes", "builtins eval", "megatron.core.utils run",
         "functools partial", "subprocess Popen")  # fmt: skip


@pytest.mark.parametrize("module_and_name", CALLS)
def test_a_library_s_own_functions_are_no_excuse(module_and_name: str, tmp_path: Path) -> None:
    module, name = module_and_name.split()
    (tmp_path / "x.pt").write_bytes(f"c{module}\n{name}\n.".encode())
    assert danger.foreign_names(tmp_path) == [f"x.pt: {module}.{name}"]


def test_it_is_refused_before_the_start(tmp_path: Path) -> None:
    plan = Plan(device="cpu", layout=Layout(), ranks_per_node=1, nodes=1,
                steps=(PlannedStep(name="train", ranks_per_node=1, why="a test"),))  # fmt: skip
    settings = Settings().with_values({"model.name": "tiny", "model.checkpoint": str(tmp_path)})
    keys = [finding.key for finding in launch_checks.check(settings, plan)]
    assert "checkpoint.pickle" not in keys
    _save(tmp_path / ".metadata", Evil(), 4, zipped=False)
    [found] = [one for one in launch_checks.check(settings, plan) if one.key == "checkpoint.pickle"]
    assert found.severity == "error" and not found.ignorable and "system" in found.what
