"""The failure doctor on captured failures, on jobs of several ranks, and on what is no failure."""

from __future__ import annotations

import json
import os
import tomllib
from pathlib import Path

import pytest

from engine.monitor.cures import CURES, EDITED, Patient, propose
from engine.monitor.diagnose import Diagnosis, Text, catalogue, diagnose, diagnose_texts, read_logs
from engine.plan.layout import Layout
from engine.plan.plan import Plan
from engine.settings import Settings

CAPTURED = Path(__file__).parent.parent / "captured"
FAILURES = tomllib.loads((CAPTURED / "failures.toml").read_text())["failure"]
PLAN = Plan(device="gpu", layout=Layout(ep=8, dp=8), ranks_per_node=8, nodes=1, steps=())
OOM = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.54 GiB. "
    "GPU 3 has a total capacity of 79.11 GiB of which 1.06 GiB is free."
)
TIMEOUT = (
    "[rank{0}]:[E1122 02:07:0{1}.408271257 ProcessGroupNCCL.cpp:607] [Rank {0}] Watchdog caught collective operation "
    "timeout: WorkNCCL(SeqNum=1580, OpType=ALLREDUCE, NumelIn=1, NumelOut=1, Timeout(ms)=600000) ran for 600060 "
    "milliseconds before timing out."
)


def of(*lines: str, settings: Settings | None = None, plan: Plan | None = None) -> Diagnosis | None:
    return diagnose_texts([Text(name="rank-0.log", lines=lines, t=1e9, rank=0)], settings, plan)


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: failure["key"])
def test_captured_failures_are_recognised(failure):
    found = of(*failure["text"].splitlines())
    assert found is not None and found.key == failure["key"]
    assert found.evidence in failure["text"]
    assert "{" not in found.cause + found.next_step + found.why


def test_the_catalogue_is_whole():
    keys = [pattern.key for pattern in catalogue()]
    assert len(keys) >= 60 and len(set(keys)) == len(keys)
    assert {failure["key"] for failure in FAILURES} == set(keys)
    for pattern in catalogue():
        assert pattern.cause and pattern.why and pattern.next and pattern.source
        assert not pattern.cure or pattern.cure in CURES
    assert {pattern.cure for pattern in catalogue()} - {""} == set(CURES)


@pytest.mark.parametrize("path", sorted((CAPTURED / "logs").glob("*.log")), ids=lambda path: path.stem)
def test_healthy_logs_hold_no_failure(path):
    assert diagnose_texts(read_logs([path])) is None


def report(attempt: Path, rank: int, t: float, error: str, message: str, traceback: str = "") -> None:
    record = {"t": t, "rank": rank, "error": error, "message": message, "hint": "", "traceback": traceback}
    (attempt / f"error-rank-{rank}.json").write_text(json.dumps(record))


def test_the_earliest_cause_among_the_ranks_wins_over_its_echoes(tmp_path):
    closed = "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer"
    report(tmp_path, 0, 100.0, "RuntimeError", closed)
    report(tmp_path, 2, 101.5, "OSError", "[Errno 28] No space left on device")
    report(tmp_path, 5, 101.0, "OutOfMemoryError", OOM)
    found = diagnose(tmp_path)
    assert (found.key, found.rank, found.log) == ("gpu-memory", 5, "error-rank-5.json")
    assert found.sentence == "rank 5: a GPU ran out of memory" and not found.is_curable


def test_an_echo_alone_says_where_to_look(tmp_path):
    (tmp_path / "rank-1.log").write_text("RuntimeError: Connection closed by peer [10.0.0.4]:4711\n")
    found = diagnose(tmp_path)
    assert found.key == "rank-ended" and found.rank == 1 and found.is_curable


