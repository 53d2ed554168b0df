"""What one line of a training log says, as records: metrics, pauses, checkpoints.

Reads the formats of Megatron-LM 0.12 to 0.20 (megatron/training/training.py, `training_log`),
Megatron-Bridge 0.1 to 0.6 (bridge/training/utils/train_utils.py) and NeMo 2 (ProgressPrinter) and
1 (its progress bar). Knows text, no files. A record is what `metrics.jsonl` holds.
"""

from __future__ import annotations

import re
import time
from functools import lru_cache
from math import isfinite
from typing import Any

type Record = dict[str, Any]
"""`t` (unix seconds), `iteration`, and metrics by name; or `t`, `kind`, `message` and facts."""

NAMES = {
    "loss": "mean loss of the interval",
    "validation_loss": "loss on text kept out of training",
    "grad_norm": "global gradient norm before clipping",
    "learning_rate": "of the first parameter group",
    "iteration_s": "seconds per iteration, mean of the interval",
    "tokens_per_s": "over all GPUs",
    "tokens_per_s_per_gpu": "tokens/s of one GPU",
    "tflops_per_gpu": "model TFLOP/s of one GPU, as the trainer counts them",
    "consumed_samples": "since the first iteration of the run",
    "skipped": "iterations without an update since the job started",
    "nan_iterations": "iterations with a NaN loss since the job started",
    "memory_gib": "peak memory of one rank, GiB",
    "load_balance": "tokens of an expert over the mean of its layer, at most; 1 is even",
    "load_balance_least": "the same of the expert with the fewest tokens",
    "load_balance_loss": "MoE load-balancing loss, of trainers that have one",
    "global_batch": "samples in one iteration",
    "loss_scale": "factor of the FP16 loss; 1 with BF16",
    "not_finite": "names of metrics that were NaN or infinite",
    "slowest_rank": "rank with the longest iterations",
    "slowest_rank_s": "its seconds per iteration",
    "fastest_rank_s": "seconds per iteration of the fastest rank",
}
"""The metrics that the rest of the program knows. Others keep their own name."""

_OWN_NAMES = {
    "consumed samples": "consumed_samples",
    "consumed_samples": "consumed_samples",
    "consumed tokens": "consumed_tokens",
    "skipped samples": "skipped_samples",
    "throughput per GPU (TFLOP/s/GPU)": "tflops_per_gpu",
    "TFLOPs": "tflops_per_gpu",
    "tokens per gpu per second (tgs)": "tokens_per_s_per_gpu",
    "tokens/sec/gpu": "tokens_per_s_per_gpu",
    "learning rate": "learning_rate",
    "lr": "learning_rate",
    "global batch size": "global_batch",
    "global_batch_size": "global_batch",
    "lm loss": "loss",
    "reduced_train_loss": "loss",
    "val_loss": "validation_loss",
    "load_balancing_loss": "load_balance_loss",
    "seq_load_balancing_loss": "load_balance_loss",
    "global_load_balancing_loss": "load_balance_loss",
    "loss scale": "loss_scale",
    "grad norm": "grad_norm",
    "grad_norm": "grad_norm",
    "energy per GPU (J/iter/GPU)": "energy_j_per_gpu",
    "power per GPU (W/GPU)": "power_w_per_gpu",
    "number of skipped iterations": "skipped",
    "number of nan iterations": "nan_iterations",
    "train_step_timing in s": "iteration_s",
    "global_step": "global_step",
}
_MILLISECONDS = "elapsed time per iteration (ms)"
_LAST_ITEM = "number of nan iterations"
_WHOLE = {"consumed_samples", "skipped_samples", "global_batch", "skipped", "nan_iterations", "global_step"}

_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-_])")
_STEP = re.compile(r"iteration\s+(\d+)\s*/\s*(\d+) *\|")
_STAMP = re.compile(r"\[(\d{4}-\d\d-\d\d \d\d:\d\d):(\d\d(?:\.\d+)?)\] ?")
_STAMP_WIDTH = 32
_FOREIGN_NAME = re.compile(r"[A-Za-z][A-Za-z _()/-]{0,39}(?: ?\d{1,3})?(?:[A-Za-z _()/-]{0,20})")
_PROGRESS_BAR = re.compile(r"\| *\d+/\d+ \[[^]]*?(reduced_train_loss=[^]]*)")
_VALIDATION = re.compile(r"validation loss at iteration (\d+)(?: on (\w+) set)? \|(?:.*?\|)?? lm loss value: (\S+) \|")
_MEMORY = re.compile(r"\[Rank (\d+)\] \(after (\d+) iterations\) memory \((MB|GB)\) \|(.*)")
_SAVING = re.compile(r"saving checkpoint at iteration +(\d+) to ")
_SAVED = re.compile(r"successfully saved checkpoint from iteration +(\d+) to (\S+)")
_LOADED = re.compile(r"successfully loaded checkpoint from (\S+) .*at iteration (\d+)")
_RANK_TIMES = re.compile(r"MnRtt/Rnk: ([\d.]+)ms/(\d+) \| MxRtt/Rnk: ([\d.]+)ms/(\d+) \|")
_OPTION = re.compile(
    r"^(?:\[\w+\]:|\d+:)? *(seq_length|sequence_length|train_iters|save_interval|eval_interval|world_size)"
    r"(?: ?\.{2,} ?|: )(\d+)$"
)
# One cheap look per line: most of a log is none of this.
_WORTH_A_LOOK = re.compile(
    r"memory \(|checkpoint|Evaluating on|evaluating at|MnRtt/|reduced_train_loss=|training is done|"
    r"exiting program|_length|train_iters|_interval|world_size"
)
_KIB = 1024


