"""The parts of the workers that need no torch: layouts, directories, records, manifests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.data.manifest import Manifest
from engine.errors import PlanError, SettingsError
from engine.plan.layout import Layout
from engine.run.directory import RunDirectory, append_line
from engine.workers import files, profile
from engine.workers.evaluation import read_last


@pytest.mark.parametrize(
    ("planned", "ranks", "expected"),
    [
        (Layout(ep=2, dp=2), 2, Layout(ep=2, dp=2)),
        (Layout(ep=2, dp=2), 1, Layout()),
        (Layout(tp=2, pp=4, ep=4, dp=2), 16, Layout(tp=2, pp=4, ep=4, dp=2)),
        (Layout(tp=2, pp=4, ep=4, dp=2), 8, Layout(ep=8, dp=8)),
        (Layout(tp=2, cp=2, dp=2), 8, Layout(tp=2, dp=4)),
        (Layout(pp=2, vpp=2), 2, Layout(pp=2)),
    ],
)
def test_a_step_uses_the_planned_layout_or_spreads_the_experts(planned: Layout, ranks: int, expected: Layout) -> None:
    layout = profile.layout_for(planned, ranks, experts=32)
    assert layout == expected
    assert layout.world_size == ranks


def test_a_number_of_ranks_that_fits_nothing_is_refused() -> None:
    with pytest.raises(PlanError, match="3 ranks fit neither"):
        profile.layout_for(Layout(dp=2), 3, experts=32)


def test_a_directory_is_replaced_whole(tmp_path: Path) -> None:
    final = tmp_path / "data"
    for content in ("first", "second"):
        made = files.partial(final)
        assert not made.exists()
        made.mkdir()
        (made / content).write_text(content)
        files.publish(made, final)
    assert [path.name for path in final.iterdir()] == ["second"]
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert files.size_bytes(tmp_path) == len("second")


def test_what_a_killed_attempt_left_is_cleared(tmp_path: Path) -> None:
    left = tmp_path / ".data.partial"
    left.mkdir()
    (left / "half").touch()
    assert files.partial(tmp_path / "data") == left
    assert not left.exists()


def test_a_manifest_comes_back(tmp_path: Path) -> None:
    manifest = Manifest(source="text", documents=3, train_tokens=7, validation_tokens=2, vocabulary_size=512)
    manifest.save(tmp_path)
    assert Manifest.load(tmp_path) == manifest


@pytest.mark.parametrize("content", [None, "", "{}", '{"version": 1, "other": 2}', "[]"])
def test_a_damaged_manifest_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(SettingsError, match="manifest.json cannot be used") as caught:
        Manifest.load(tmp_path)
    assert "prepare" in caught.value.hint


def test_the_last_evaluation(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert read_last(run) is None
    (tmp_path / "evaluation").mkdir()
    file = tmp_path / "evaluation" / "last.json"
    file.write_text('{"iteration": 8')
    assert read_last(run) is None
    file.write_text(json.dumps({"iteration": 8, "loss": 5.5, "files": ["a.npz"]}))
    last = read_last(run)
    assert last is not None
    assert (last.iteration, last.loss, last.files) == (8, 5.5, ("a.npz",))


def test_workers_import_nothing_heavy_before_their_log_is_open() -> None:
    """`report` is what a worker imports first."""
    import subprocess
    import sys

    code = "import engine.workers.report, sys; print(sorted({'torch', 'megatron', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("worker", ["prepare", "convert", "train", "export", "verify"])
def test_a_worker_module_is_light(worker: str) -> None:
    import subprocess
    import sys

    code = f"import engine.workers.{worker}, sys; print(sorted({{'torch', 'megatron', 'numpy'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_metric_lines_are_whole(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    append_line(file, {"iteration": 1})
    append_line(file, {"iteration": 2})
    assert [json.loads(line)["iteration"] for line in file.read_text().splitlines()] == [1, 2]
