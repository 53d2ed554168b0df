"""What holds for any documents: nothing is lost, sides are kept, work that was cut off ends as if it had not been.

The tokenising and the merging run here, in one process and without `prepare`, which tests/data/test_prepare.py drives.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.data import indexed, sources, units
from engine.data.job import Job
from engine.data.merge import Merger
from engine.data.shape import Shape
from tests.data.conftest import write_lines

numpy = pytest.importorskip("numpy")
pytest.importorskip("tokenizers")

END = 0
DOCUMENTS = st.lists(st.text(min_size=1, max_size=60), min_size=1, max_size=30)
QUICK = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def _job(tokenizer: Path, parts: Path, share: float = 0.3) -> Job:
    return Job(
        shape=Shape(), tokenizer=str(tokenizer / "tokenizer.json"), encoder="tokenizers", end_of_document=END,
        special_ids=(), token_type="uint16", validation_share=share, parts=str(parts),
    )  # fmt: skip


@pytest.fixture(scope="module")
def worker(tokenizer, tmp_path_factory):
    """One worker for all examples: loading the tokenizer is what takes time."""
    from engine.workers.tokenise import TextWorker

    return TextWorker(_job(tokenizer, tmp_path_factory.mktemp("parts")))


def _carry_out(worker, texts, directory: Path, stops: tuple[int, ...] = ()) -> Path:
    """Tokenise and merge; at each of `stops` (units) all that was not committed is lost, as by a kill."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    files = sources.find(str(write_lines(directory / "in.jsonl", [{"text": text} for text in texts])))
    work = directory / "work"
    worker.job = _job(Path(worker.job.tokenizer).parent, work / "parts")
    waiting = sorted(stops, reverse=True)
    while True:
        merger = Merger(work, {"same": True}, [file.path for file in files], worker.job.token_bytes)
        # Small units: a few documents each.
        for unit in units.Cutter(files, 300, merger.spool, merger.is_done).units():
            if unit.number < merger.current.units:
                continue
            if waiting and unit.number >= waiting[-1]:
                waiting.pop()
                break
            merger.add(merger.finished(unit.number) or worker.carry_out(unit))
            if unit.number % 3 == 1:
                merger.commit()
        else:
            merger.commit()
            merger.close()
            return work
        merger.close()  # writes what it held, uncommitted, as the kernel would


def _sides(work: Path) -> dict[str, list[list[int]]]:
    found = {}
    for side in ("train", "validation"):
        indexed.write_index(work / side, work / f"{side}.len", "uint16")
        ids = numpy.fromfile(work / f"{side}.bin", dtype=numpy.uint16).tolist()
        ends = numpy.cumsum(numpy.fromfile(work / f"{side}.len", dtype=numpy.int32)).tolist()
        found[side] = [ids[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    return found


@QUICK
@given(DOCUMENTS)
def test_round_trip(worker, tmp_path, texts):
    sides = _sides(_carry_out(worker, texts, tmp_path / "a"))
    documents = [*sides["train"], *sides["validation"]]
    assert all(document[-1] == END for document in documents)
    assert sorted(worker.encoder.decode(document[:-1]) for document in documents) == sorted(texts)


@QUICK
@given(DOCUMENTS, DOCUMENTS)
def test_a_document_keeps_its_side_when_others_come(worker, tmp_path, texts, more):
    before = _sides(_carry_out(worker, texts, tmp_path / "a"))
    after = _sides(_carry_out(worker, [*more, *texts], tmp_path / "b"))
    for side in before:
        assert {tuple(document) for document in before[side]} <= {tuple(document) for document in after[side]}


@QUICK
@given(st.lists(st.text(min_size=1, max_size=200), min_size=8, max_size=30), st.sets(st.integers(0, 12), max_size=4))
def test_resumed_is_as_if_never_stopped(worker, tmp_path, texts, stops):
    whole = _carry_out(worker, texts, tmp_path / "a")
    resumed = _carry_out(worker, texts, tmp_path / "b", tuple(stops))
    for name in ("train.bin", "train.len", "validation.bin", "validation.len"):
        assert (resumed / name).read_bytes() == (whole / name).read_bytes()
    last = [json.loads((work / "journal.jsonl").read_text().splitlines()[-1]) for work in (whole, resumed)]
    assert last[0] == last[1]


@settings(max_examples=200)
@given(st.text(min_size=2, max_size=40), st.floats(0.001, 0.5))
def test_halves_lose_nothing_and_cut_no_letter(text, share):
    from engine.workers.tokenise import halves

    one, other = halves(text.encode(), share)
    assert one and (one + other).decode() == text
    assert one.decode() and other.decode()
