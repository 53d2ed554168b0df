"""A small share of `make fuzz` at every change, and the inputs that once broke a reader."""

from __future__ import annotations

import json
import random
import struct

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.fuzz.harnesses import ALL, BY_NAME, WORDS, Harness
from tests.fuzz.run import fuzz, mutate


def _safetensors(header: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header


def _report(**last: object) -> bytes:
    records = [{"t": 1, "iteration": 1, "loss": 2.5}, {"t": 2, "iteration": 2, **last}]
    return b"\n".join(json.dumps(record).encode() for record in records)


BROKE = {
    "diagnosis": [b"[" * 2000, b'{"error": "E", "message": "m", "rank": 1e999, "t": 1}'],
    "safetensors": [
        _safetensors(
            b'{"w": {"dtype": "BF16", "data_offsets": [0, 0], "shape": [%s1]}}' % (b"9223372036854775807," * 50_000)
        ),
        _safetensors(b'{"w": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 1e999]}}'),
    ],
    "log": [b" [0] global_step: 1e999 | iteration 1/ 9 |", b"Training epoch 0, iteration 0/9 | global_step: 1e999"],
    "manifest": [
        b'{"files": {"a": 1}}',
        b'{"files": {"a": {"bytes": 1}}}',
        b'{"version": "x", "files": {}}',
        b'{"files": {"../a": {"bytes": 1, "sha256": ""}}}',
        b'{"files": {"a\\u0000": {"bytes": 1, "sha256": ""}}}',
        b'{"files": {"\\ud800": {"bytes": 1, "sha256": ""}}}',
    ],
    "metadata": [b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\xff.", b"\x80\x02]r\xff\xff\xff\xff."],
    "records": [b"[" * 200_000, b'{"kind": {}, "t": 1}', b'{"t": 1e999, "iteration": 3}', b'{"t": NaN}', b"1" * 10_000],
    "report": [
        _report(loss=-1.7e308) + b'\n{"t": 3, "iteration": 3, "loss": 1.7e308}',
        _report(kind="alert", message="x") + b'\n{"t": 1e300, "kind": "alert", "message": "\\ud800\\u001b[2J"}',
    ],
    "script": [b"A=xxxxxxxx\n" + b"A=$A$A\n" * 60, b"A=(x y)\n" + b"A=($A $A)\n" * 60],
    "state": [b"[" * 200_000, b'{"version": 1e999}', b'{"version": [1]}', b"null"],
}


@pytest.mark.parametrize("harness", ALL, ids=lambda harness: harness.name)
def test_mutations_of_real_inputs(harness: Harness) -> None:
    assert fuzz(harness, 250, 60, seed=random.Random(harness.name).randrange(1000)) == 250


@pytest.mark.parametrize("harness", ALL, ids=lambda harness: harness.name)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.binary(max_size=200) | st.lists(st.sampled_from(WORDS) | st.binary(max_size=8)).map(b"".join))
@example(data=b"")
def test_anything(harness: Harness, data: bytes) -> None:
    harness(data)


@pytest.mark.parametrize(
    ("name", "data"),
    [pytest.param(name, data, id=f"{name}-{n}") for name, inputs in BROKE.items() for n, data in enumerate(inputs)],
)
def test_what_once_broke_a_reader(name: str, data: bytes) -> None:
    BY_NAME[name](data)


def test_every_harness_has_whole_seeds_that_mutate() -> None:
    for harness in ALL:
        seeds = harness.seeds()
        assert seeds and all(seeds), harness.name
        for seed in seeds:
            harness.run(seed)  # understood, so that a mutation is nearly right
        assert len({mutate(random.Random(n), seeds) for n in range(50)}) > 30