def test_a_time_out_names_the_rank_that_did_not_report(tmp_path):
    for rank in range(8):
        text = "training\n" if rank == 6 else "training\n" + TIMEOUT.format(rank, rank) + "\n"
        (tmp_path / f"rank-{rank}.log").write_text(text)
    found = diagnose(tmp_path, Settings(), PLAN)
    assert found.key == "nccl-timeout" and found.facts["absent_ranks"] == [6]
    assert found.sentence.endswith("missing: rank 6") and "ALLREDUCE" in found.cause
    assert found.rank == 0  # the earliest by the time in the line


def test_a_time_out_of_all_names_the_rank_that_is_behind():
    lines = [TIMEOUT.format(rank, rank) for rank in range(3)]
    lines += [
        f"[rank{rank}]:[E1122 02:07:09.1 ProcessGroupNCCL.cpp:1664] [PG 1 Rank {rank}] Exception detected by watchdog "
        f"at work: 9, last enqueued NCCL work: {work}, last completed NCCL work: 8."
        for rank, work in ((0, 12), (1, 9), (2, 12))
    ]
    assert of(*lines).facts["absent_ranks"] == [1]


def test_a_cause_in_another_log_beats_the_time_out(tmp_path):
    (tmp_path / "rank-0.log").write_text(TIMEOUT.format(0, 1) + "\n")
    (tmp_path / "launcher.log").write_text("slurmstepd: error: Detected 1 oom_kill event in StepId=7.0.\n")
    assert diagnose(tmp_path).key == "host-memory-killed"


def test_the_summary_of_torchrun_names_the_rank_that_was_killed():
    """As torchrun of torch 2.13 printed it for a rank that got SIGKILL."""
    found = diagnose_texts(
        [
            Text(
                name="launcher.log",
                t=1e9,
                lines=(
                    "train.py FAILED",
                    "Failures:",
                    "[1]:",
                    "  time      : 2026-11-22_09:12:18",
                    "  host      : localhost",
                    "  rank      : 0 (local_rank: 0)",
                    "  exitcode  : -15 (pid: 25095)  (SIGTERM)",
                    "  error_file: <N/A>",
                    "  traceback : Signal 15 (SIGTERM) received by PID 25095",
                    "Root Cause (first observed failure):",
                    "[0]:",
                    "  time      : 2026-11-22_09:12:18",
                    "  host      : localhost",
                    "  rank      : 1 (local_rank: 1)",
                    "  exitcode  : -9 (pid: 25096)  (SIGKILL)",
                ),
            )
        ]
    )
    assert found is not None and (found.key, found.rank) == ("killed", 1)


def test_optional_imports_that_failed_are_no_cause():
    """Bridge logs the traceback of packages that it can do without."""
    noise = [
        "Import of X failed with: Traceback (most recent call last):",
        "ModuleNotFoundError: No module named 'transformer_engine'",
        "",
        "training",
        "Traceback (most recent call last):",
        '  File "train.py", line 3, in <module>',
    ]
    assert of(*noise, "ZeroDivisionError: division by zero") is None
    assert of(*noise, "OSError: [Errno 28] No space left on device").key == "disk-full"
    assert of(*noise, "ModuleNotFoundError: No module named 'einops'").cause.startswith("the Python package einops")


def test_a_chain_of_exceptions_counts_as_one():
    found = of(
        "Traceback (most recent call last):",
        "ModuleNotFoundError: No module named 'einops'",
        "",
        "The above exception was the direct cause of the following exception:",
        "",
        "Traceback (most recent call last):",
        "RuntimeError: the worker could not be imported",
    )
    assert found is not None and found.key == "module-missing"


def test_what_came_before_the_last_iteration_did_not_end_the_job():
    step = " [2026-11-22 07:16:32] iteration       20/     100 | lm loss: 4.9E+00 | number of nan iterations:   0 |"
    failed = "OSError: [Errno 116] Stale file handle: '/shared/run'"
    assert of(failed, step, "ZeroDivisionError: division by zero") is None
    assert of(step, failed).key == "disk-lost"


