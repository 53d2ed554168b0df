"""When an attempt is ended: the clockwork of the watchdog, of the room for a save, and of a time limit."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from engine.checkpoints import training
from engine.run import oversight, rotation, space
from engine.run.directory import RunDirectory
from engine.run.oversight import Oversight, stop_before
from engine.run.space import GIB, SpaceGuard
from engine.run.watchdog import HangWatch
from engine.settings import Settings


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path / "run")
    run.attempt(1, "train").mkdir(parents=True)
    return run


def _watch(run: RunDirectory, allowed_s: float = 100.0) -> HangWatch:
    return HangWatch(run, run.attempt(1, "train"), allowed_s, now=0.0)


def _silences(watch: HangWatch, *times: float) -> list[float | None]:
    return [watch.silence_s(t) for t in times]


def test_silence_is_allowed_for_a_while(run):
    assert _silences(_watch(run), 1, 90, 100, 110) == [None, None, None, 109]


def test_nothing_is_a_hang_when_nobody_wants_to_know(run):
    assert _silences(_watch(run, 0), 1e9) == [None]


def test_a_log_is_a_sign_of_life_until_records_come(run):
    watch, log = _watch(run), run.attempt(1, "train") / "rank-0.log"
    log.write_text("importing")
    assert _silences(watch, 90) == [None]
    log.write_text("still importing")
    assert _silences(watch, 180) == [None]
    watch.note_records(1, 200)
    assert _silences(watch, 205) == [None]
    log.write_text("NCCL WARN, again and again and again")
    assert _silences(watch, 310) == [105]


def test_a_checkpoint_that_grows_is_a_sign_of_life(run):
    watch = _watch(run)
    watch.note_records(1, 1)
    assert _silences(watch, 50) == [None]
    run.checkpoints.mkdir()
    (run.checkpoints / "part").write_bytes(b"1")
    assert _silences(watch, 140, 230) == [None, None]
    assert _silences(watch, 250) == [110]


def test_a_slow_pace_is_no_hang(run):
    watch = _watch(run)
    for number in range(5):
        watch.note_records(1, 60.0 * number)
    assert watch.limit_s == 600
    assert _silences(watch, 241, 241 + 500, 241 + 700) == [None, None, 700]


def test_many_records_at_once_tell_the_pace_of_each(run):
    watch = _watch(run)
    for number in range(5):
        watch.note_records(100, 1000.0 * number)
    assert watch.limit_s == 100


def test_what_waits_in_a_queue_waits_as_long_as_it_takes(run):
    (run.attempt(1, "train") / "slurm.job").write_text("7\n")
    watch = _watch(run)
    assert _silences(watch, 90, 1e6, 2e6) == [None, None, None]
    (run.attempt(1, "train") / "rank-0.json").write_text('{"rank": 0, "outcome": "running"}')
    assert _silences(watch, 2e6 + 10, 2e6 + 50, 2e6 + 200) == [None, None, 190]


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The free space of the disk, to be set; the real one is that of this machine."""
    disk = SimpleNamespace(gib=100.0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=int(disk.gib * GIB)))
    return disk


SAVES = {"model.name": "gpt-oss-20b", "training.checkpoint_interval": 10, "training.iterations": 100}


def _guard(run: RunDirectory, **values: object) -> SpaceGuard:
    return SpaceGuard(run, Settings().with_values({**SAVES, **values}))


def test_the_size_of_a_first_checkpoint_is_estimated():
    # 14 bytes for each of 20.9 billion parameters.
    assert 270 < space.checkpoint_bytes(Settings().with_values(SAVES)) / GIB < 280


def test_a_shortage_counts_when_the_save_is_near_and_it_lasts(run, free):
    guard = _guard(run)
    assert [guard.look(iteration, 60.0 * iteration) for iteration in range(1, 9)] == [None] * 8
    assert guard.look(9, 540.0) is None  # a first look
    short = guard.look(9, 543.0)
    assert short and "no room for the checkpoint of iteration 10" in short and "100.0 GiB are free" in short
    free.gib = 300
    assert guard.look(9, 544.0) is None


def test_the_last_save_is_at_the_last_iteration(run, free):
    guard = _guard(run, **{"training.iterations": 25})
    assert guard.look(24, 0.0) is None
    assert "of iteration 25" in (guard.look(24, 5.0) or "")


