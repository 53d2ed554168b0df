"""The preview of what the settings choose: first records, their tokens, what is learnt, and what is wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from engine.data.preview import MAX_BYTES, preview
from engine.errors import NotFoundError, SettingsError
from engine.settings import Settings
from tests.data.conftest import texts, write_lines
from tests.data.test_indexed import write_pair

pytest.importorskip("tokenizers")


def _chosen(**values: object) -> Settings:
    return Settings().with_values({key.replace("_", ".", 1): value for key, value in values.items()})


def _text(path: Path, **values: object) -> Settings:
    return _chosen(data_source="text", data_path=str(path), **values)


def test_texts_are_shown_as_their_tokens(tokenizer, tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"body": text} for text in texts(9)])
    found = preview(_text(path), tokenizer, count=3)
    assert [record.text for record in found.records] == texts(3)
    for record in found.records:
        assert "".join(piece.text for piece in record.pieces).count("\ufffd") or (
            "".join(piece.text for piece in record.pieces) == record.text
        )
        assert record.tokens == record.trained_tokens == len(record.pieces)
    assert (found.kind, found.columns, found.files) == ("text", ("body",), 1)


def test_without_a_tokenizer_records_are_shown_and_nothing_heavy_is_loaded(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"text": "x" * 3 * MAX_BYTES}, {"text": 3}, {"text": "last"}])
    code = f"""
import sys
from engine.data.preview import preview
from engine.settings import Settings
found = preview(Settings().with_values({{"data.source": "text", "data.path": {str(path)!r}}}))
print([(len(r.text), r.is_cut, r.tokens, r.problem) for r in found.records])
assert not {{"torch", "numpy", "tokenizers", "transformers"}} & set(sys.modules)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    where = f"{path}, line 2: its 'text' is a number, not text"
    assert out.strip() == str([(MAX_BYTES, True, None, ""), (0, False, None, where), (4, False, None, "")])


def test_chats_show_what_is_learnt(tokenizer, tmp_path):
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hello"}]
    path = write_lines(tmp_path / "a.jsonl", [{"messages": chat}, {"messages": chat[:1]}])
    settings = _chosen(data_source="chat", data_path=str(path), training_goal="sft")
    good, bad = preview(settings, tokenizer).records
    assert good.text == "user: hi\nassistant: Hello"
    learnt = "".join(piece.text for piece in good.pieces if piece.is_trained)
    assert learnt == "<|channel|>final<|message|>Hello<|return|>"
    assert good.trained_tokens == sum(piece.is_trained for piece in good.pieces) < good.tokens == len(good.pieces)
    assert "nothing to learn" in bad.problem
    everything = preview(settings.with_values({"finetune.learn": "everything"}), tokenizer).records[0]
    assert everything.trained_tokens == everything.tokens


def test_sample_mock_and_prefix(tokenizer, tmp_path):
    toys = preview(_chosen(data_source="sample", training_goal="lora"), tokenizer)
    assert len(toys.records) == 5 and "The cat says: meow!" in toys.records[0].text
    assert preview(_chosen(data_source="sample")).records[0].text
    assert "invented" in preview(_chosen(data_source="mock")).note
    write_pair(tmp_path / "pair", [[5, 6, 7], [8], list(range(30))])
    found = preview(_chosen(data_source="prefix", data_path=str(tmp_path / "pair")), tokenizer, count=2)
    assert [record.tokens for record in found.records] == [3, 1]
    assert "3 documents of int32" in found.note
    assert preview(_chosen(data_source="prefix", data_path=str(tmp_path / "pair"))).records[0].text == "5 6 7"


def test_what_the_run_would_refuse_is_refused(tokenizer, tmp_path):
    lines = write_lines(tmp_path / "a.jsonl", [{"text": "x"}])
    chats = write_lines(tmp_path / "c.jsonl", [{"messages": [{"role": "user", "content": "x"}]}])
    for settings, kind, words in (
        (_text(tmp_path / "none"), NotFoundError, "there is no file"),
        (_chosen(data_source="text"), SettingsError, "no path is given"),
        (_text(lines, data_column="txt"), SettingsError, "no column 'txt'"),
        (_text(chats), SettingsError, "the goal continue learns text"),
        (_chosen(data_source="chat", data_path=str(lines), training_goal="sft"), SettingsError, "no chats"),
        (_chosen(data_source="prefix", data_path=str(lines)), SettingsError, "there is no .*a.jsonl.idx"),
    ):
        with pytest.raises(kind, match=words):
            preview(settings, tokenizer)
    with pytest.raises(NotFoundError, match="there is no tokenizer"):
        preview(_text(lines), tmp_path)
