"""The GPUs of this machine, one row each: load, memory, power, temperature."""

from __future__ import annotations

from engine.hardware.gpu import GpuSample
from gptoss_tui.widgets.canvas import Canvas, Row, fill, heading, width_of
from gptoss_tui.widgets.steps import bar

_HOT_C = 85
"""From about here data-centre GPUs slow themselves down."""


class Gpus(Canvas):
    """Live readings, refreshed by `show`."""

    def show(self, samples: tuple[GpuSample, ...]) -> None:
        width, height = self.content_size
        if not width or not height:
            return
        rows = [heading("GPUs", ((f"{len(samples)}", "muted"),), width)]
        rows += [self._row(sample, width) for sample in samples]
        self.paint(rows[:height] + [()] * (height - len(rows)))

    @staticmethod
    def _row(sample: GpuSample, width: int) -> Row:
        left: Row = ((f"{sample.index:>2} ", "muted"),)
        if sample.error:
            return (*left, (f"✗ {sample.error}", "bad"))
        load = sample.utilisation_percent
        right: Row = (
            (f" {'–' if load is None else load:>3} %", "strong"),
            (f"  {_pair(sample.memory_used_gib, sample.memory_total_gib)} GiB", "text"),
            (f"  {_rounded(sample.power_w):>4} W", "text"),
            (
                f"  {_rounded(sample.temperature_c):>3} °C",
                "bad" if (sample.temperature_c or 0) >= _HOT_C else "text",
            ),
        )
        room = width - width_of(left) - width_of(right)
        if room < 4:
            return fill(left, right[:2], width)
        return (*left, *bar((load or 0) / 100, room), *right)


def _pair(used: float | None, total: float | None) -> str:
    return f"{'–' if used is None else f'{used:.1f}':>5}/{'–' if total is None else f'{total:.0f}'}"


def _rounded(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}"
