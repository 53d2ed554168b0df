"""Lines of every supported trainer and version, whole and damaged, as records."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.monitor.alerts import replay
from engine.monitor.metrics import LogReader, Record

LOGS = Path(__file__).parent.parent / "captured" / "logs"
MEGATRON_LM = sorted(LOGS.glob("megatron-lm-*.log"))
LINE = (
    " [2026-11-22 07:16:32] iteration       20/     100 | consumed samples:           80 | elapsed time per iteration"
    " (ms): 79.5 | throughput per GPU (TFLOP/s/GPU): 191.0 | learning rate: 3.000000E-04 | global batch size:     4 |"
    " lm loss: 4.939785E+00 | load_balancing_loss: 1.005855E+00 | loss scale: 1.0 | grad norm: 1.955 |"
    " number of skipped iterations:   0 | number of nan iterations:   0 |"
)


def read(*lines: str, reader: LogReader | None = None) -> list[Record]:
    reader = reader or LogReader()
    return [record for line in lines for record in reader.read(line, 1.0)]


def read_log(name: str) -> list[Record]:
    return read(*(LOGS / name).read_text().split("\n"))


def test_a_line_of_bridge_has_every_metric():
    [record] = read(LINE)
    t = time.mktime(time.strptime("2026-11-22 07:16:32", "%Y-%m-%d %H:%M:%S"))
    assert record == {
        "t": t, "iteration": 20, "of": 100, "consumed_samples": 80, "iteration_s": pytest.approx(0.0795),
        "tflops_per_gpu": 191.0, "learning_rate": 3e-4, "global_batch": 4, "loss": 4.939785,
        "load_balance_loss": 1.005855, "loss_scale": 1.0, "grad_norm": 1.955, "skipped": 0, "nan_iterations": 0,
    }  # fmt: skip


@pytest.mark.parametrize("path", MEGATRON_LM, ids=lambda path: path.stem)
def test_every_version_of_megatron_lm(path):
    first, second, nan, skipped = read(*path.read_text().splitlines())
    assert (first["loss"], first["iteration_s"], first["grad_norm"]) == (11.924, 21.5, 33.055)
    assert (second["iteration"], second["of"], second["consumed_samples"]) == (2, 500, 256)
    assert "loss" not in nan and nan["not_finite"] == "grad_norm" and "grad_norm" not in nan
    # From 0.17 on a skipped iteration prints a loss of 0, which is the mean over nothing.
    assert "loss" not in skipped and skipped["skipped"] == 1


def test_the_versions_cover_what_is_promised():
    assert [path.stem.removeprefix("megatron-lm-")[:4] for path in MEGATRON_LM] == [
        "0.12", "0.13", "0.14", "0.15", "0.16", "0.17", "0.18", "0.19", "0.20",
    ]  # fmt: skip


@pytest.mark.parametrize("path", MEGATRON_LM, ids=lambda path: path.stem)
def test_a_nan_loss_alerts_in_every_version(path):
    assert [alert.key for alert in replay(read(*path.read_text().splitlines()))][:1] == ["loss.nan"]


def test_a_bridge_rehearsal():
    records = read_log("megatron-bridge-0.6.2-last-rank.log")
    assert [r["iteration"] for r in records if "loss" in r] == list(range(1, 61))
    assert [(r["iteration"], r["validation_loss"]) for r in records if "validation_loss" in r] == [
        (20, 5.279373), (40, 5.177537), (60, 5.113389),
    ]  # fmt: skip
    assert replay(records) == []


def test_the_first_rank_tells_of_options_and_checkpoints():
    reader = LogReader()
    lines = (LOGS / "megatron-bridge-0.6.2-first-rank.log").read_text().splitlines()
    records = read(*lines, reader=reader)
    assert [r["iteration"] for r in records if r.get("kind") == "checkpoint"] == [20, 40, 60]
    assert records[-1]["kind"] == "finished"
    assert reader.options["seq_length"] == 128 and reader.options["train_iters"] == 60


def test_tokens_follow_from_the_options():
    reader = LogReader()
    [record] = read(
        "  seq_length ...................................... 4096", "  world_size ...... 8", LINE, reader=reader
    )
    assert record["tokens_per_s"] == pytest.approx(4 * 4096 / 0.0795)
    assert record["tokens_per_s_per_gpu"] == pytest.approx(4 * 4096 / 0.0795 / 8)


def test_nemo_2():
    records = read_log("nemo-2.log")
    assert [r["iteration"] for r in records] == [1, 2, 3, 4, 5]
    assert records[0]["loss"] == 11.03 and records[0]["of"] == 150 and records[1]["iteration_s"] == 0.8712
    assert [r.get("validation_loss") for r in records] == [None, None, None, 10.4, None]  # it repeats the last one
    assert records[4]["nan_iterations"] == 1 and "loss" not in records[4]
    assert [alert.key for alert in replay(records)] == ["loss.nan"]


def test_the_progress_bar_of_nemo_1():
    assert [(r["iteration"], r["loss"], r["consumed_samples"]) for r in read_log("nemo-1.log")] == [
        (1, 10.9, 256), (2, 10.6, 512),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "prefix",
    ["", "7: ", "[default7]:", "[rank15]: ", "(worker pid=27522, ip=10.0.0.4) ", "\x1b[36m", "2026-11-22 INFO "],
)
def test_prefixes_of_launchers(prefix):
    [record] = read(prefix + LINE + "\x1b[0m")
    assert record["loss"] == 4.939785


def test_two_ranks_in_one_line():
    other = LINE.replace("20/", "21/").replace("4.939785E+00", "4.8E+00")
    assert [(r["iteration"], r["loss"]) for r in read(LINE + other)] == [(20, 4.939785), (21, 4.8)]


def test_another_ranks_text_behind_the_line():
    [record] = read(LINE + "[rank3]: something: 3.5 | lm loss: 99 |")
    assert record["loss"] == 4.939785 and len(record) == 14


def test_carriage_returns_of_a_progress_bar():
    assert [r["loss"] for r in read("  3%|▎ | 1/30 [00:01<00:30]\r" + LINE + "\r 6%|▌ | 2/30")] == [4.939785]


@pytest.mark.parametrize("cut", range(len(LINE)))
def test_a_line_cut_anywhere_says_nothing_wrong(cut):
    """A killed writer leaves a half line; the next one may write on in it."""
    [whole] = read(LINE)
    following = LINE.replace("20/", "21/")
    for text in (LINE[:cut], LINE[:cut] + following):
        for record in read(text):
            if record["iteration"] == 20:
                assert all(whole[name] == value for name, value in record.items() if name not in ("t", "of"))
            else:
                assert record["loss"] == 4.939785


def test_a_cut_line_does_not_look_like_a_vanished_loss():
    cut = LINE[: LINE.index("lm loss")]
    assert replay(read(LINE, cut, LINE)) == []


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "NaN"])
def test_what_is_not_finite_is_no_value(value):
    [record] = read(LINE.replace("grad norm: 1.955", f"grad norm: {value}"))
    assert "grad_norm" not in record and record["not_finite"] == "grad_norm"


def test_counters_are_summed_over_the_job():
    line = LINE.replace("skipped iterations:   0", "skipped iterations:   2")
    assert [r["skipped"] for r in read(LINE, line, line)] == [0, 2, 4]


def test_memory_in_both_units():
    megatron, bridge = read(
        "[Rank 0] (after 10 iterations) memory (MB) | allocated: 9554.88 | max allocated: 12288.00",
        "[Rank 3] (after 2 iterations) memory (GB) | mem-active-gigabytes: 9.5 | mem-max-allocated-gigabytes: 85.899",
    )
    assert megatron["memory_gib"] == 12.0
    assert (bridge["rank"], bridge["memory_gib"]) == (3, pytest.approx(80.0, abs=0.001))


def test_the_straggler_report():
    [record] = read("INFO:[2026-11-22 07:16:32] | MnRtt/Rnk: 5400.10ms/3 | MxRtt/Rnk: 8100.25ms/7 | MnPwr/Rnk: 1")
    assert (record["slowest_rank"], record["slowest_rank_s"], record["fastest_rank_s"]) == (7, 8.10025, 5.4001)


def test_the_test_set_is_no_validation():
    assert (
        read(" validation loss at iteration 10 on test set | lm loss value: 9.625707E+00 | lm loss PPL: 1.5E+04 | ")
        == []
    )
    [record] = read(
        " validation loss at iteration 10 on validation set | lm loss value: 9.647480E+00 | lm loss PPL: 1 | "
    )
    assert record["validation_loss"] == 9.64748


@given(st.text(max_size=300))
@settings(max_examples=300, deadline=None)
def test_any_text_is_read_without_error(text):
    for record in read(text, LINE[:90] + text, text + LINE):
        assert isinstance(record["t"], float)


def test_fifty_thousand_lines_a_second():
    """Measured in processor time, with a fourfold margin for a busy machine."""
    reader = LogReader()
    began = time.process_time()
    for _ in range(5000):
        reader.read(LINE, 1.0)
    assert 5000 / (time.process_time() - began) > 12_500
