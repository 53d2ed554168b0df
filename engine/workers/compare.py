"""Does gigatoken give the tokens of the reference? Asked on a sample of every input."""

from __future__ import annotations

from collections.abc import Iterable

from engine.data import sampling, tokens
from engine.data.job import Job
from engine.data.sources import SourceFile

_WINDOWS = 48
_WINDOW_BYTES = 8_000
"""So much keeps the slow reference at work for a fraction of a second."""
_SHOWN = 60
# Where pretokenizers differ, if anywhere: spaces, line ends, numbers, scripts, control tokens, broken letters.
_HARD = (
    " a  b   c\t\td\n\n e \n \r\n f",
    "it's IT'S we'LL o'Reilly’s 1 12 123 1234 12345.678,90 ½ ²",
    "¿Qué? naïve ﬁ ǅ ß İ 中文字符、日本語テキスト。한국어",
    "🙂👩\u200d👩\u200d👧🇩🇪 e\u0301 \u00a0\u2003\u200b\ufeff x",
    "<|endoftext|> <|start|> //\n/* */\r\n\\n",
    "a" * 3000 + " " * 3000 + "x" + "\n" * 500 + "ab" * 2000,
)


def difference(job: Job, fast: tokens.Encoder, files: list[SourceFile]) -> str:
    """In which document `fast` and the reference differ, in a sentence; empty when in none."""
    reference = tokens.Tokenizers(job.tokenizer)
    # Every file when they are few; windows spread over all of them when they are many.
    sample = [text.encode() for text in _HARD]
    for chosen in [[file] for file in files] if len(files) <= _WINDOWS // 4 else []:
        sample += _beginnings(sampling.documents(chosen, job.shape, 1, _WINDOW_BYTES))
    sample += _beginnings(sampling.documents(files, job.shape, _WINDOWS, _WINDOW_BYTES))
    number = tokens.first_difference(fast, reference, sample)
    if number is None:
        return ""
    return f"it gives other tokens for {sample[number].decode(errors='replace')[:_SHOWN]!r}"


def _beginnings(documents: Iterable[bytes]) -> list[bytes]:
    """What is compared of each document; a letter that is cut in two is left out."""
    return [document[:_WINDOW_BYTES].decode(errors="ignore").encode() for document in documents]
