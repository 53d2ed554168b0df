"""Series, scales and dots: the arithmetic of the charts."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.monitor.scale import Scale, grown, labels, make_scale, nice_step
from engine.monitor.series import Column, Series
from gptoss_tui.glyphs import Charset
from gptoss_tui.plot import raster


def filled(series: Series, width: int = 40) -> list[Column]:
    last = max(1, series.last_iteration)
    return [column for column in series.columns(0, last, width) if column is not None]


def test_a_spike_stays_however_long_the_run():
    series = Series(capacity=64)
    for n in range(100_000):
        series.add(n, 100.0 if n == 12_345 else 1.0)
    assert max(column.high for column in filled(series)) == 100.0
    assert min(column.low for column in filled(series)) == 1.0


def test_memory_does_not_grow_with_the_run():
    series = Series(capacity=64)
    for n in range(100_000):
        series.add(n, float(n))
    assert 32 <= len(series) <= 64
    assert series.stride == 2048


def test_a_chart_is_full_right_after_a_halving():
    series = Series(capacity=64)
    for n in range(65):
        series.add(n, 1.0)
    assert len(filled(series, width=16)) == 16


def test_the_end_of_a_long_run_can_be_seen_value_by_value():
    series = Series(capacity=64)
    for n in range(100_000):
        series.add(n, float(n % 7))
    columns = series.columns(99_900, 99_999, 100)
    assert [column.mean for column in columns] == [n % 7 for n in range(99_900, 100_000)]
    series.add(99_950, 50.0)
    columns = series.columns(99_900, 99_999, 100)
    assert columns[50].mean == 50.0 and columns[51:] == [None] * 49


def test_a_resumed_run_replaces_the_iterations_it_repeats():
    series = Series()
    for n in range(100):
        series.add(n, 1.0)
    series.add(50, 7.0)
    assert series.last_iteration == 50
    assert len(series) == 51
    assert filled(series)[-1].high == 7.0


def test_a_resume_below_the_stride_keeps_the_earlier_half_of_its_bucket(monkeypatch):
    monkeypatch.setattr("engine.monitor.series.RECENT", 1)
    series = Series(capacity=4)
    for n in range(8):
        series.add(n, float(n))
    series.add(3, 30.0)  # stride 2: its bucket also holds iteration 2
    assert filled(series, width=8)[-1] == Column(low=2.0, high=30.0, mean=(2 + 3 + 30) / 3)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_counted_and_left_out(value):
    series = Series()
    series.add(0, 1.0)
    series.add(1, value)
    assert series.rejected == 1
    assert series.last == 1.0
    assert len(filled(series)) == 1


def test_a_sparse_series_leaves_gaps():
    series = Series()
    for n in (10, 50, 100):
        series.add(n, float(n))
    columns = series.columns(0, 100, 101)
    assert [x for x, column in enumerate(columns) if column] == [10, 50, 100]


def test_an_odd_number_of_buckets_is_refused():
    with pytest.raises(ValueError, match="not 3"):
        Series(capacity=3)


@given(st.lists(st.tuples(st.integers(0, 10_000), st.floats(allow_nan=True, allow_infinity=True)), max_size=300))
def test_any_sequence_is_drawn_between_its_extremes(points):
    series = Series(capacity=16)
    for iteration, value in points:
        series.add(iteration, value)
    finite = [value for _, value in points if math.isfinite(value)]
    for column in filled(series):
        assert min(finite) <= column.low <= column.high <= max(finite)


@pytest.mark.parametrize(
    ("low", "high", "wanted", "expected"),
    [(0, 10, 5, [0, 2, 4, 6, 8, 10]), (1.9, 6.2, 3, [2, 4, 6]), (0, 600, 6, [0, 100, 200, 300, 400, 500, 600])],
)
def test_ticks_are_round(low, high, wanted, expected):
    assert Scale(low, high).ticks(wanted) == pytest.approx(expected)


def test_log_ticks_are_decades_when_there_are_many():
    assert Scale(1e-6, 1e2, is_log=True).ticks(9) == pytest.approx([10.0**n for n in range(-6, 3)])


def test_labels_have_the_decimals_that_tell_them_apart():
    assert labels([2.0, 2.25, 2.5]) == ["2.00", "2.25", "2.50"]
    assert labels([10_000.0, 20_000.0]) == ["10.0k", "20.0k"]
    assert labels([0.0, 1e-4]) == ["0", "1.0e-4"]


PLACES = st.one_of(st.integers(0, 700), st.sampled_from([-1, 10**13]))


@given(st.lists(st.tuples(PLACES, st.floats(-9, 9) | st.just(math.nan))), st.integers(1, 9))
def test_values_taken_in_batches_are_those_taken_one_by_one(values, size):
    one_by_one, batches = Series(capacity=64), Series(capacity=64)
    for iteration, value in values:
        one_by_one.add(iteration, value)
    for start in range(0, len(values), size):
        batch = values[start : start + size]
        batches.extend([iteration for iteration, _ in batch], [value for _, value in batch])
    names = ("stride", "last", "last_iteration", "points", "rejected", "_places", "_values")
    assert [getattr(batches, name) for name in names] == [getattr(one_by_one, name) for name in names]
    assert batches.columns(0, 700, 40) == one_by_one.columns(0, 700, 40)


def test_a_range_that_still_serves_is_kept():
    first = make_scale(2.0, 6.0)
    assert make_scale(2.1, 5.9, previous=first) is first
    assert make_scale(2.1, 7.9, previous=first) is not first
    assert make_scale(2.1, 2.2, previous=first) is not first


def test_an_axis_that_gives_way_to_a_falling_loss_does_so_now_and_then_only():
    scale, scales = make_scale(5.9, 6.0), set()
    for loss in range(590, 200, -1):
        scale = make_scale(loss / 100, 6.0, previous=scale)
        assert scale.low <= loss / 100 and scale.high >= 6.0
        scales.add(scale)
    assert len(scales) < 16
    assert scale.fits(2.0, 6.0)


def test_equal_values_have_room_around_them():
    scale = make_scale(3.0, 3.0)
    assert scale.low < 3.0 < scale.high
    assert make_scale(0.0, 0.0).position(0.0) == 0.5


def test_a_log_axis_needs_positive_values():
    assert make_scale(0.0, 5.0, is_log=True).is_log is False
    assert make_scale(0.1, 5.0, is_log=True).is_log is True


@given(st.floats(1e-12, 1e12), st.floats(1e-12, 1e12), st.booleans())
def test_a_scale_holds_its_values(a, b, is_log):
    low, high = min(a, b), max(a, b)
    scale = make_scale(low, high, is_log=is_log)
    assert scale.low <= low * (1 + 1e-9) and high <= scale.high * (1 + 1e-9)
    assert 0 <= scale.position(low) <= scale.position(high) <= 1


@pytest.mark.parametrize(("rough", "step"), [(0.3, 0.5), (1.0, 1.0), (1.1, 2.0), (2.2, 2.5), (7.0, 10.0)])
def test_steps_are_round(rough, step):
    assert nice_step(rough) == pytest.approx(step)


def test_the_axis_of_iterations_grows_in_jumps_and_ends_with_the_run():
    assert [grown(n, 600) for n in (10, 11, 90, 130, 550)] == [10, 20, 100, 200, 600]
    assert grown(700, 600) == 700


def test_a_falling_line_is_drawn_without_gaps():
    columns = [Column(v, v, v) for v in (10.0, 0.0)]
    dots = raster.dots_for(Charset.BRAILLE)
    line, _ = raster.draw(columns, [10.0, 0.0], Scale(0, 10), (1, 4), dots)
    # The first column holds the top dot, the second the rest.
    assert [row[0] for row in line] == [0x01 | 0x10 | 0x20 | 0x80, 0xB8, 0xB8, 0xB8]


def test_the_line_is_smoothed_and_its_ends_do_not_lean():
    columns = [Column(v, v, v) for v in (0.0, 10.0, 0.0, 10.0, 0.0)]
    assert raster.smoothed(columns, 1) == pytest.approx([0.0, 10 / 3, 20 / 3, 10 / 3, 0.0])


@pytest.mark.parametrize("charset", Charset)
def test_every_charset_draws_with_its_own_characters(charset):
    dots = raster.dots_for(charset)
    columns: list[Column | None] = [Column(0, 1, x / 9) for x in range(10 * dots.across)]
    line, band = raster.draw(columns, [c.mean for c in columns if c], Scale(0, 5), (10, 3), dots)
    text = "".join(dots.characters[cell] for row in (*line, *band) for cell in row)
    assert text.strip(" \u2800")
    if charset is Charset.ASCII:
        assert text.isascii()
