"""Which trainings are found in a place."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from engine.errors import NotFoundError, SettingsError
from engine.monitor.jobs import Job, find_jobs
from engine.monitor.sources import follow

CAPTURED = Path(__file__).parent.parent / "captured"
LOG = CAPTURED / "logs" / "megatron-bridge-0.6.2-last-rank.log"
EVENTS = next((CAPTURED / "rehearsal").glob("events.out.tfevents.*"))
WANDB = CAPTURED / "wandb" / "run-capture.wandb"


def put(place: Path, source: Path, age_s: float = 0.0) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, place)
    os.utime(place, (1_800_000_000 - age_s,) * 2)
    return place


def iterations(job: Job) -> int:
    batches = follow(job.open(), wait=lambda seconds: False)
    return len({record["iteration"] for batch in batches for record in batch if "loss" in record})


def test_the_logs_of_all_ranks_are_one_training(tmp_path):
    put(tmp_path / "rank-0.log", CAPTURED / "logs" / "megatron-bridge-0.6.2-first-rank.log")
    put(tmp_path / "rank-1.log", LOG)
    put(tmp_path / "install.log", CAPTURED / "README.md")
    [job] = find_jobs([str(tmp_path)])
    assert [path.name for path in job.logs] == ["rank-0.log", "rank-1.log"]
    assert iterations(job) == 60


@pytest.mark.parametrize(
    "names",
    [
        ["abc/attempt_0/0/stdout.log", "abc/attempt_0/1/stdout.log", "abc/attempt_0/1/stderr.log"],
        ["77_0_log.out", "77_1_log.out", "77_0_log.err"],
        ["slurm-77.out", "slurm-77.err"],
        ["node0_rank3.log", "node1_rank12.log"],
    ],
)
def test_what_launchers_call_the_logs_of_a_job(tmp_path, names):
    place = tmp_path / "abc" if names[0].startswith("abc") else tmp_path
    for name in names:
        put(tmp_path / name, LOG)
    [job] = find_jobs([str(place)])
    assert len(job.logs) == len(names)


def test_several_trainings_come_newest_first(tmp_path):
    put(tmp_path / "slurm-77.out", LOG, age_s=100)
    put(tmp_path / "slurm-78.out", LOG, age_s=10)
    put(tmp_path / "slurm-76.out", LOG, age_s=1000)
    assert [job.name for job in find_jobs([str(tmp_path)])] == ["slurm-78.out", "slurm-77.out", "slurm-76.out"]


def test_every_event_directory_and_offline_file_is_a_training(tmp_path):
    put(tmp_path / "tb" / "first" / EVENTS.name, EVENTS, age_s=10)
    put(tmp_path / "tb" / "second" / EVENTS.name, EVENTS)
    put(tmp_path / "wandb" / "offline-run-1-abc" / "run-abc.wandb", WANDB, age_s=20)
    put(tmp_path / "train.log", LOG)
    jobs = find_jobs([str(tmp_path)])
    assert [(job.name, job.kind) for job in jobs] == [
        ("tb/second", "TensorBoard"), ("tb/first", "TensorBoard"), ("wandb/offline-run-1-abc/run-abc.wandb", "W&B"),
    ]  # fmt: skip
    assert all(iterations(job) >= 12 for job in jobs)


def test_a_run_is_one_training_and_nothing_below_it_another(tmp_path):
    put(tmp_path / "night" / "metrics.jsonl", CAPTURED / "rehearsal" / "metrics.jsonl")
    put(tmp_path / "night" / "events.jsonl", CAPTURED / "rehearsal" / "events.jsonl")
    put(tmp_path / "night" / "tensorboard" / EVENTS.name, EVENTS)
    put(tmp_path / "night" / "attempts" / "03-train" / "rank-1.log", LOG)
    [job] = find_jobs([str(tmp_path)])
    assert (job.name, job.kind, [path.name for path in job.logs]) == ("night", "records", ["rank-1.log"])
    assert iterations(job) == 60


def test_files_that_were_named_are_one_training(tmp_path):
    first, second = put(tmp_path / "a.log", LOG), put(tmp_path / "b.log", LOG)
    [job] = find_jobs([str(first), str(second)])
    assert job.logs == (first, second)
    [event_job] = find_jobs([str(EVENTS)])
    assert event_job.kind == "TensorBoard" and iterations(event_job) == 60


def test_what_cannot_be_watched_is_refused(tmp_path):
    with pytest.raises(NotFoundError):
        find_jobs([str(tmp_path / "missing")])
    with pytest.raises(SettingsError, match="holds no log"):
        find_jobs([str(tmp_path)])
    with pytest.raises(SettingsError, match="among files"):
        find_jobs([str(LOG), str(tmp_path)])
