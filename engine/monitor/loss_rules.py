"""Rules about the loss: not a number, updates left out, spikes, divergence, no progress.

Each rule takes records one by one and says what is wrong, if anything is. The loss is judged by
its logarithm: batches of a few samples scatter by a factor, not by a sum.
"""

from __future__ import annotations

import math

from engine.findings import Severity
from engine.monitor.alert import Alert, Facts, number
from engine.monitor.metrics import Record
from engine.monitor.record import as_float
from engine.monitor.statistics import Counter, Quarters, Window

LEAST_SPREAD = 0.02
"""A loss is never taken to be steadier than 2 %: the first spike would then be any rise."""


class NotANumber:
    """The NaN counter, a number that is none, or a loss that vanished from its line.

    Megatron prints a loss only when it is >= 0 (training.py:2881), so a NaN shows as a missing
    item, and its counter counts NaN losses of skipped iterations only: it stays at 0 when the
    update was made (training.py:2600, see tests/captured/logs). So every sign counts.
    """

    key = "loss.nan"

    def __init__(self) -> None:
        self._nan, self._skipped = Counter(), Counter()
        self._had_loss = False
        self._bad_in_a_row = 0

    def feed(self, record: Record) -> Alert | None:
        grown = self._nan.rise(record.get("nan_iterations"))
        # Where no update was made there is no loss to print, and an infinite gradient is known.
        has_update = not self._skipped.rise(record.get("skipped"))
        vanished = self._had_loss and has_update and "nan_iterations" in record and "loss" not in record
        not_finite = str(record.get("not_finite", "")) if has_update else ""
        self._had_loss = self._had_loss or "loss" in record
        if not (grown or vanished or not_finite):
            self._bad_in_a_row = 0
            return None
        self._bad_in_a_row += 1
        if self._bad_in_a_row > 1:
            return None  # it lasts; said once
        return self._alert(record, grown, vanished, not_finite)

    def _alert(self, record: Record, grown: int, vanished: bool, not_finite: str) -> Alert:
        signs = [f"the NaN counter rose by {grown}"] if grown else []
        signs += [f"{not_finite.replace(',', ' and ')} is not finite"] if not_finite else []
        signs += ["the loss vanished from the record"] if vanished and not grown else []
        return Alert(
            key=self.key,
            severity=Severity.ERROR,
            message="the loss is not a number any more",
            evidence="; ".join(signs),
            cause="the learning rate is too high, a batch is damaged, or one GPU computes wrongly",
            next_step="stop, go back to the last checkpoint with half the learning rate; if it returns at the same "
            "iteration look at the data, if on one GPU only, replace it",
            t=record["t"],
            iteration=record.get("iteration"),
        )


class SkippedIterations:
    """Updates left out because a gradient was not finite.

    FP16 looks for its loss scale by skipping: some at the start and one now and then are its way.
    """

    key = "iterations.skipped"
    _START = 50
    """Records within which FP16 finds its loss scale."""

    def __init__(self) -> None:
        self._skipped = Counter()
        self._records = 0
        self._in_a_row = 0

    def feed(self, record: Record) -> Alert | None:
        if not isinstance(record.get("skipped"), int):
            return None
        self._records += 1
        grown = self._skipped.rise(record["skipped"])
        self._in_a_row = self._in_a_row + 1 if grown else 0
        is_fp16 = (number(record, "loss_scale") or 1.0) != 1.0
        patience = (30 if self._records <= self._START else 4) if is_fp16 else 1
        if self._in_a_row != patience:
            return None
        return Alert(
            key=self.key,
            severity=Severity.WARNING,
            message="updates are being skipped",
            evidence=f"{record['skipped']} skipped so far, {grown} since the last record"
            + (f", loss scale {record['loss_scale']:g}" if is_fp16 else ""),
            cause="gradients are infinite or NaN, so that the optimiser leaves the update out",
            next_step="when it goes on: halve training.learning_rate, or lengthen training.warmup_iterations",
            t=record["t"],
            iteration=record.get("iteration"),
        )


