"""The GPUs of this machine: a row each with load, memory, power, heat; several to a row where there are many."""

from __future__ import annotations

from engine.hardware.gpu import GpuSample
from gptoss_tui import words
from gptoss_tui.widgets.canvas import Canvas, Row, Span, fill, heading, width_of
from gptoss_tui.widgets.steps import bar

_HOT_C = 85
"""From about here data-centre GPUs slow themselves down."""
_HARMLESS = "power cap"
"""How a GPU under full load runs."""
_COMPACT_CELLS = 20


class Gpus(Canvas):
    """Live readings, refreshed by `show`."""

    def show(self, samples: tuple[GpuSample, ...]) -> None:
        width, height = self.content_size
        if not width or not height:
            return
        rows = [heading("GPUs", self._total(samples), width)]
        if len(samples) <= height - 1:
            rows += [self._row(sample, width) for sample in samples]
            rows += self._process_rows(samples, width)
        else:
            rows += self._compact_rows(samples, width)
        self.paint(rows[:height] + [()] * (height - len(rows)))

    @staticmethod
    def _total(samples: tuple[GpuSample, ...]) -> Row:
        """How many there are, and what they take together."""
        power = [sample.power_w for sample in samples if sample.power_w is not None]
        spans: list[Span] = [(f"{len(samples)}", "muted")]
        if len(power) > 1:
            spans.append((f"  {sum(power) / 1000:.1f} kW", "muted"))
        return tuple(spans)

    @staticmethod
    def _row(sample: GpuSample, width: int) -> Row:
        left: Row = ((f"{sample.index:>2} ", "muted"),)
        if sample.error:
            return (*left, (words.shorten(f"✗ {sample.error}", width - 3), "bad"))
        load = sample.utilisation_percent
        right: list[Span] = [
            (f" {'–' if load is None else load:>3} %", "strong"),
            (f"  {_pair(sample.memory_used_gib, sample.memory_total_gib)} GiB", "text"),
            (f"  {_rounded(sample.power_w):>4} W", "text"),
            (f"  {_rounded(sample.temperature_c):>3} °C", _heat(sample)),
        ]
        room = width - width_of(left) - 4
        if width_of(tuple(right)) + 10 <= room and sample.clock_mhz is not None:
            right.append((f"  {sample.clock_mhz:>4} MHz", "text"))
        if trouble := _trouble(sample):
            right.append((f"  ! {trouble}", "warning"))
        while len(right) > 2 and width_of(tuple(right)) > room:
            # What is wrong says more than a number does.
            right.pop(-2 if trouble and len(right) > 3 else -1)
        room = width - width_of(left) - width_of(tuple(right))
        if room < 4:
            return fill(left, tuple(right), width)
        return (*left, *bar((load or 0) / 100, room), *right)

    @staticmethod
    def _process_rows(samples: tuple[GpuSample, ...], width: int) -> list[Row]:
        """Who holds how much memory, the largest first."""
        held = [(one.memory_gib or 0.0, sample.index, one) for sample in samples for one in sample.processes]
        rows: list[Row] = []
        for size, index, one in sorted(held, key=lambda item: -item[0]):
            name = " ".join(part for part in (one.name or "process", str(one.pid), one.user) if part)
            told = f"{size:5.1f} GiB" if one.memory_gib is not None else ""
            left: Row = ((f"{index:>2} ", "muted"), (words.shorten(name, max(4, width - 14)), "muted"))
            rows.append(fill(left, ((told, "text"),), width))
        return rows

    @staticmethod
    def _compact_rows(samples: tuple[GpuSample, ...], width: int) -> list[Row]:
        """Several GPUs to a row: number, load, memory."""
        across = max(1, width // _COMPACT_CELLS)
        rows: list[Row] = []
        for start in range(0, len(samples), across):
            row: list[Span] = []
            for sample in samples[start : start + across]:
                row.append((f"{sample.index:>2} ", "muted"))
                if sample.error:
                    row.append((f"{'✗ gone':<{_COMPACT_CELLS - 3}}", "bad"))
                    continue
                load = "–" if sample.utilisation_percent is None else str(sample.utilisation_percent)
                mark = "!" if _trouble(sample) else " "
                text = f"{load:>3} % {_rounded(sample.memory_used_gib):>4} GiB{mark}"
                row.append((f"{text:<{_COMPACT_CELLS - 3}}", "warning" if mark == "!" else _heat(sample)))
            rows.append(tuple(row))
        return rows


def _trouble(sample: GpuSample) -> str:
    """What holds the GPU back, or damages what it computes."""
    if sample.ecc_uncorrected:
        return f"{sample.ecc_uncorrected} ECC"
    return next((reason for reason in sample.throttle_reasons if reason != _HARMLESS), "")


def _heat(sample: GpuSample) -> str:
    return "bad" if (sample.temperature_c or 0) >= _HOT_C else "text"


def _pair(used: float | None, total: float | None) -> str:
    return f"{'–' if used is None else f'{used:.1f}':>5}/{'–' if total is None else f'{total:.0f}'}"


def _rounded(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}"
