"""Reading records: every format gives the same documents, every cut gives them once, every fault is named."""

from __future__ import annotations

import gzip
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.data import records, sources
from engine.data.records import Rejection
from engine.data.shape import Shape, detect
from engine.errors import NotFoundError, SettingsError
from tests.data.conftest import texts, write_lines

TEXTS = texts(50)


def _read(path, shape=Shape(), start=0, end=None):  # noqa: B008 - frozen
    file = sources.find(str(path))[0]
    return [found for _, found in records.documents(file, shape, start, end)]


def _plain(found):
    return [document.decode() for document in found]


def test_json_lines_give_their_texts(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"text": text} for text in TEXTS])
    assert _plain(_read(path)) == TEXTS


def test_packed_lines_give_the_same(tmp_path):
    content = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(content[:900]) + gzip.compress(content[900:]))
    assert _plain(_read(tmp_path / "a.jsonl.gz")) == TEXTS


def test_zstandard_lines_give_the_same(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    content = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()
    packed = [arrow.compress(part, "zstd", asbytes=True) for part in (content[:900], content[900:])]
    (tmp_path / "a.jsonl.zst").write_bytes(b"".join(packed))
    assert _plain(_read(tmp_path / "a.jsonl.zst")) == TEXTS


@pytest.mark.parametrize("large", [False, True])
def test_parquet_gives_the_same(tmp_path, large):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    kind = arrow.large_string() if large else arrow.string()
    table = arrow.table({"id": range(50), "text": arrow.array(TEXTS, kind)})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=7)
    file = sources.find(str(tmp_path / "a.parquet"))[0]
    assert _plain(_read(tmp_path / "a.parquet")) == TEXTS
    parts = [records.documents(file, Shape(), i, i + 1) for i in range(len(records.table_parts(file)))]
    assert [(row, found.decode()) for part in parts for row, found in part] == list(enumerate(TEXTS))


def test_a_saved_dataset_gives_the_same(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    folder = tmp_path / "saved" / "train"
    folder.mkdir(parents=True)
    with arrow.OSFile(str(folder / "data-0.arrow"), "wb") as out:
        table = arrow.table({"text": TEXTS})
        with arrow.ipc.new_stream(out, table.schema) as writer:
            writer.write_table(table, max_chunksize=9)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-0.arrow"}]}))
    (folder / "dataset_info.json").write_text("{}")
    (tmp_path / "saved" / "dataset_dict.json").write_text(json.dumps({"splits": ["train"]}))
    assert _plain(_read(tmp_path / "saved")) == TEXTS
    file = sources.find(str(tmp_path / "saved"))[0]
    assert len(records.table_parts(file)) == 6
    assert [row for row, _ in records.documents(file, Shape(), 2, 4)] == list(range(18, 36))
    with pytest.raises(SettingsError, match="no split 'test'"):
        sources.find(str(tmp_path / "saved"), "test")


def test_a_shuffled_dataset_is_refused(tmp_path):
    (tmp_path / "dataset_info.json").write_text("{}")
    state = {"_data_files": [], "_indices_data_files": [{"filename": "i.arrow"}]}
    (tmp_path / "state.json").write_text(json.dumps(state))
    with pytest.raises(SettingsError) as caught:
        sources.find(str(tmp_path))
    assert "flatten_indices" in caught.value.hint


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(st.text(max_size=40), max_size=30),
    cuts=st.lists(st.integers(0, 2000), max_size=6),
    crlf=st.booleans(),
)
def test_parts_give_every_record_once(tmp_path, lines, cuts, crlf):
    end = "\r\n" if crlf else "\n"
    content = end.join(json.dumps({"text": line}) for line in lines).encode()
    (tmp_path / "a.jsonl").write_bytes(content or b"\n")
    size = (tmp_path / "a.jsonl").stat().st_size
    bounds = [0, *sorted({cut for cut in cuts if cut < size}), size]
    parts = [_read(tmp_path / "a.jsonl", Shape(), start, stop) for start, stop in zip(bounds, bounds[1:], strict=False)]
    assert _plain(document for part in parts for document in part) == lines


def test_a_text_is_cut_into_the_same_pieces_wherever_it_is_entered(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "PIECE_BYTES", 100)
    path = tmp_path / "a.txt"
    path.write_text("\n".join(TEXTS), encoding="utf-8")
    whole = _read(path)
    assert b"".join(whole).decode() == "\n".join(TEXTS)
    size = path.stat().st_size
    assert [d for start in range(0, size, 300) for d in _read(path, Shape(), start, start + 300)] == whole


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "a', "not JSON"),
        (b"[1]", "a list, not an object"),
        (b'{"body": "x"}', "no column 'text'; it has body"),
        (b'{"text": 5}', "a number, not text"),
        (b'{"text": null}', "null, not text"),
        (b'{"text": "a\xff"}', "byte 0xff is not UTF-8"),
        (b'{"text": "\\ud800"}', "half of a surrogate pair"),
    ],
)
def test_a_fault_is_named_with_its_line(tmp_path, line, reason):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "good"}\n\n' + line + b'\n{"text": "after"}\n')
    file = sources.find(str(path))[0]
    found = list(records.documents(file, Shape()))
    assert [type(one) for _, one in found] == [bytes, Rejection, bytes]
    assert reason in found[1][1].reason
    assert records.place(file, found[1][0]) == f"{path}, line 3"