class LossSpike:
    """One loss far above the last ones, or two in a row well above."""

    key = "loss.spike"
    _ONE, _TWO = 8.0, 5.0
    _LEAST_RISE = 0.1
    _QUIET_RECORDS = 20

    def __init__(self) -> None:
        self._recent = Window(16)
        self._scatter = Window(64)
        self._norms = Window(64)
        self._high_in_a_row = 0
        self._quiet = self._QUIET_RECORDS

    def feed(self, record: Record) -> Alert | None:
        loss, norm = number(record, "loss"), number(record, "grad_norm")
        if loss is None or loss <= 0:
            return None
        alert = None
        if self._recent.is_full:
            # Against the last few, so that the steep beginning hides nothing.
            rise = math.log(loss) - self._recent.median
            if len(self._scatter) >= 16:
                alert = self._judge(record, rise, norm)
            self._scatter.add(rise)
        self._recent.add(math.log(loss))
        if norm is not None:
            self._norms.add(norm)
        return alert

    def _judge(self, record: Record, rise: float, norm: float | None) -> Alert | None:
        spread = max(LEAST_SPREAD, self._scatter.spread)
        height = rise / spread
        is_high = height >= self._TWO and rise >= self._LEAST_RISE
        self._high_in_a_row = self._high_in_a_row + 1 if is_high else 0
        if not is_high:
            self._quiet += 1
            return None
        is_spike = height >= self._ONE or self._high_in_a_row == 2
        if not is_spike or self._quiet < self._QUIET_RECORDS:
            return None
        self._quiet = 0
        return Alert(
            key=self.key,
            severity=Severity.WARNING,
            message=f"the loss jumped to {as_float(record['loss']):.4g}",
            evidence=f"usual {math.exp(self._recent.median):.4g} (scatter {spread * 100:.0f} %)"
            + self._norm_words(norm),
            cause="a batch unlike the others, or a learning rate at the edge of what is stable",
            next_step="one spike that falls back within some iterations is harmless; when they come again lower "
            "training.learning_rate or training.gradient_clip",
            t=record["t"],
            iteration=record.get("iteration"),
        )

    def _norm_words(self, norm: float | None) -> str:
        if norm is None or not len(self._norms):
            return ""
        return f"; gradient norm {norm:.3g}, usual {self._norms.median:.3g}"


class Divergence:
    """The loss has risen above its best, well beyond its scatter, and stays there.

    The scatter is told from the steps between neighbours, which a rise over many records leaves as
    it is.
    """

    key = "loss.divergence"
    _RISE = 0.10
    _SPREADS = 3.0
    _LASTING = 25
    _STEP_PER_SPREAD = 0.954
    """Median distance of two values of a normal distribution, in standard deviations."""

    def __init__(self) -> None:
        self._recent = Window(25)
        self._first = Window(3)
        self._steps = Window(64)
        self._last: float | None = None
        self._best = math.inf
        self._above = 0

    def feed(self, record: Record) -> Alert | None:
        loss = number(record, "loss")
        if loss is None or loss <= 0:
            return None
        height = math.log(loss)
        if self._last is not None:
            self._steps.add(abs(height - self._last))
        self._last = height
        self._recent.add(height)
        self._note_best(height)
        if len(self._recent) < 12:
            return None
        rise = self._recent.median - self._best
        spread = max(LEAST_SPREAD, self._steps.median / self._STEP_PER_SPREAD)
        limit = self._RISE + self._SPREADS * spread
        if rise <= limit:
            self._above = 0 if rise < limit / 2 else self._above
            return None
        self._above += 1
        return self._alert(record) if self._above == self._LASTING else None

    def _note_best(self, height: float) -> None:
        if self._recent.is_full:
            self._best = min(self._best, self._recent.median)
            return
        # A run that diverges from its first iterations must not take what follows for its best.
        self._first.add(height)
        if self._first.is_full:
            self._best = min(self._best, self._first.median)

    def _alert(self, record: Record) -> Alert:
        return Alert(
            key=self.key,
            severity=Severity.ERROR,
            message="the loss is rising and stays high: the training diverges",
            evidence=f"median of the last 25 records {math.exp(self._recent.median):.4g}, "
            f"best {math.exp(self._best):.4g}",
            cause="the learning rate is too high, or the data or the checkpoint changed",
            next_step="stop, go back to a checkpoint from before the rise and halve training.learning_rate",
            t=record["t"],
            iteration=record.get("iteration"),
        )


class Plateau:
    """The last quarter of the history is no better than its second quarter, for certain.

    Judged each time the history has doubled, so that it costs nothing and is said seldom; with
    a scatter too large to tell, or a learning rate that has fallen, nothing is said.
    """

    key = "loss.plateau"
    _LEAST_RECORDS = 256
    _PROGRESS = 0.003
    _RATE_SHARE = 0.3

    def __init__(self, facts: Facts) -> None:
        self._learns = facts.learns
        self._warmup = facts.warmup_iterations
        self._losses = Quarters()
        self._best_rate = 0.0

    def feed(self, record: Record) -> Alert | None:
        loss, rate = number(record, "loss"), number(record, "learning_rate")
        if not self._learns or loss is None or loss <= 0 or (number(record, "iteration") or 0) <= self._warmup:
            return None
        self._best_rate = max(self._best_rate, rate or 0.0)
        if not self._losses.add(math.log(loss)) or len(self._losses) < self._LEAST_RECORDS:
            return None
        if rate is not None and rate < self._RATE_SHARE * self._best_rate:
            return None
        before, now = self._losses.quarter(1), self._losses.quarter(3)
        progress = before.mean - now.mean
        if progress + 2 * math.hypot(before.error, now.error) >= self._PROGRESS:
            return None
        return Alert(
            key=self.key,
            severity=Severity.INFO,
            message="the loss no longer falls",
            evidence=f"mean {math.exp(before.mean):.4g} in the second quarter of the run, "
            f"{math.exp(now.mean):.4g} in the last",
            cause="the model has learnt what the data hold, or the learning rate is too low to learn more",
            next_step="compare with the validation loss; more or other data, or another learning rate, may help",
            t=record["t"],
            iteration=record.get("iteration"),
        )
