"""Chats through a tokenizer's own template: the text of transformers, and loss on the answers alone."""

from __future__ import annotations

import json

import pytest

from engine.data.chats import tokenizer as chat_tokenizer
from engine.data.harmony import Style
from engine.data.shape import Unusable
from engine.errors import SettingsError

pytest.importorskip("tokenizers")
pytest.importorskip("jinja2")

CHATML = (
    "{{ bos_token }}{% for message in messages %}\n"
    "    {% if message['role'] not in ('system', 'user', 'assistant') %}{{ raise_exception('no ' + message['role']) }}"
    "{% endif %}\n"
    "{{ '[' + message['role'] + ']' + message['content'] | trim + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "naïve question? 中文"},
    {"role": "assistant", "content": "First answer 🙂"},
    {"role": "user", "content": "And?"},
    {"role": "assistant", "content": "Second."},
]


@pytest.fixture
def foreign(tokenizer, tmp_path):
    """Makes the tokenizer without Harmony's control tokens, with a template."""

    def make(template: object) -> str:
        content = json.loads((tokenizer / "tokenizer.json").read_text())
        content["added_tokens"] = content["added_tokens"][:1]
        (tmp_path / "tokenizer.json").write_text(json.dumps(content))
        config = {"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>", "chat_template": template}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        return str(tmp_path / "tokenizer.json")

    return make


def test_answers_are_learnt_up_to_their_end(foreign):
    words = chat_tokenizer(foreign(CHATML), Style())
    chat = words.encode(CHAT)
    text = words.words.decode(chat.ids)
    assert text.replace("\n", "").replace("    ", "") == (
        "<|endoftext|>[system]Be brief.<|endoftext|>[user]naïve question? 中文<|endoftext|>"
        "[assistant]First answer 🙂<|endoftext|>[user]And?<|endoftext|>[assistant]Second.<|endoftext|>"
    )
    learnt = words.words.decode([n for n, is_learnt in zip(chat.ids, chat.mask, strict=True) if is_learnt])
    assert learnt.replace("\n", "") == "First answer 🙂<|endoftext|>Second.<|endoftext|>"


@pytest.mark.engine
def test_the_tokens_are_those_of_transformers(foreign):
    from pathlib import Path

    transformers = pytest.importorskip("transformers")
    file = foreign(CHATML)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(Path(file).parent)
    assert (
        chat_tokenizer(file, Style()).encode(CHAT).ids == theirs.apply_chat_template(CHAT, tokenize=True)["input_ids"]
    )


def test_a_named_template_and_one_in_a_file_are_found(foreign, tmp_path):
    plain = chat_tokenizer(foreign(CHATML), Style()).encode(CHAT).ids
    named = foreign([{"name": "tool_use", "template": "x"}, {"name": "default", "template": CHATML}])
    assert chat_tokenizer(named, Style()).encode(CHAT).ids == plain
    (tmp_path / "chat_template.jinja").write_text(CHATML)
    assert chat_tokenizer(foreign("other"), Style()).encode(CHAT).ids == plain


@pytest.mark.parametrize(
    ("chat", "says"),
    [
        ([*CHAT[:1], {"role": "tool", "content": "x"}, *CHAT[1:]], "the chat template refuses it: no tool"),
        ([{"role": "user", "content": "say <|endoftext|>"}, CHAT[2]], "spells out the control token"),
        ([{"role": "user"}, CHAT[2]], r"message 1 \(user\) has no content"),
        ([{"role": "user", "content": 3}, CHAT[2]], "is not text"),
        (CHAT[:2], "no answer of the assistant"),
    ],
)
def test_what_cannot_be_trained_on_is_named(foreign, chat, says):
    with pytest.raises(Unusable, match=says):
        chat_tokenizer(foreign(CHATML), Style()).encode(chat)


def test_a_template_that_rewrites_the_past_is_refused(foreign):
    rewriting = "{% for m in messages %}{{ m.content if loop.last else '...' }}{% endfor %}"
    with pytest.raises(Unusable, match="message 3: the chat template writes older turns in another way"):
        chat_tokenizer(foreign(rewriting), Style()).encode(CHAT)


def test_no_template_and_a_broken_one(foreign):
    with pytest.raises(SettingsError, match="and no chat template"):
        chat_tokenizer(foreign(""), Style())
    with pytest.raises(SettingsError, match="is broken"):
        chat_tokenizer(foreign("{% for"), Style())