def test_a_bad_byte_in_a_text_is_named_with_its_line(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\ntwo\nthr\xe9e\n")
    file = sources.find(str(path))[0]
    [(position, found)] = records.documents(file, Shape())
    assert "0xe9" in found.reason
    assert records.place(file, position).endswith("line 3")


def test_a_record_too_long_is_rejected_and_the_next_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "MAX_RECORD_BYTES", 1000)
    path = write_lines(tmp_path / "a.jsonl", [{"text": "x" * 5000}, {"text": "y"}])
    first, second = _read(path)
    assert isinstance(first, Rejection)
    assert second == b"y"


def test_null_rows_and_other_types_in_tables_are_named(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table({"text": ["a", None], "n": [1, 2]}), tmp_path / "a.parquet")
    good, bad = _read(tmp_path / "a.parquet")
    assert (good, bad.reason) == (b"a", "its 'text' is null, not text")
    with pytest.raises(SettingsError, match="holds int64, not text"):
        _read(tmp_path / "a.parquet", Shape(column="n"))
    with pytest.raises(SettingsError, match="has no column 'body'; it has text, n"):
        _read(tmp_path / "a.parquet", Shape(column="body"))


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.jsonl.gz", "a.jsonl.zst"])
def test_a_broken_file_is_named(tmp_path, name):
    pytest.importorskip("pyarrow")
    path = tmp_path / name
    path.write_bytes(
        gzip.compress(b'{"text": "x"}\n' * 100)[:30] if name.endswith("gz") else b"\x28\xb5\x2f\xfdnonsense"
    )
    with pytest.raises(SettingsError) as caught:
        _read(path)
    assert str(path) in caught.value.message


def test_what_is_no_text_is_refused_at_once(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"PK\x03\x04\x00\x00")
    (tmp_path / "b.txt").write_text("hello", encoding="utf-16")
    (tmp_path / "c.json").write_text('[{"text": "a"}]')
    (tmp_path / "d.txt").write_bytes(b"")
    for name, words in (
        ("a.txt", "binary"),
        ("b.txt", "UTF-16"),
        ("c.json", "one JSON list"),
        ("d.txt", "empty"),
    ):
        with pytest.raises(SettingsError, match=words):
            sources.find(str(tmp_path / name))
    with pytest.raises(NotFoundError) as caught:
        sources.find("somebody/something")
    assert "hf:somebody/something" in caught.value.hint


def test_a_directory_and_a_pattern_come_in_order(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("b.txt", "a.jsonl", "sub/c.md", ".hidden.txt", "skip.bin"):
        (tmp_path / name).write_text('{"text": "x"}\n')
    assert [file.path[len(str(tmp_path)) + 1 :] for file in sources.find(str(tmp_path))] == [
        "a.jsonl",
        "b.txt",
        "sub/c.md",
    ]
    assert [file.format for file in sources.find(str(tmp_path / "*.*"))] == ["jsonl", "text", "text"]


def test_columns_are_found(tmp_path):
    assert detect([{"id": "1", "content": "x"}], "f").column == "content"
    assert detect([{"messages": [{"role": "user"}]}], "f").kind == "chat"
    assert detect([{"instruction": "a", "output": "b"}], "f").columns == ("instruction", "output")
    assert detect([{"poem": "a", "n": 1}], "f").column == "poem"
    assert detect([{"a": "x", "b": "y"}], "f", "a,b").kind == "prompt"
    with pytest.raises(SettingsError) as caught:
        detect([{"txt": "a"}], "f", "text")
    assert "did you mean txt?" in caught.value.hint
    with pytest.raises(SettingsError, match="none of the columns a, b"):
        detect([{"a": "x", "b": "y"}], "f")


def test_a_dataset_on_the_hub_is_taken_by_its_split_or_refused_clearly(tmp_path, monkeypatch):
    for name in ("data/train-00000-of-00001.jsonl", "data/test-00000-of-00001.jsonl", "trainer.jsonl"):
        write_lines((tmp_path / name).parent.mkdir(exist_ok=True) or tmp_path / name, [{"text": name}])
    monkeypatch.setattr(sources, "_fetch", lambda name: tmp_path)
    assert [file.path for file in sources.find("hf:owner/name")] == [f"{tmp_path}/data/train-00000-of-00001.jsonl"]
    assert len(sources.find("hf:owner/name", "other")) == 3
    monkeypatch.undo()
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SettingsError, match="the dataset 'owner/none-such' could not be fetched") as caught:
        sources.find("hf:owner/none-such")
    assert "fetch it elsewhere" in caught.value.hint
