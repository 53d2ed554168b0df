"""Numbers and times as people read them."""

from __future__ import annotations

import math

import pytest

from gptoss_tui import words


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "–"), (math.nan, "–"), (0.4, "0 s"), (59, "59 s"), (187, "3:07"), (7387, "2:03:07"), (273_600, "3 d 04 h")],
)
def test_durations(seconds, text):
    assert words.duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (7, "7"), (950, "950"), (1000, "1.00k"), (12_345, "12.3k"), (999_600, "1.00M"),
        (4_560_000, "4.56M"), (1.2e9, "1.20B"), (5e15, "5000T"), (-12_345, "-12.3k"),
    ],
)  # fmt: skip
def test_counts(value, text):
    assert words.count(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (2.3104, "2.310"), (20_230.4, "20,230"), (0.0567, "0.05670"), (3e-4, "3.000e-4"),
        (1.5e12, "1.500e12"), (math.nan, "NaN"), (math.inf, "Inf"), (-math.inf, "-Inf"),
    ],
)  # fmt: skip
def test_numbers(value, text):
    assert words.number(value) == text


@pytest.mark.parametrize(("seconds", "text"), [(0, "just now"), (90, "1 min ago"), (7300, "2 h ago"), (2e5, "2 d ago")])
def test_ages(seconds, text):
    assert words.age(seconds) == text


def test_iteration_times_change_their_unit_at_a_second():
    assert words.pace(0.0795) == ("79.5", "ms")
    assert words.pace(7.7514) == ("7.75", "s")


def test_the_time_of_day_has_a_date_on_other_days():
    assert words.clock(1_767_225_600 + 3600, 1_767_225_600) == "01:00"
    assert words.clock(1_767_225_600 + 90_000, 1_767_225_600) == "02 Jan 01:00"
    assert words.clock(1e300, 1_767_225_600) == words.clock(float("inf"), 1_767_225_600) == "–"


def test_texts_are_shortened_where_they_tell_least():
    assert words.shorten("a long name", 6) == "a lon…"
    assert words.shorten_path("/a/long/path/name", 6) == "…/name"
    assert words.plural(1, "run") == "1 run"
    assert words.plural(1200, "run") == "1,200 runs"


def test_a_share_of_nothing_is_not_told():
    assert words.percent(3, 0) == ""
    assert words.percent(70, 60) == "100 %"
