"""A small tokenizer that has Harmony's control tokens, and texts to feed it."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from engine.data.harmony import CONTROL_TOKENS
from engine.data.vocabulary import END_OF_TEXT

WORDS = "the model reads text and learns what comes next; naïve ﬁne 中文 🙂 1234 it's def f(x): return x".split()


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    """The directory of a byte-level BPE tokenizer with 600 tokens, its eos <|return|> as in gpt-oss."""
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=[END_OF_TEXT, *CONTROL_TOKENS],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(texts(300), trainer)
    directory = tmp_path_factory.mktemp("tokenizer")
    made.save(str(directory / "tokenizer.json"))
    config = {"eos_token": "<|return|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


def texts(count: int, seed: int = 0, words: int = 60) -> list[str]:
    """Different short texts, the same for the same arguments."""
    chance = random.Random(seed)
    return [
        " ".join(chance.choices(WORDS, k=chance.randint(2, words))) + f"\nnumber {number}" for number in range(count)
    ]


def write_lines(path: Path, records) -> Path:
    """`records` as JSON lines."""
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path
