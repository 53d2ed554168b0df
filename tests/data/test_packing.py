"""Packing loses nothing, overfills nothing and is never far from the best."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.data.packing import pack


@given(st.lists(st.integers(0, 100), max_size=80))
def test_every_item_is_in_one_row_that_holds_it(lengths):
    packs = pack(lengths, 100)
    assert sorted(item for row in packs.rows for item in row) == list(range(len(lengths)))
    assert all(sum(lengths[item] for item in row) <= 100 for row in packs.rows)


@given(st.lists(st.integers(1, 100), min_size=1, max_size=80))
def test_no_more_rows_than_the_bound(lengths):
    least = -(-sum(lengths) // 100)
    rows = len(pack(lengths, 100).rows)
    # No two rows could be joined, so at most one is half empty.
    assert least <= rows <= 2 * least + 1


def test_known_cases():
    assert len(pack([60, 50, 50, 40], 100).rows) == 2
    assert pack([50, 50], 100).efficiency == 1.0
    assert pack([30, 20, 50], 100).rows == ((2, 0, 1),)
    assert pack([], 100).efficiency == 0.0
    with pytest.raises(ValueError, match="item 1 has length 101, more than 100"):
        pack([3, 101], 100)
