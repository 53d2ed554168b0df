"""A checkpoint that would call something when Megatron unpickles it is told from one that would not."""

from __future__ import annotations

import _compat_pickle
import importlib.util
import io
import os
import pickle
import struct
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest

from engine.checkpoints import danger, inspect, pickles, torch_dist
from engine.errors import CheckpointError, EngineError
from engine.plan.layout import Layout
from engine.plan.plan import Plan, PlannedStep
from engine.run import launch_checks
from engine.settings import Settings
from tests.security import hostile


class Evil:
    def __reduce__(self):  # type: ignore[no-untyped-def]
        return os.system, ("touch /tmp/hit",)


def _save(path: Path, value: object, protocol: int, *, zipped: bool) -> None:
    data = pickle.dumps(value, protocol)
    path.write_bytes(hostile.zipped(data) if zipped else data)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(("name", "zipped"), [("x.pt", False), ("common.pt", True), ("train_state.pt", False)])
def test_what_a_pickle_calls_is_named(protocol: int, name: str, zipped: bool, tmp_path: Path) -> None:
    directory = tmp_path / "iter_0000001"
    directory.mkdir()
    _save(directory / name, {"a": OrderedDict(b={"c"}, d=b"", e=bytearray(b"xy"))}, protocol, zipped=zipped)
    assert danger.find(tmp_path) == []
    _save(directory / name, {"a": 1, "b": [Evil(), Evil()]}, protocol, zipped=zipped)
    assert danger.find(tmp_path) == [f"iter_0000001/{name}: {os.system.__module__}.system"]