class LogReader:
    """Reads one stream of log lines; what it learnt from earlier lines completes later ones."""

    def __init__(self) -> None:
        self.options: dict[str, int] = {}
        """Options of the job that its log showed: seq_length, train_iters, save_interval, …"""
        self._skipped = 0
        self._nan = 0
        self._validation: float | None = None
        self._minute = ("", 0.0)
        self._last_t: float | None = None

    def read(self, line: str, t: float) -> list[Record]:
        """The records in `line`, which arrived at `t`; none for ordinary text."""
        if "iteration" not in line and _WORTH_A_LOOK.search(line) is None:
            return []
        if "\x1b" in line:
            line = _ANSI.sub("", line)
        if "\r" in line:  # a progress bar that writes over itself
            return [record for part in line.split("\r") for record in self._read_part(part, t)]
        return self._read_part(line, t)

    def _read_part(self, line: str, t: float) -> list[Record]:
        steps = list(_STEP.finditer(line))
        if not steps:
            return self._read_other(line, t)
        if len(steps) == 1:
            record = self._read_step(line, steps[0], len(line), t)
            return [record] if record else []
        # Two ranks may write into one line; each part ends where the next begins.
        ends = [_start(line, step) for step in steps[1:]] + [len(line)]
        return [r for step, end in zip(steps, ends, strict=True) if (r := self._read_step(line, step, end, t))]

    def _read_other(self, line: str, t: float) -> list[Record]:
        # A line without a time of its own happened just after the last one that has one.
        at = t if self._last_t is None else self._last_t
        record = self._read_bar(line, t) or _read_event(line, at)
        if record is None:
            self._read_option(line)
        return [record] if record else []

    def _read_step(self, line: str, step: re.Match[str], end: int, t: float) -> Record | None:
        start, stop = step.span()
        is_nemo = "epoch" in line[max(0, start - 24) : start]
        items = line[stop:end].split("|")
        if not is_nemo:
            items.pop()  # what no bar ends may be half a number
        values = _read_items(items)
        if not values:
            return None
        record: Record = {"t": self._clock(line, start, t), "iteration": int(step[1]), "of": int(step[2])}
        if is_nemo:
            # NeMo counts from 0 and names the last index, not the number.
            record["iteration"] = _whole(values.pop("global_step", record["iteration"])) + 1
            record["of"] += 1
        return self._complete(record, values)

    def _read_bar(self, line: str, t: float) -> Record | None:
        bar = _PROGRESS_BAR.search(line)
        if bar is None:
            return None
        values = _read_items([item.replace("=", ": ", 1) for item in bar[1].split(",")])
        if "global_step" not in values:
            return None
        return self._complete({"t": t, "iteration": _whole(values.pop("global_step")) + 1}, values)

    def _complete(self, record: Record, values: dict[str, float]) -> Record:
        """Add the metrics, with counters over the whole job and speed in tokens."""
        if values.get("skipped") and not values.get("loss"):
            values.pop("loss", None)  # the mean over no iteration at all is printed as 0
        is_counted = "nan_iterations" in values
        bad = [name for name, value in values.items() if not isfinite(value)]
        if bad:
            record["not_finite"] = ",".join(bad)
            for name in bad:
                del values[name]
        record.update(values)
        for name in _WHOLE & values.keys():
            record[name] = int(values[name])
        # Megatron counts from one line to the next; a reader that joins late wants the sum.
        self._skipped += record.get("skipped", 0)
        self._nan += record.get("nan_iterations", 0) or ("loss" in bad)
        if is_counted or bad:
            record["skipped"], record["nan_iterations"] = self._skipped, self._nan
        if (validation := record.get("validation_loss")) is not None:
            if validation == self._validation:
                del record["validation_loss"]  # NeMo repeats the last one in every line
            self._validation = validation
        if "seq_length" in self.options:
            self._add_tokens(record)
        return record

    def _add_tokens(self, record: Record) -> None:
        batch, seconds = record.get("global_batch"), record.get("iteration_s")
        if batch and seconds:
            record["tokens_per_s"] = batch * self.options["seq_length"] / seconds
            if ranks := self.options.get("world_size"):
                record.setdefault("tokens_per_s_per_gpu", record["tokens_per_s"] / ranks)

    def _read_option(self, line: str) -> None:
        if option := _OPTION.match(line.rstrip()):
            name = "seq_length" if option[1] == "sequence_length" else option[1]
            self.options.setdefault(name, int(option[2]))

    def _clock(self, line: str, start: int, t: float) -> float:
        """The line's own time, which Megatron prints as local time without a zone; else its arrival."""
        stamp = _STAMP.search(line, max(0, start - _STAMP_WIDTH), start)
        if stamp is None:
            return t
        minute = stamp[1]
        if minute != self._minute[0]:
            try:
                self._minute = (minute, time.mktime(time.strptime(minute, "%Y-%m-%d %H:%M")))
            except (ValueError, OverflowError):
                return t
        self._last_t = self._minute[1] + float(stamp[2])
        return self._last_t


