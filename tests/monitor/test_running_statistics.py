"""Running statistics against those of the whole list."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.monitor.statistics import Bucket, Counter, Quarters, Window

NUMBERS = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=200)


@given(NUMBERS)
def test_a_window_knows_the_last_values(values):
    window = Window(17)
    for value in values:
        window.add(value)
    last = values[-17:]
    assert len(window) == len(last) and window.is_full == (len(values) >= 17)
    assert window.median == pytest.approx(statistics.median(last))
    assert window.largest == max(last) and window.spread >= 0


def test_the_spread_of_a_normal_distribution_is_its_deviation():
    window = Window(999)
    for i in range(1, 1000):
        window.add(statistics.NormalDist(5, 2).inv_cdf(i / 1000))
    assert window.spread == pytest.approx(2, rel=0.01)


@given(NUMBERS, NUMBERS)
def test_merged_buckets_are_one(left, right):
    first, second = Bucket(), Bucket()
    for value in left:
        first.add(value)
    for value in right:
        second.add(value)
    both = first.merge(second)
    assert both.count == len(left) + len(right)
    assert both.mean == pytest.approx(statistics.fmean(left + right), abs=1e-6)
    assert both.squares == pytest.approx(statistics.pvariance(left + right) * both.count, rel=1e-6, abs=1e-3)


def test_quarters_are_asked_at_each_doubling():
    quarters = Quarters()
    asked = [count for count in range(1, 1025) if quarters.add(float(count))]
    assert asked == [64, 128, 256, 512, 1024]
    assert len(quarters) == 1024
    assert [quarters.quarter(i).mean for i in range(4)] == [128.5, 384.5, 640.5, 896.5]


def test_a_counter_that_falls_was_started_anew():
    counter = Counter()
    assert [counter.rise(value) for value in (0, 2, 2, 5, 1, 1, None, "x", 3)] == [0, 2, 0, 3, 1, 0, 0, 0, 2]
