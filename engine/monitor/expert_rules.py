"""The rule about the experts: one that had tokens and gets none any more."""

from __future__ import annotations

from engine.findings import Severity
from engine.monitor.alert import Alert, number
from engine.monitor.metrics import Record
from engine.monitor.statistics import Window


class StarvingExpert:
    """The idlest expert gets next to nothing, and got a share before.

    A router that starts uneven, as random weights and narrow texts make it, is not judged: that is no
    change for the worse. gpt-oss has no auxiliary loss that would bring such an expert back.
    """

    key = "expert.starving"
    _RECORDS = 20
    _WARM_UP = 5
    """Records left out: the first ones show the weights as they were given."""
    _FAIR = 0.1
    """Of the mean: an expert with so many tokens is fed."""
    _FALL = 0.1
    """Of its best share."""
    _FED_AGAIN = 3.0
    """Times the limit, after which it may be said again."""

    def __init__(self) -> None:
        self._seen = 0
        self._recent = Window(self._RECORDS)
        self._best = 0.0
        self._said = False

    def feed(self, record: Record) -> Alert | None:
        least = number(record, "load_balance_least")
        if least is None:
            return None
        self._seen += 1
        if self._seen <= self._WARM_UP:
            return None
        self._recent.add(least)
        if not self._recent.is_full:
            return None
        share = self._recent.median
        self._best = max(self._best, share)
        limit = self._FALL * self._best
        if self._best < self._FAIR or share > limit:
            self._said = self._said and share <= self._FED_AGAIN * limit
            return None
        if self._said:
            return None
        self._said = True
        most = number(record, "load_balance")
        busiest = "" if most is None else f"; the busiest has {most:.1f} times the mean"
        return Alert(
            key=self.key,
            severity=Severity.WARNING,
            message="an expert gets hardly any tokens any more",
            evidence=f"the idlest had {100 * self._best:.0f} % of its layer's mean, now {100 * share:.1f} %{busiest}",
            cause="the router collapses: a learning rate too high for it, or texts of one kind only",
            next_step="lower the learning rate or mix the data; a checkpoint from before keeps the expert",
            t=record["t"],
            iteration=record.get("iteration"),
        )
