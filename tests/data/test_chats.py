"""Chats to the rows that Megatron-Bridge trains on: nothing lost, nothing masked wrongly."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from engine.data import sources, vocabulary
from engine.data.chats import tokenizer as chat_tokenizer
from engine.data.harmony import Style
from engine.data.inspect import shape_of
from engine.data.packed_file import PackRules
from engine.data.prepare import prepare
from engine.data.request import Request
from engine.errors import SettingsError
from tests.data.conftest import texts, write_lines

numpy = pytest.importorskip("numpy")
parquet = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("tokenizers")


def _chats(count):
    words = texts(2 * count, words=20)
    pairs = zip(words[::2], words[1::2], strict=True)
    return [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in pairs]


def _prepare(path, tokenizer, output, **rules):
    files = tuple(sources.find(str(path)))
    found = vocabulary.read(tokenizer)
    packing = PackRules(**{"sequence_length": 512, "padding_id": found.end_of_answer, **rules})
    request = Request(
        files=files, shape=shape_of(files), vocabulary=found, output=output, workers=1, source="chat",
        packing=packing, on_bad_record="skip", validation_percent=20,
    )  # fmt: skip
    return prepare(request)


def _samples(path):
    """Every chat in the rows of a file: ids and the mask of its next tokens."""
    found = []
    for row in parquet.read_table(path).to_pylist():
        bounds = [*row["seq_start_id"], len(row["input_ids"])]
        assert len(row["loss_mask"]) == len(row["input_ids"])
        for start, end in zip(bounds, bounds[1:], strict=False):
            found.append((row["input_ids"][start:end], row["loss_mask"][start:end]))
    return found


@pytest.mark.parametrize("is_packed", [True, False])
def test_every_chat_is_there_once_with_its_mask(tokenizer, tmp_path, is_packed):
    chats = _chats(40)
    path = write_lines(tmp_path / "a.jsonl", [{"messages": chat} for chat in chats])
    made = _prepare(path, tokenizer, tmp_path / "out", is_packed=is_packed)
    words = chat_tokenizer(str(tokenizer / "tokenizer.json"), Style())
    wanted = []
    for chat in map(words.encode, chats):
        wanted.append((chat.ids, [*map(int, chat.mask[1:]), 0]))
    found = _samples(tmp_path / "out" / "train.idx.parquet") + _samples(tmp_path / "out" / "validation.idx.parquet")
    assert sorted(found) == sorted(wanted)
    assert made.trained_tokens == sum(sum(mask) for _, mask in _samples(tmp_path / "out" / "train.idx.parquet"))
    rows = parquet.read_table(tmp_path / "out" / "train.idx.parquet").num_rows
    assert rows == made.packing["train"]["rows"]
    assert (rows == made.packing["train"]["chats"]) == (not is_packed)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "manifest.json", "packing.json", "tokenizer", "train.idx.parquet", "validation.idx.parquet"]  # fmt: skip


def test_rows_hold_no_more_than_the_sequence_length(tokenizer, tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"messages": chat} for chat in _chats(60)])
    made = _prepare(path, tokenizer, tmp_path / "out", sequence_length=600, multiple=4)
    for row in parquet.read_table(tmp_path / "out" / "train.idx.parquet").to_pylist():
        bounds = [*row["seq_start_id"], len(row["input_ids"])]
        places = [end - start - 1 for start, end in zip(bounds, bounds[1:], strict=False)]
        assert sum(places) <= 600
        assert all(place % 4 == 0 for place in places)
    assert 0.5 < made.packing["train"]["efficiency"] <= 1
    facts = json.loads((tmp_path / "out" / "packing.json").read_text())[0]
    assert facts["pack_size"] == 600 and facts["max_samples_per_bin"] >= 2


def test_long_chats_lose_their_oldest_turns_or_are_left_out(tokenizer, tmp_path):
    chats = _chats(30)
    talk = [message for chat in chats for message in chat]
    monologue = [{"role": "user", "content": "x"}, {"role": "assistant", "content": " ".join(texts(60))}]
    path = write_lines(tmp_path / "a.jsonl", [{"messages": chat} for chat in [talk, monologue, *chats]])
    made = _prepare(path, tokenizer, tmp_path / "out")
    assert (made.shortened, made.too_long, made.documents) == (1, 1, 31)
    samples = _samples(tmp_path / "out" / "train.idx.parquet") + _samples(tmp_path / "out" / "validation.idx.parquet")
    assert max(len(ids) for ids, _ in samples) <= 513
    end = vocabulary.read(tokenizer).end_of_answer
    assert all(ids[-1] == end for ids, _ in samples)


def test_unusable_chats_are_listed(tokenizer, tmp_path):
    bad = [
        {"messages": [{"role": "wizard", "content": "x"}]},
        {"messages": [{"role": "user", "content": "x"}]},
    ]
    path = write_lines(tmp_path / "a.jsonl", [*({"messages": chat} for chat in _chats(20)), *bad])
    made = _prepare(path, tokenizer, tmp_path / "out")
    assert (made.documents, made.rejected) == (20, 2)
    listed = (tmp_path / "out" / "rejected.jsonl").read_text()
    assert "line 21" in listed and "'wizard' is unknown" in listed and "nothing to learn" in listed


def test_prompts_and_answers_become_chats(tokenizer, tmp_path):
    pairs = [{"prompt": chat[0]["content"], "completion": chat[1]["content"]} for chat in _chats(20)]
    _prepare(write_lines(tmp_path / "p.jsonl", pairs), tokenizer, tmp_path / "p")
    _prepare(
        write_lines(tmp_path / "c.jsonl", [{"messages": chat} for chat in _chats(20)]),
        tokenizer,
        tmp_path / "c",
    )
    sides = [
        sorted(_samples(tmp_path / name / f"{side}.idx.parquet")) for name in "pc" for side in ("train", "validation")
    ]
    assert sides[:2] == sides[2:]


def test_a_tokenizer_without_harmony_is_refused(tokenizer, tmp_path):
    plain = tmp_path / "plain"
    plain.mkdir()
    content = json.loads((tokenizer / "tokenizer.json").read_text())
    content["added_tokens"] = content["added_tokens"][:1]
    (plain / "tokenizer.json").write_text(json.dumps(content))
    path = write_lines(tmp_path / "a.jsonl", [{"messages": chat} for chat in _chats(5)])
    with pytest.raises(SettingsError, match="which the Harmony format of gpt-oss needs, and no chat template"):
        _prepare(path, plain, tmp_path / "out")


BRIDGE = """
import json, sys
from engine.workers import cpu
cpu.prepare_environment()
cpu.install()
from megatron.bridge.data.packing.parquet import GPTSFTPackedParquetDataset