def test_a_save_that_is_under_way_is_not_judged(run, free):
    (run.checkpoints / "iter_0000010").mkdir(parents=True)
    guard = _guard(run)
    assert [guard.look(19, t) for t in (0.0, 5.0, 10.0)] == [None] * 3


class Disk:
    """A disk on which the listed directories take room; what is removed gives it back."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, total_gib: float, taken_gib: dict[Path, float]) -> None:
        self.total_gib, self.taken_gib = total_gib, taken_gib
        for path in taken_gib:
            path.mkdir(parents=True, exist_ok=True)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=int(self.free_gib * GIB)))
        monkeypatch.setattr(training, "size_bytes", lambda path: int(taken_gib.get(path, 0) * GIB))
        monkeypatch.setattr(training, "defect", lambda path, needed: None if path in taken_gib else "damaged")

    @property
    def free_gib(self) -> float:
        return self.total_gib - sum(size for path, size in self.taken_gib.items() if path.exists())


def _checkpoints(run: RunDirectory, *iterations: int, each_gib: float = 273.0) -> dict[Path, float]:
    return {training.directory(run.checkpoints, iteration): each_gib for iteration in iterations}


def _saved(run: RunDirectory, iteration: int) -> None:
    """Let the checkpoint of `iteration` be the newest complete one."""
    (training.directory(run.checkpoints, iteration) / ".metadata").touch()
    (run.checkpoints / "latest_checkpointed_iteration.txt").write_text(str(iteration))


def _there(run: RunDirectory) -> list[int]:
    return training.iterations(run.checkpoints)


def test_a_damaged_checkpoint_makes_room(run, monkeypatch):
    aside = run.checkpoints / "damaged-iter_0000010"
    Disk(monkeypatch, 400, {aside: 300})
    guard = _guard(run)
    assert [guard.look(9, t) for t in (0.0, 5.0)] == [None, None]
    assert not aside.exists()


def test_no_more_checkpoints_go_than_room_is_needed(run, monkeypatch):
    Disk(monkeypatch, 4 * 273 + 200, _checkpoints(run, 10, 20, 30, 40))
    _saved(run, 40)
    guard = _guard(run, **{"output.keep_checkpoints": 4})
    assert [guard.look(49, t) for t in (0.0, 5.0)] == [None, None]
    assert _there(run) == [40, 30, 20]


def test_nothing_is_deleted_where_that_would_not_be_enough(run, monkeypatch):
    Disk(monkeypatch, 2 * 100 + 10, _checkpoints(run, 10, each_gib=50) | _checkpoints(run, 20, each_gib=150))
    _saved(run, 20)
    guard = _guard(run)
    assert guard.look(29, 0.0) is None
    assert "no room for the checkpoint of iteration 30" in (guard.look(29, 5.0) or "")
    assert _there(run) == [20, 10]


def test_a_training_that_has_saved_its_last_checkpoint_is_left_alone(run, monkeypatch):
    Disk(monkeypatch, 274, _checkpoints(run, 100))
    _saved(run, 100)
    guard = _guard(run)
    assert [guard.look(100, t) for t in (0.0, 5.0, 10.0)] == [None] * 3


def test_a_checkpoint_that_was_cut_short_says_nothing_of_the_next_one(run, monkeypatch):
    cut = training.directory(run.checkpoints, 10)
    cut.mkdir(parents=True)
    Disk(monkeypatch, 100, {})
    monkeypatch.setattr(training, "size_bytes", lambda path: 1)
    _saved(run, 10)
    guard = _guard(run)
    assert guard.look(11, 0.0) is None
    assert guard.need_bytes == space.checkpoint_bytes(Settings().with_values(SAVES))


def test_a_disk_that_does_not_answer_is_no_full_disk(run, monkeypatch):
    def away(path):
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(shutil, "disk_usage", away)
    guard = _guard(run)
    assert [guard.look(9, t) for t in (0.0, 5.0)] == [None, None]


@pytest.mark.parametrize(
    ("environ", "when"),
    [
        ({}, None),
        ({"SLURM_JOB_END_TIME": "soon"}, None),
        ({"SLURM_JOB_END_TIME": "10000"}, 10_000 - 360),
        ({"SLURM_JOB_END_TIME": "1400"}, 1200),  # half of what is left
        ({"SLURM_JOB_END_TIME": "900"}, 900),  # over already
    ],
)
def test_when_to_save_before_the_allocation_ends(environ, when):
    assert stop_before(300, 1000.0, environ) == when


MEGATRON = {**SAVES, "launch.route": "megatron-lm", "launch.megatron_lm": "/src", "output.export": False}


def test_what_bridge_does_not_train_is_rotated_too(run, monkeypatch):
    settings = Settings().with_values(MEGATRON)
    taken = _checkpoints(run, 10, 20, 30, 40)
    Disk(monkeypatch, 10_000, taken)
    health = SimpleNamespace(records=0, reached=None, space=SimpleNamespace(look=lambda *_: None))
    oversight = Oversight(run, run.attempt(1, "train"), settings, health, lambda *_: None)
    _saved(run, 40)
    assert oversight.look() is None
    assert _there(run) == [40, 30]
    bridge = Settings().with_values(SAVES)
    assert not Oversight(run, run.attempt(1, "train"), bridge, health, lambda *_: None)._rotates


def test_a_checkpoint_of_megatron_lm_lacks_nothing_without_the_files_of_bridge():
    assert set(training.needed("bridge")) - set(training.needed("megatron-lm")) == {"train_state.pt", "run_config.yaml"}


def test_megatron_lm_goes_on_from_the_newest_whole_checkpoint(run, monkeypatch):
    settings = Settings().with_values(MEGATRON)
    for iteration in (10, 20, 30):
        training.directory(run.checkpoints, iteration).mkdir(parents=True)
    _saved(run, 20)
    _saved(run, 10)
    monkeypatch.setattr(training, "defect", lambda path, needed: None if path.name == "iter_0000010" else "it is cut")
    assert rotation.settle(run, settings) == [
        "the checkpoint of iteration 30 was never finished; it is deleted",
        "the checkpoint of iteration 20 is damaged (it is cut); it is now damaged-iter_0000020",
    ]
    assert run.last_checkpoint() == 10
    assert rotation.is_ours_to_settle(settings)
    assert not rotation.is_ours_to_settle(settings.with_values({"launch.launcher": "slurm"}))


def test_who_was_held_up_takes_that_for_no_silence_of_the_ranks(run, monkeypatch):
    """As after a share that gave no answer, or a supervisor that was frozen."""
    now = 0.0
    monkeypatch.setattr(oversight, "time", SimpleNamespace(monotonic=lambda: now))
    settings = Settings().with_values({"launch.hang_s": 10})
    health = SimpleNamespace(records=0, reached=None, space=SimpleNamespace(look=lambda *_: None))
    told: list[str] = []
    watch = Oversight(run, run.attempt(1, "train"), settings, health, lambda kind, _: told.append(kind))
    for later in (0.5, 100.0, 100.5):
        now = later
        assert watch.look() is None
    while now < 112:
        now += 0.5
        verdict = watch.look()
    assert verdict is not None and "it hung" in verdict.message and told[0] == "hang"


@pytest.mark.parametrize("look_s", [2.5, 9.0])
def test_a_hang_is_noticed_though_every_look_is_slow(run, monkeypatch, look_s):
    """As on a share that is slow for good: nobody looks more often than every few seconds."""
    now = 0.0
    monkeypatch.setattr(oversight, "time", SimpleNamespace(monotonic=lambda: now))
    settings = Settings().with_values({"launch.hang_s": 10})
    health = SimpleNamespace(records=1, reached=None, space=SimpleNamespace(look=lambda *_: None))
    watch = Oversight(run, run.attempt(1, "train"), settings, health, lambda *_: None)

    def look() -> object:
        nonlocal now
        now += look_s
        return watch.look()

    for _ in range(20):  # it trains: nothing is held against it, however long it has been slow
        health.records += 1
        assert look() is None
    verdicts = [look() for _ in range(20)]
    first = next((number for number, verdict in enumerate(verdicts, start=1) if verdict), None)
    assert first is not None and 10 < first * look_s <= 2 * 10 + 2 * look_s