def test_source_lines_in_a_traceback_are_no_evidence():
    found = of(
        "Traceback (most recent call last):",
        '  File "megatron/core/datasets/indexed_dataset.py", line 262, in __init__',
        '    assert header == _INDEX_HEADER, f"bad header, cannot read: {idx_path}"',
        "ZeroDivisionError: division by zero",
    )
    assert found is None


def test_files_of_any_kind_are_read_without_error(tmp_path):
    (tmp_path / "rank-0.log").write_bytes(os.urandom(200_000))
    (tmp_path / "error-rank-0.json").write_text('{"t": "soon"')
    (tmp_path / "error-rank-1.json").write_text("[]")
    (tmp_path / "rank-2.log").mkdir()
    diagnose(tmp_path)
    assert diagnose(tmp_path / "nothing") is None


def test_only_the_end_of_a_long_log_is_read(tmp_path):
    with (tmp_path / "rank-0.log").open("wb") as file:
        file.truncate(3 << 30)  # sparse
        file.seek(0, 2)
        file.write(b"\nOSError: [Errno 24] Too many open files\n")
    assert diagnose(tmp_path).key == "open-files"


def edit_of(line: str, plan: Plan | None = PLAN, **values: object) -> dict[str, object]:
    settings = Settings().with_values(values)
    edit = dict(of(line, settings=settings, plan=plan).edit)
    assert set(edit) <= set(EDITED)
    settings.with_values(edit)  # every proposal is legal
    return edit


def test_out_of_memory_takes_the_cheapest_change_that_fits():
    settings = Settings().with_values({"training.sequence_length": 2048, "training.micro_batch": 2})
    found = of(OOM, settings=settings, plan=PLAN)
    assert dict(found.edit) == {"training.micro_batch": 1}
    facts = found.facts
    assert facts["capacity_gib"] == 79.11 and facts["edited_total_gib"] < facts["total_gib"]
    assert sum(facts["memory_gib"].values()) == pytest.approx(facts["total_gib"], abs=0.1)


def test_out_of_memory_goes_on_to_recomputing():
    assert edit_of(OOM, **{"training.sequence_length": 4096})["training.recompute"] in ("moe", "full")
    assert edit_of(OOM, **{"training.recompute": "full"}) == {}
    assert edit_of(OOM, **{"training.recompute": "full", "layout.mode": "manual"}) == {"layout.mode": "auto"}


def test_a_batch_that_does_not_divide_gets_the_nearest_that_does():
    line = (
        "AssertionError: global batch size (100) is not divisible by micro batch size (3) times data parallel size (8)"
    )
    assert edit_of(line) == {"training.global_batch": 96}


def test_a_changed_schedule_gets_back_its_length():
    line = (
        "AssertionError: OptimizerParamScheduler: class input value 25600 and checkpointvalue 12800 "
        "for total number of iterations do not match"
    )
    assert edit_of(line) == {"training.decay_iterations": 100}


@pytest.mark.parametrize(
    ("line", "values", "edit"),
    [
        ("EADDRINUSE", {"launch.master_port": 29500}, {"launch.master_port": 0}),
        ("EADDRINUSE", {"machine.nodes": 2}, {"launch.master_port": 29501}),
        ("OSError: [Errno 28] No space left on device", {}, {"output.keep_checkpoints": 1}),
        ("OSError: [Errno 28] No space left on device", {"output.keep_checkpoints": 1}, {}),
        ("RuntimeError: Unexpected result nan", {"training.learning_rate": 2e-4, "training.warmup_iterations": 20},
         {"training.learning_rate": 1e-4, "training.warmup_iterations": 40}),
        ("IndexError: index out of range in self", {"data.tokenizer": "/my/tokenizer"}, {"data.tokenizer": ""}),
        ("torch.AcceleratorError: CUDA error: invalid device ordinal", {"machine.gpus_per_node": 8},
         {"machine.gpus_per_node": 0}),
        ("world_size (8) is not divisible by 3", {"layout.mode": "manual"}, {"layout.mode": "auto"}),
        ("RuntimeError: Found no NVIDIA driver on your system.", {"machine.device": "gpu"}, {"machine.device": "auto"}),
        ("KeyError: 'args'", {"launch.route": "megatron-lm"}, {"launch.route": "bridge"}),
        ("*** JOB 7 ON n CANCELLED DUE TO TIME LIMIT ***", {"launch.launcher": "slurm", "launch.requeue": False},
         {"launch.requeue": True}),
    ],
)  # fmt: skip
def test_proposed_changes(line, values, edit):
    assert edit_of(line, **values) == edit