class FakeTokenizer:
    eos_id = eod = int(sys.argv[2])

dataset = GPTSFTPackedParquetDataset(
    file_path=sys.argv[1], tokenizer=FakeTokenizer(), max_seq_length=512, prompt_template="{input} {output}",
    label_key="output", truncation_field="input", return_cu_seqlen=sys.argv[3] == "True", pad_to_max_length=True,
)
batches = [dataset.collate_fn([dataset[number]]) for number in range(len(dataset))]
print(json.dumps([[batch[name][0].tolist() for name in ("tokens", "labels", "loss_mask")] for batch in batches]))
"""


@pytest.mark.engine
@pytest.mark.parametrize("is_packed", [True, False])
def test_bridge_takes_the_rows_and_masks_as_meant(tokenizer, tmp_path, is_packed):
    pytest.importorskip("torch")
    chats = _chats(40)
    path = write_lines(tmp_path / "a.jsonl", [{"messages": chat} for chat in chats])
    _prepare(path, tokenizer, tmp_path / "out", is_packed=is_packed)
    rows = tmp_path / "out" / "train.idx.parquet"
    end = vocabulary.read(tokenizer).end_of_answer
    arguments = [str(rows), str(end), str(is_packed)]
    out = subprocess.run([sys.executable, "-c", BRIDGE, *arguments], capture_output=True, text=True, timeout=300)
    assert out.returncode == 0, out.stderr
    words = chat_tokenizer(str(tokenizer / "tokenizer.json"), Style())
    wanted = set()
    for chat in map(words.encode, chats):
        wanted.add(tuple(number for number, trained in zip(chat.ids, chat.mask, strict=True) if trained))
    answers = []
    for tokens, labels, mask in json.loads(out.stdout.splitlines()[-1]):
        assert len(tokens) == len(labels) == len(mask) == 512
        counted = [label for label, counts in zip(labels, mask, strict=True) if counts]
        # Answers end with <|return|>, so the labels that count fall apart into answers.
        while counted:
            size = counted.index(end) + 1
            answers.append(tuple(counted[:size]))
            counted = counted[size:]
    assert answers and set(answers) <= wanted
    assert len(answers) == len(_samples(rows))
