"""A tokenizer file read without any tokenizer library: its ids, its end of a document, whose it is."""

from __future__ import annotations

import hashlib
import json
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.data import optional
from engine.errors import NotFoundError, SettingsError
from engine.paths import expanded, file_text, open_file

END_OF_TEXT = "<|endoftext|>"
"""What ends a document for gpt-oss. Its eos, <|return|>, ends an answer in a chat."""

BESIDE = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
"""What belongs to a tokenizer.json."""

_GPT_OSS_MERGEABLE = 199_998
_GPT_OSS_HASH = "39cea981b9071d038cb6afa951411bbc"
"""Of the o200k vocabulary that OpenAI publishes (sha256 446a9538…1a2d): see `_hash_of_merges`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """What a tokenizer.json says."""

    path: str
    """The tokenizer.json."""
    sha256: str
    size: int
    """One more than the largest token id."""
    special: dict[str, int]
    end_of_document: int
    end_of_answer: int
    """The tokenizer's own eos, <|return|> for gpt-oss; -1 where it names none."""
    is_gpt_oss: bool
    """True for the vocabulary of gpt-oss, o200k_harmony."""

    @property
    def token_type(self) -> str:
        """The number format that Megatron would choose (indexed_dataset.py `optimal_dtype`)."""
        return "uint16" if self.size < 65500 else "int32"


def read(path: str | Path, end_of_document: str = "") -> Vocabulary:
    """The vocabulary of a tokenizer.json, or of the directory that holds one.

    `end_of_document` names the token that ends a document, where it is not <|endoftext|> or the tokenizer's own.
    Raises NotFoundError, SettingsError.
    """
    file = expanded(path)
    file = file / "tokenizer.json" if file.is_dir() else file
    content, value = _read(file)
    try:
        tokens = {str(token): int(number) for token, number in _tokens(value["model"]["vocab"])}
        special = {str(item["content"]): int(item["id"]) for item in value.get("added_tokens") or []}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SettingsError(f"{file} is not a fast tokenizer: {error}", "give a Hugging Face tokenizer.json") from error
    _check_numbers(file, tokens, special)
    known = {**tokens, **special}
    return Vocabulary(
        path=str(file.absolute()),
        sha256=hashlib.sha256(content).hexdigest(),
        size=max(known.values(), default=-1) + 1,
        special=special,
        end_of_document=_end(file, known, end_of_document),
        end_of_answer=known.get(_own_end(file), -1),
        is_gpt_oss=len(tokens) >= _GPT_OSS_MERGEABLE and _hash_of_merges(tokens) == _GPT_OSS_HASH,
    )


def find(reference: str, allow_download: bool = True) -> Path:
    """The tokenizer.json that `reference` names: a file, a directory, or a model on the Hugging Face hub.

    Raises NotFoundError when it is neither here nor, with `allow_download`, to be had.
    """
    path = expanded(reference)
    if path.exists():
        return path / "tokenizer.json" if path.is_dir() else path
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError
    except ImportError:
        raise NotFoundError(f"there is no tokenizer {reference!r}", "give a directory with a tokenizer.json") from None
    try:
        found = hf_hub_download(reference, "tokenizer.json", local_files_only=not allow_download)
        for name in BESIDE:
            with suppress(EntryNotFoundError):  # not every model has all of them
                hf_hub_download(reference, name, local_files_only=not allow_download)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        first = str(error).strip().partition("\n")[0]
        raise NotFoundError(
            f"the tokenizer {reference!r} is neither a directory here nor to be had from the hub: {first}",
            "copy the model's tokenizer.json and tokenizer_config.json here and give their directory: --tokenizer DIR",
        ) from error
    return Path(found)


def copy(tokenizer_json: Path, target: Path) -> None:
    """The tokenizer into the directory `target`, with what lies beside it. Raises OSError."""
    target.mkdir(exist_ok=True)
    for name in ("tokenizer.json", *BESIDE):
        if tokenizer_json.with_name(name).is_file():
            shutil.copyfile(tokenizer_json.with_name(name), target / name)


def check_fits(vocabulary: Vocabulary, rows: int, needs_gpt_oss: bool, is_forced: bool) -> None:
    """Raise SettingsError when tokens of `vocabulary` cannot train a model with `rows` embedding rows.

    With `needs_gpt_oss` any other vocabulary is refused unless `is_forced`: its ids fit and mean something else.
    """
    if vocabulary.size > rows:
        raise SettingsError(
            f"{vocabulary.path} has token ids up to {vocabulary.size - 1:,}; the model knows 0 to {rows - 1:,}",
            "use the tokenizer of the model",
        )
    if needs_gpt_oss and not vocabulary.is_gpt_oss and not is_forced:
        raise SettingsError(
            f"{vocabulary.path} is not the tokenizer of gpt-oss (o200k_harmony)",
            "the released weights would read other words; use the model's own, or force it for a model from scratch",
        )


def _read(file: Path) -> tuple[bytes, dict[str, Any]]:
    try:
        with open_file(file) as opened:
            content = opened.read()
        value = optional.fast_json(content)
    except FileNotFoundError:
        raise NotFoundError(
            f"there is no tokenizer {file}", "give the directory with the model's tokenizer.json"
        ) from None
    except (OSError, ValueError) as error:
        raise SettingsError(f"{file} cannot be read: {error}", "give a Hugging Face tokenizer.json") from error
    if not isinstance(value, dict):
        raise SettingsError(f"{file} is not a tokenizer", "give a Hugging Face tokenizer.json")
    return content, value


def _tokens(vocabulary: Any) -> Any:
    if isinstance(vocabulary, dict):
        return vocabulary.items()
    # Unigram models list [token, score]; the place is the id.
    return ((item[0], number) for number, item in enumerate(vocabulary))


def _check_numbers(file: Path, tokens: dict[str, int], special: dict[str, int]) -> None:
    """Refuse numbers that `tokenizers` would not keep: it counts added tokens on from those before, without gaps.

    (tokenizers/src/tokenizer/added_vocabulary.rs, add_tokens, 0.22)
    """
    following = len(tokens)
    for token, number in special.items():
        if token not in tokens:
            if number != following:
                raise SettingsError(
                    f"{file} gives {token} the id {number:,}, and the library that reads it counts on to {following:,}",
                    "save the tokenizer again with transformers, which leaves no gap between the added tokens",
                )
            following += 1


def _end(file: Path, known: dict[str, int], chosen: str) -> int:
    for token in [chosen] if chosen else [END_OF_TEXT, _own_end(file)]:
        if token in known:
            return known[token]
    raise SettingsError(
        f"{file} has no token {chosen or END_OF_TEXT!r} to end a document with",
        "name one of its tokens with --end-of-document",
    )


def _own_end(file: Path) -> str:
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        try:
            token = json.loads(file_text(file.parent / name)).get("eos_token")
        except (OSError, ValueError, AttributeError, RecursionError):
            continue
        if token:
            return str(token.get("content", "") if isinstance(token, dict) else token)
    return ""


def _hash_of_merges(tokens: dict[str, int]) -> str:
    ordered = sorted((number, token) for token, number in tokens.items() if number < _GPT_OSS_MERGEABLE)
    lines = "".join([f"{number} {token}\n" for number, token in ordered])
    return hashlib.blake2b(lines.encode(), digest_size=16).hexdigest()