FILES = sorted(hostile.files(Path("/x")))


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_looked_through_as_torch_reads_it(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(hostile.files(tmp_path)[name])
    found = danger.find(tmp_path)
    assert found and all(name in one for one in found)


def test_the_objects_of_an_index_are_looked_through(tmp_path: Path) -> None:
    for name in hostile.checkpoints(tmp_path, tmp_path):
        assert danger.find(tmp_path / name), name


@pytest.mark.engine
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
def test_torch_carries_every_one_of_them_out(tmp_path: Path) -> None:
    """Otherwise the two tests above would refuse what is harmless."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.security.hostile", str(tmp_path)],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    carried_out = set(done.stdout.split())
    assert carried_out == {*FILES, *(path.parent.name for path in tmp_path.glob("index-*/*metadata"))}, done.stderr


EVIL_CALL = hostile.call(Path("/x"))
UNKNOWABLE = {
    "nothing": b"",
    "no-pickle": b"\x80\x04no pickle",
    "no-zip": b"PK\x03\x04 no zip",
    "cut-off": hostile.zipped(hostile.BENIGN)[:-30],
    "cut-off-pickle": hostile.legacy(at=3, evil=b"\x80\x02}"),
    "torchscript": hostile.zipped(hostile.BENIGN, ("archive/constants.pkl", EVIL_CALL)),
    "stands-twice": hostile.zipped(hostile.BENIGN, ("Archive/data.pkl", EVIL_CALL)),
    "no-data": hostile.zipped(EVIL_CALL, name="archive/data.pickle"),
    "a-computed-name": hostile.zipped(b"\x80\x04cbuiltins\nstr\n(Vposix\ntRVsystem\n\x93."),
    "an-extension": hostile.zipped(b"\x80\x02\x82\x01."),
    "changes-a-class": hostile.zipped(b"\x80\x04cargparse\nNamespace\n(N}(Va\nNutb."),
    "a-module-s-source": hostile.legacy(at=3, evil=b"\x80\x02(Vmodule\ncargparse\nNamespace\nNNtQ."),
    "nested-and-computed": hostile.zipped(b"\x80\x04ctorch.storage\n_load_from_bytes\n(cbuiltins\nstr\n)RtR."),
    "asks-for-gigabytes": b"\x80\x02]r\xff\xff\xff\xff.",
}


@pytest.mark.parametrize("data", UNKNOWABLE.values(), ids=UNKNOWABLE)
def test_what_cannot_be_looked_through_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(data)
    found = danger.find(tmp_path)
    assert any("cannot be looked through" in one for one in found)


@pytest.mark.parametrize(
    "how",
    [
        {"transform_descriptors": ("stream.zstd",)},
        {"offset": -1},
        {"length": 10**12},
        {"before": hostile.emit(hostile.Made(hostile.BYTES, {}))[:-1] + b"}b}b0"},
    ],
)
def test_an_index_that_torch_might_read_otherwise_is_refused(how: dict[str, Any], tmp_path: Path) -> None:
    data = hostile.zipped(hostile.BENIGN)
    (tmp_path / "a.distcp").write_bytes(data)
    (tmp_path / ".metadata").write_bytes(hostile.indexed("a.distcp", len(data)))
    assert danger.find(tmp_path) == []
    (tmp_path / ".metadata").write_bytes(hostile.indexed("a.distcp", **{"length": len(data), **how}))
    assert danger.find(tmp_path)


def test_a_pickle_in_the_values_of_a_tensor_is_looked_through(tmp_path: Path) -> None:
    """Transformer Engine unpickles the bytes of its extra states."""
    for values, is_clean in ((b"", True), (hostile.BENIGN, True), (EVIL_CALL, False), (b"nonsense", False)):
        data = hostile.zipped(hostile.BENIGN, ("archive/data/0", values))
        (tmp_path / "a.distcp").write_bytes(data)
        (tmp_path / ".metadata").write_bytes(hostile.indexed("a.distcp", len(data), key="mlp._extra_state/shard_0_1"))
        assert (danger.find(tmp_path) == []) is is_clean


def test_a_link_is_followed_and_a_pipe_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "common.pt").write_bytes(EVIL_CALL)
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "round").symlink_to(checkpoint)
    assert danger.find(checkpoint) == []
    (checkpoint / "iter_0000001").symlink_to(tmp_path / "elsewhere")
    assert "iter_0000001/common.pt: posix.mkdir" in danger.find(checkpoint)
    os.mkfifo(checkpoint / "x.pt")
    assert "x.pt cannot be looked through: it is a pipe or a device" in danger.find(checkpoint)


@pytest.mark.parametrize("name", ["../elsewhere", "/etc", "iter_0000001/../../x", "", "\u0663", "9" * 5000])
def test_a_tracker_leads_nowhere_else(name: str, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / ".metadata").write_bytes(b"")
    (checkpoint / torch_dist.TRACKER).write_text(name)
    with pytest.raises(EngineError):
        torch_dist.find_iteration(checkpoint)


def test_a_pipe_in_the_place_of_an_index_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".metadata")
    with pytest.raises(EngineError, match="is a pipe"):
        torch_dist.read(tmp_path)


def test_no_name_becomes_another_one() -> None:
    """Old protocols rename what they import: a harmless name must not turn into one that is not."""
    for before, after in _compat_pickle.NAME_MAPPING.items():
        assert danger.is_harmless(*after) or not danger.is_harmless(*before), before
    for module, renamed in _compat_pickle.IMPORT_MAPPING.items():
        assert module == "__builtin__" or not danger.is_harmless(module, "OrderedDict"), (module, renamed)


def test_what_megatron_calls_safe_is_harmless() -> None:
    """megatron/core/safe_globals.py, 0.19: what its own checkpoints may hold."""
    registered = ("types SimpleNamespace", "pathlib PosixPath", "numpy.core.multiarray _reconstruct", "numpy ndarray",
                  "numpy dtype", "numpy.dtypes UInt32DType", "argparse Namespace", "_io BytesIO", "signal Signals",
                  "megatron.core.enums ModelType", "megatron.core.transformer.enums AttnBackend",
                  "megatron.core.optimizer.optimizer_config OptimizerConfig", "torch._C Generator",
                  "megatron.core.rerun_state_machine RerunState")  # fmt: skip
    assert [name for name in registered if not danger.is_harmless(*name.split())] == []


CALLS = ("torch.hub load", "torch float_power", "builtins eval", "builtins getattr", "megatron.core.utils run",
         "megatron.core.utils Popen", "torch.distributed.checkpoint.planner Enum", "functools partial",
         "subprocess Popen", "argparse Namespace.x", "pathlib Path.unlink")  # fmt: skip


@pytest.mark.parametrize("module_and_name", CALLS)
def test_a_library_s_own_functions_are_no_excuse(module_and_name: str, tmp_path: Path) -> None:
    module, name = module_and_name.split()
    (tmp_path / "x.pt").write_bytes(hostile.zipped(f"c{module}\n{name}\n.".encode()))
    assert danger.find(tmp_path) == [f"x.pt: {module}.{name}"]


def test_it_is_refused_before_the_start(tmp_path: Path) -> None:
    plan = Plan(device="cpu", layout=Layout(), ranks_per_node=1, nodes=1,
                steps=(PlannedStep(name="train", ranks_per_node=1, why="a test"),))  # fmt: skip
    settings = Settings().with_values({"model.name": "tiny", "model.checkpoint": str(tmp_path)})
    keys = [finding.key for finding in launch_checks.check(settings, plan)]
    assert "checkpoint.pickle" not in keys
    _save(tmp_path / "common.pt", Evil(), 4, zipped=False)
    [found] = [one for one in launch_checks.check(settings, plan) if one.key == "checkpoint.pickle"]
    assert found.severity == "error" and not found.ignorable and "system" in found.what


def test_a_bytearray_for_which_there_is_no_memory_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    hook = sys.excepthook
    for _ in range(50):
        # CPython counts the views of a bytearray that was never made, where one that had views lay before.
        views = [memoryview(bytearray(b"xy")) for _ in range(5)]
        del views
        with pytest.raises(CheckpointError):
            pickles.load(b"\x80\x05\x96" + struct.pack("<Q", 1 << 61) + b".", "x")
    assert capsys.readouterr().err == "" and sys.excepthook is hook


@pytest.mark.parametrize(("different", "is_refused"), [(1, False), (20_000, True)])
def test_a_pickle_may_repeat_a_name_and_not_name_everything(different: int, is_refused: bool) -> None:
    data = b"".join(b"ctorch\nname%d\n0" % (number % different) for number in range(20_000)) + b"N."
    for read in (lambda: pickles.load(data, "x"), lambda: pickles.rehearse(io.BytesIO(data), len(data))):
        if is_refused:
            with pytest.raises(CheckpointError, match="names more than 10,000 things"):
                read()
        else:
            read()


@pytest.mark.parametrize("name", ["", "..", "../a.distcp", "a\0.distcp", "\ud800.distcp"])
def test_an_index_names_files_beside_it(name: str, tmp_path: Path) -> None:
    (tmp_path / torch_dist.METADATA).write_bytes(hostile.indexed(name, 9))
    with pytest.raises(CheckpointError, match="is not understood"):
        torch_dist.read(tmp_path)
    assert any("cannot be looked through" in one for one in danger.find(tmp_path))
    assert inspect.inspect(tmp_path).problems


@pytest.mark.parametrize(
    "length",
    [-1, 1 << 63, 1 << 20_000, 1.5, float("inf"), "9", None, True],
    ids=["negative", "64 bits", "6,000 digits", "fraction", "infinite", "text", "nothing", "truth"],
)
def test_an_index_has_numbers_for_places(length: object, tmp_path: Path) -> None:
    (tmp_path / "a.distcp").write_bytes(b"x")
    (tmp_path / torch_dist.METADATA).write_bytes(hostile.indexed("a.distcp", length))  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="is not understood"):
        torch_dist.read(tmp_path)
    assert inspect.inspect(tmp_path).problems


def test_tuples_within_tuples_do_not_end_the_process() -> None:
    code = """
import io
from engine.checkpoints import pickles
for key in (b")" + b"\\x85" * 1_000_000, b")" + b"N\\x86" * 300_000):
    data = b"\\x80\\x02}" + key + b"Ns."
    pickles.load(data, "x")
    pickles.rehearse(io.BytesIO(data), len(data))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_more_tuples_than_a_stack_has_room_for_are_refused() -> None:
    data = b"\x80\x02}" + b")" + b"\x85" * (pickles.MAX_DEPTH + 1) + b"Ns."
    with pytest.raises(CheckpointError, match="within one another"):
        pickles.load(data, "x")
    with pytest.raises(CheckpointError, match="within one another"):
        pickles.rehearse(io.BytesIO(data), len(data))
