"""The seven stations of the set-up: what belongs to each."""

from __future__ import annotations

from dataclasses import dataclass

from engine.options import Option
from engine.settings import OPTIONS


@dataclass(frozen=True, slots=True, kw_only=True)
class Station:
    """One stop of the set-up."""

    key: str
    title: str
    tables: tuple[str, ...]
    """Tables of the settings whose options are asked for here."""
    intro: str

    @property
    def options(self) -> tuple[Option, ...]:
        return tuple(option for option in OPTIONS.values() if option.table in self.tables)


STATIONS = (
    Station(key="machine", title="Machine", tables=("machine",), intro="What the run may use of this machine."),
    Station(key="model", title="Model", tables=("model",), intro="What is trained, and from which weights."),
    Station(key="data", title="Data", tables=("data",), intro="What it learns from."),
    Station(
        key="training",
        title="Training",
        tables=("training", "finetune"),
        intro="How long, in which portions, how boldly.",
    ),
    Station(key="layout", title="Layout", tables=("layout",), intro="How the GPUs share the model."),
    Station(key="launch", title="Launch", tables=("launch", "output"), intro="How it starts, and what it leaves."),
    Station(key="review", title="Review", tables=(), intro="All of it, before anything starts."),
)
BY_KEY = {station.key: station for station in STATIONS}


def station_of(option: Option) -> Station:
    """The station where an option is asked for."""
    return next(station for station in STATIONS if option.table in station.tables)
