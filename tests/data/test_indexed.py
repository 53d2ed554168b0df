"""The .bin/.idx pair: equal to Megatron's builder byte for byte, and every kind of damage found."""

from __future__ import annotations

import re
import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.data import indexed
from engine.errors import SettingsError

numpy = pytest.importorskip("numpy")

DOCUMENTS = [[5, 6, 7], [8], [9, 10], [511] * 300]


def write_pair(prefix, documents, token_type="int32"):
    numpy.concatenate([numpy.array(d, dtype=token_type) for d in documents]).tofile(f"{prefix}.bin")
    lengths = prefix.with_suffix(".len")
    numpy.array([len(d) for d in documents], dtype=numpy.int32).tofile(lengths)
    assert indexed.write_index(prefix, lengths, token_type) == (len(documents), sum(map(len, documents)))


@pytest.mark.engine
@pytest.mark.filterwarnings("ignore:__array__ implementation")  # Megatron on NumPy 2.5
@pytest.mark.parametrize("token_type", ["int32", "uint16"])
def test_the_pair_is_what_megatrons_builder_writes(tmp_path, token_type):
    torch = pytest.importorskip("torch")
    megatron = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    chance = numpy.random.default_rng(1)
    documents = [chance.integers(0, 60000, size=chance.integers(1, 500)).tolist() for _ in range(200)]
    write_pair(tmp_path / "ours", documents, token_type)
    builder = megatron.IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=getattr(numpy, token_type))
    for document in documents:
        builder.add_document(torch.tensor(document), [len(document)])
    builder.finalize(str(tmp_path / "theirs.idx"))
    for ending in ("bin", "idx"):
        assert (tmp_path / f"ours.{ending}").read_bytes() == (tmp_path / f"theirs.{ending}").read_bytes()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    documents=st.lists(st.lists(st.integers(0, 65499), min_size=1, max_size=20), min_size=1, max_size=20),
    token_type=st.sampled_from(["int32", "uint16"]),
)
def test_a_written_pair_passes_its_own_check(tmp_path, documents, token_type):
    write_pair(tmp_path / "a", documents, token_type)
    facts = indexed.check(tmp_path / "a", 65500)
    assert (facts.documents, facts.tokens) == (len(documents), sum(map(len, documents)))
    assert (facts.token_type, facts.largest_id) == (token_type, max(map(max, documents)))


def test_many_documents_need_no_more_memory_than_few(tmp_path, monkeypatch):
    monkeypatch.setattr(indexed, "_CHUNK", 7)
    documents = [[1] * (1 + number % 5) for number in range(100)]
    write_pair(tmp_path / "small", documents)
    monkeypatch.undo()
    write_pair(tmp_path / "large", documents)
    assert (tmp_path / "small.idx").read_bytes() == (tmp_path / "large.idx").read_bytes()


def _edit(path, at, value):
    content = bytearray(path.read_bytes())
    content[at : at + len(value)] = value
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda p: p.with_suffix(".bin").unlink(), "there is no"),
        (lambda p: _edit(p.with_suffix(".idx"), 0, b"PARQUET"), "not a Megatron index"),
        (lambda p: _edit(p.with_suffix(".idx"), 9, b"\x02"), "format version 2"),
        (lambda p: _edit(p.with_suffix(".idx"), 17, b"\x06"), "token type 6"),
        (lambda p: _edit(p.with_suffix(".idx"), 17, b"\x01"), "uint8 tokens"),
        (lambda p: _edit(p.with_suffix(".idx"), 18, struct.pack("<Q", 400)), "cut off or damaged"),
        (lambda p: _edit(p.with_suffix(".idx"), 34, struct.pack("<i", -3)), "a sequence has -3 tokens"),
        (
            lambda p: _edit(p.with_suffix(".idx"), 34 + 16 + 8, struct.pack("<q", 5)),
            "sequence 1 starts in the wrong place",
        ),
        (
            lambda p: _edit(p.with_suffix(".idx"), 34 + 48 + 32, struct.pack("<q", 9)),
            "its documents end at 9 of 4",
        ),
        (lambda p: p.with_suffix(".bin").write_bytes(p.with_suffix(".bin").read_bytes()[:-4]), "is cut off"),
        (
            lambda p: p.with_suffix(".bin").write_bytes(p.with_suffix(".bin").read_bytes() + b"0000"),
            "longer than its index",
        ),
        (
            lambda p: _edit(p.with_suffix(".bin"), 8, struct.pack("<i", 512)),
            "token id 512; the model knows 0 to 511",
        ),
        (lambda p: _edit(p.with_suffix(".bin"), 8, struct.pack("<i", -1)), "token id -1"),
    ],
)
def test_damage_is_named(tmp_path, damage, words):
    write_pair(tmp_path / "a", DOCUMENTS)
    assert indexed.check(tmp_path / "a", 512).tokens == 306
    damage(tmp_path / "a")
    with pytest.raises(SettingsError, match=re.escape(words)):
        indexed.check(tmp_path / "a", 512)


def test_a_prefix_with_its_ending_gets_the_right_hint(tmp_path):
    write_pair(tmp_path / "a", DOCUMENTS)
    with pytest.raises(SettingsError) as caught:
        indexed.check(tmp_path / "a.bin", 512)
    assert caught.value.hint.endswith(str(tmp_path / "a"))


@pytest.mark.parametrize("token_type", ["int32", "uint16", "int64"])
def test_the_first_documents_are_read_without_the_rest(tmp_path, token_type):
    write_pair(tmp_path / "pair", DOCUMENTS, token_type)
    facts = indexed.check_header(tmp_path / "pair")
    assert (facts.documents, facts.token_type) == (len(DOCUMENTS), token_type)
    assert list(indexed.first_documents(tmp_path / "pair", 2, 100)) == [(DOCUMENTS[0], False), (DOCUMENTS[1], False)]
    assert list(indexed.first_documents(tmp_path / "pair", 9, 7))[3] == ([511] * 7, True)
    assert [indexed.tokens_before(tmp_path / "pair", n) for n in range(5)] == [0, 3, 4, 6, 306]


@pytest.mark.parametrize("ending", ["bin", "idx"])
@pytest.mark.parametrize("change", [-1, 1])
def test_the_quick_check_sees_other_sizes(tmp_path, ending, change):
    write_pair(tmp_path / "pair", DOCUMENTS)
    path = tmp_path / f"pair.{ending}"
    content = path.read_bytes()
    path.write_bytes(content[:-1] if change < 0 else content + b"xxxxxx")
    with pytest.raises(SettingsError, match="cut off|longer than its index"):
        indexed.check_header(tmp_path / "pair")


@pytest.mark.parametrize(
    ("documents", "percent", "train"),
    # Python and numpy round halves to even, as Megatron does.
    [(10, 10, 9), (10, 20, 8), (3, 50, 2), (5, 50, 2), (4, 20, 3)],
)
def test_the_split_of_a_pair_is_megatrons(documents, percent, train):
    assert indexed.first_held_out(documents, percent) == train


@pytest.mark.parametrize(("documents", "percent"), [(10, 5), (1, 50), (3, 10)])
def test_an_empty_side_is_refused(documents, percent):
    with pytest.raises(SettingsError, match="leaves one side without any"):
        indexed.first_held_out(documents, percent)
