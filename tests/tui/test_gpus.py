"""The panel of GPUs: rows, processes, and the small form for many."""

from __future__ import annotations

from textual.app import App, ComposeResult

from engine.hardware.gpu import GpuProcess, GpuSample
from gptoss_tui.widgets.gpus import Gpus


def sample(index: int, **changes: object) -> GpuSample:
    usual = {"utilisation_percent": 90, "memory_used_gib": 67.5, "memory_total_gib": 79.6, "temperature_c": 60,
             "power_w": 640.0, "clock_mhz": 1755}  # fmt: skip
    return GpuSample(index=index, **(usual | changes))  # type: ignore[arg-type]


class PanelApp(App[None]):
    def __init__(self, samples: tuple[GpuSample, ...]) -> None:
        super().__init__()
        self.samples = samples

    def compose(self) -> ComposeResult:
        yield Gpus(id="gpus")

    def on_mount(self) -> None:
        self.call_after_refresh(lambda: self.query_one(Gpus).show(self.samples))


async def text_of(samples: tuple[GpuSample, ...], size: tuple[int, int]) -> list[str]:
    app = PanelApp(samples)
    async with app.run_test(size=size) as pilot:
        await pilot.pause()
        await pilot.pause()
        return app.query_one(Gpus).text.splitlines()


async def test_a_row_says_what_holds_the_gpu_back():
    lines = await text_of((sample(0), sample(1, throttle_reasons=("power cap", "hardware thermal slowdown"),
                                             temperature_c=88)), (64, 10))  # fmt: skip
    assert lines[0].endswith("2  1.3 kW")
    assert "90 %" in lines[1] and "1755 MHz" in lines[1] and "!" not in lines[1]
    assert "! hardware thermal slowdown" in lines[2] and "90 %" in lines[2]


async def test_memory_errors_and_a_lost_gpu_stand_out():
    lines = await text_of((sample(0, ecc_uncorrected=2), GpuSample(index=1, error="GPU is lost")), (64, 10))
    assert "! 2 ECC" in lines[1]
    assert lines[2] == " 1 ✗ GPU is lost"


async def test_processes_are_listed_the_largest_first():
    busy = sample(0, processes=(GpuProcess(pid=7, memory_gib=1.0, name="other"),
                                GpuProcess(pid=8, memory_gib=60.0, name="python", user="ann")))  # fmt: skip
    lines = await text_of((busy,), (64, 10))
    assert "python 8 ann" in lines[2] and lines[2].endswith("60.0 GiB") and "other 7" in lines[3]


async def test_many_gpus_share_rows():
    samples = tuple(sample(i, utilisation_percent=i) for i in range(15)) + (GpuSample(index=15, error="lost"),)
    lines = await text_of(samples, (80, 6))
    body = "\n".join(lines)
    assert all(f"{i:>2} " in body for i in range(16)) and "✗ gone" in body and len(lines) == 5


async def test_every_width_is_drawn():
    for width in (20, 24, 30, 40, 55):
        lines = await text_of((sample(0, throttle_reasons=("power brake",)),), (width, 4))
        assert max(map(len, lines)) <= width
