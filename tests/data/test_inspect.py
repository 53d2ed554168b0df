"""Looking at data: exact where it counts, honest intervals where it samples, every doubt shown."""

from __future__ import annotations

import json
import random

import pytest

from engine.data import inspect as inspecting
from engine.data import sources, vocabulary
from engine.data.estimates import Estimates, Window, histogram, length_facts
from engine.data.inspect import inspect, shape_of
from gptoss_tui.__main__ import main
from tests.data.conftest import texts, write_lines


def _look(path, tokenizer=None, **options):
    files = sources.find(str(path))
    found = vocabulary.read(tokenizer) if tokenizer else None
    return inspect(str(path), files, shape_of(files), found, **options)


def test_small_data_is_counted(tokenizer, tmp_path):
    from tokenizers import Tokenizer

    documents = [*texts(50), texts(50)[3], ""]
    path = write_lines(tmp_path / "a.jsonl", [{"text": text} for text in documents])
    with path.open("ab") as file:
        file.write(b'{"text": "\xff"}\n{"text": "a <|end|>"}\n')
    found = _look(path, tokenizer, sequence_length=40, planned_tokens=100_000)
    encode = Tokenizer.from_file(str(tokenizer / "tokenizer.json")).encode
    sizes = [len(encode(text, add_special_tokens=False).ids) for text in [*documents[:-1], "a <|end|>"]]
    assert found.is_exact
    assert found.tokens.value == found.tokens.low == sum(sizes)
    assert (found.records.value, found.empty, found.duplicates, found.rejected) == (54, 1, 1, 1)
    assert found.problems == (f"{path}, line 53: byte 0xff is not UTF-8",)
    assert found.with_control_tokens == 1
    assert found.over_sequence_length == pytest.approx(sum(size > 40 for size in sizes) / len(sizes))
    assert found.epochs.value == pytest.approx(100_000 / sum(sizes))
    assert found.lengths["maximum"] == max(sizes)
    assert sum(count for _, count in found.histogram) == len(sizes)
    assert documents[0].startswith(found.samples[0][:20])


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "parquet"])
def test_a_sample_comes_near_the_truth(tmp_path, monkeypatch, suffix):
    import gzip

    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(inspecting, "EXACT_BELOW_BYTES", 1000)
    monkeypatch.setattr(inspecting, "_WINDOW_BYTES", 4000)
    documents = texts(6000, words=120)
    if suffix == "parquet":
        parquet.write_table(arrow.table({"text": documents}), tmp_path / "a.parquet", row_group_size=100)
    else:
        lines = "".join(json.dumps({"text": text}) + "\n" for text in documents).encode()
        (tmp_path / f"a.{suffix}").write_bytes(gzip.compress(lines) if suffix.endswith("gz") else lines)
    found = _look(tmp_path / f"a.{suffix}")
    assert not found.is_exact
    assert found.seen_records < 3000
    if suffix != "jsonl.gz":  # from one window there is no interval
        assert found.records.low <= 6000 <= found.records.high
        assert found.records.high - found.records.low < 2000
    assert found.records.value == pytest.approx(6000, rel=0.2)
    assert found.text_bytes.value == pytest.approx(sum(len(text.encode()) for text in documents), rel=0.2)
    assert found.tokens is None and found.length_unit == "bytes"


def test_the_interval_holds_the_truth_as_often_as_it_says():
    chance = random.Random(7)
    held = 0
    for _ in range(300):
        windows = [Window(raw_bytes=1000, records=chance.randint(5, 15)) for _ in range(1000)]
        whole = sum(window.records for window in windows)
        found = Estimates(chance.sample(windows, 48), 1_000_000, is_exact=False).records
        held += found.low <= whole <= found.high
    assert 0.90 < held / 300 < 0.99


def test_lengths():
    assert length_facts([]) == {}
    assert length_facts(list(range(1, 102)))["99 %"] == 100
    assert histogram([1, 2, 3, 4, 5, 1024, 1025]) == ((1, 1), (2, 1), (4, 2), (8, 1), (1024, 1), (2048, 1))


def test_the_verbs(tokenizer, tmp_path, capsys):
    path = write_lines(tmp_path / "a.jsonl", [{"text": text} for text in texts(60)])
    common = ["--tokenizer", str(tokenizer)]
    assert main(["data", "inspect", str(path), *common, "--json", "--sequence-length", "64"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["records"]["value"] == 60 and facts["sequence_length"] == 64
    assert main(["data", "inspect", str(path), *common, "--preset", "rehearsal"]) == 0
    shown = capsys.readouterr().out
    assert "60 of text (text)" in shown and "epochs" in shown and "sample 1" in shown
    out = str(tmp_path / "out")
    make = [
        "data",
        "prepare",
        str(path),
        *common,
        "-o",
        out,
        "--quick",
        "--encoder",
        "tokenizers",
        "--workers",
        "1",
    ]
    assert main(make) == 2
    assert "not the tokenizer of gpt-oss" in capsys.readouterr().err
    assert main([*make, "--force", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[-1]["documents"] == 60 and lines[-1]["output"] == out
    assert all("progress" in line for line in lines[:-1])
    assert main([*make, "--force"]) == 0
    assert "60 documents" in capsys.readouterr().out
    write_lines(path, [{"text": "changed"}])
    assert main(["data", "check", out, "--json"]) == 0
    checked = json.loads(capsys.readouterr().out)
    assert checked["pairs"]["train"]["documents"] + checked["pairs"]["validation"]["documents"] == 60
    assert "it had" in checked["changed_sources"][0]
    assert main(["data", "check", f"{out}/train"]) == 0
    assert main(["data", "check", f"{out}/train", "--rows", "300"]) == 2
    assert main(["data", "inspect", str(tmp_path / "nothing.jsonl")]) == 4


def test_the_chat_verb(tokenizer, tmp_path, capsys):
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hello"}]
    chats = [{"messages": [*chat, {**chat[0], "content": text}, chat[1]]} for text in texts(40)]
    path = write_lines(tmp_path / "c.jsonl", chats)
    arguments = [
        "data",
        "prepare",
        str(path),
        "--tokenizer",
        str(tokenizer),
        "--force",
        "-o",
        str(tmp_path / "out"),
    ]
    assert main([*arguments, "--sequence-length", "512"]) == 0
    shown = capsys.readouterr().out
    assert "train: " in shown and "rows" in shown and "filled" in shown
    assert main(["data", "inspect", str(path), "--tokenizer", str(tokenizer)]) == 0
    shown = capsys.readouterr().out
    assert "of chat (messages)" in shown and "% of the tokens: the answers" in shown


def test_chats_are_counted_as_prepared(tokenizer, tmp_path, capsys):
    good = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hello"}]
    records = [{"messages": [{**good[0], "content": text}, good[1]]} for text in texts(40)]
    path = write_lines(tmp_path / "c.jsonl", [*records, {"messages": good[:1]}, {"messages": "x"}])
    found = _look(path, tokenizer)
    assert (found.records.value, found.rejected) == (42, 2)
    assert found.problems[0] == f"{path}, line 41: it has no answer of the assistant: there is nothing to learn"
    out = tmp_path / "out"
    options = ["--tokenizer", str(tokenizer), "--force", "-o", str(out), "--skip-bad", "--json", "--no-packing"]
    assert main(["data", "prepare", str(path), *options]) == 0
    made = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found.tokens.value == made["train_tokens"] + made["validation_tokens"]