def _start(line: str, step: re.Match[str]) -> int:
    """Where the part of `step` begins, its time included."""
    stamp = _STAMP.search(line, max(0, step.start() - _STAMP_WIDTH), step.start())
    return stamp.start() if stamp else step.start()


def _read_items(items: list[str]) -> dict[str, float]:
    """Every whole `name: number`; a name that comes twice counts once."""
    values: dict[str, float] = {}
    for item in items:
        name, _, text = item.rpartition(":")
        name = name.strip()
        try:
            value = float(text)
        except ValueError:
            continue
        known = _OWN_NAMES.get(name)
        if known is None:
            if name == _MILLISECONDS:
                known, value = "iteration_s", value / 1000
            else:
                known = _foreign(name)
        if known and known not in values:
            values[known] = value
        if name == _LAST_ITEM:
            break  # what follows is another rank's text
    return values


@lru_cache(maxsize=512)
def _foreign(name: str) -> str:
    """Our name for an item that only some trainers print; empty when it looks like damage."""
    if not _FOREIGN_NAME.fullmatch(name):
        return ""
    return re.sub(r"\W+", "_", name.lower()).strip("_")


def _read_event(line: str, t: float) -> Record | None:
    if found := _VALIDATION.search(line):
        # Bridge and Megatron print the test set with the same words.
        if found[2] == "test":
            return None
        value = _number(found[3])
        return None if value is None else {"t": t, "iteration": int(found[1]), "validation_loss": value}
    if found := _SAVED.search(line):
        return {"t": t, "kind": "checkpoint", "iteration": int(found[1]), "path": found[2],
                "message": f"checkpoint of iteration {found[1]} saved"}  # fmt: skip
    if found := _SAVING.search(line):
        message = f"saving the checkpoint of iteration {found[1]}"
        return {"t": t, "kind": "phase", "message": message, "iteration": int(found[1])}
    if found := _LOADED.search(line):
        message = f"went on from iteration {found[2]}"
        return {"t": t, "kind": "resumed", "message": message, "iteration": int(found[2])}
    if "Evaluating on" in line or "evaluating at iteration" in line:
        return {"t": t, "kind": "phase", "message": "evaluating"}
    if "[after training is done]" in line or "exiting program" in line:
        return {"t": t, "kind": "finished", "message": "the training has ended"}
    return _read_memory(line, t) or _read_ranks(line, t)


def _read_memory(line: str, t: float) -> Record | None:
    found = _MEMORY.search(line)
    if found is None:
        return None
    for item in found[4].split("|"):
        name, _, text = item.strip().partition(": ")
        value = _number(text)
        if name in ("max allocated", "mem-max-allocated-gigabytes") and value is not None:
            # Megatron-LM prints MiB and calls them MB (common_utils.py:320); Bridge prints 1e9 bytes.
            gib = value / _KIB if found[3] == "MB" else value * 1e9 / _KIB**3
            return {"t": t, "iteration": int(found[2]), "rank": int(found[1]), "memory_gib": gib}
    return None


def _read_ranks(line: str, t: float) -> Record | None:
    found = _RANK_TIMES.search(line)
    if found is None:
        return None
    return {
        "t": t,
        "fastest_rank_s": float(found[1]) / 1000,
        "slowest_rank": int(found[4]),
        "slowest_rank_s": float(found[3]) / 1000,
    }


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if isfinite(value) else None


def _whole(value: float) -> int:
    """A count that a log may give as 1.2e3; damage makes it infinite."""
    return int(value) if isfinite(value) else 0