def test_a_rehearsal_without_memory_uses_fewer_ranks():
    plan = Plan(device="cpu", layout=Layout(dp=4), ranks_per_node=4, nodes=1, steps=())
    line = "RuntimeError: [enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"
    assert edit_of(line, plan, **{"machine.cpu_ranks": 4})["machine.cpu_ranks"] == 2
    assert edit_of(line, PLAN) == {}


@pytest.mark.parametrize("name", CURES)
def test_no_cure_proposes_what_is_so_already(name):
    for values in ({}, {"layout.mode": "manual", "training.micro_batch": 4, "training.recompute": "moe"}):
        settings = Settings().with_values(values)
        patient = Patient(
            settings=settings, plan=PLAN, said={"capacity": "79.1", "batch": "100", "micro": "1", "data": "8"}
        )
        edit = propose(name, patient)
        assert all(settings.value(key) != value for key, value in edit.items())


def test_a_diagnosis_is_plain_data():
    found = of(OOM, settings=Settings(), plan=PLAN)
    assert json.loads(json.dumps(found.to_json()))["key"] == "gpu-memory"


OWN = "engine.errors.SettingsError: data.path = '/data' holds no text\n"


def own_report(attempt: Path, rank: int, t: float, hint: str, kind: str = "SettingsError") -> None:
    traceback = f'Traceback (most recent call last):\n  File "x.py", line 1, in f\nengine.errors.{kind}: it cannot be'
    record = {"t": t, "rank": rank, "error": kind, "message": "it cannot be", "hint": hint, "traceback": traceback}
    (attempt / f"error-rank-{rank}.json").write_text(json.dumps(record))


def test_what_gptoss_refused_is_the_cause_in_its_own_words(tmp_path):
    own_report(tmp_path, 1, 101.0, "try another one")
    closed = "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer"
    report(tmp_path, 0, 100.0, "RuntimeError", closed)
    found = diagnose(tmp_path)
    assert (found.key, found.rank, found.cause, found.next_step) == ("gptoss", 1, "it cannot be", "try another one")
    assert not found.is_curable and found.edit == {}


def test_a_hint_that_is_nothing_but_options_can_be_applied(tmp_path):
    own_report(tmp_path, 0, 101.0, "--set launch.route=bridge")
    assert diagnose(tmp_path, Settings()).edit == {"launch.route": "bridge"}


def test_an_older_cause_of_another_rank_beats_a_refusal(tmp_path):
    report(tmp_path, 5, 99.0, "OutOfMemoryError", OOM)
    own_report(tmp_path, 0, 101.0, "", kind="CheckpointError")
    assert diagnose(tmp_path).key == "gpu-memory"
    report(tmp_path, 5, 103.0, "OutOfMemoryError", OOM)
    assert diagnose(tmp_path).key == "gptoss" and diagnose(tmp_path).is_curable


def test_an_error_of_the_same_name_in_another_program_is_not_ours(tmp_path):
    report(tmp_path, 0, 100.0, "SettingsError", "odd", "Traceback\npydantic_settings.SettingsError: odd")
    assert diagnose(tmp_path) is None


def test_a_log_alone_shows_what_gptoss_refused():
    found = of("Traceback (most recent call last):", '  File "x.py", line 1, in f', OWN)
    assert found is not None and found.cause == "data.path = '/data' holds no text"
