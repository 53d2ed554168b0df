"""Does gigatoken give the tokens of the reference? Asked on a sample of every input."""

from __future__ import annotations

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


def difference(job: Job, files: list[SourceFile]) -> str:
    """In which document gigatoken and the reference differ, in a sentence."""
    fast = tokens.Gigatoken(job.tokenizer)
    reference = tokens.Tokenizers(job.tokenizer)
    # Every file when they are few; windows spread over all of them when they are many.
    sample = [text.encode() for text in _HARD]
    for file in files if len(files) <= _WINDOWS // 4 else []:
        sample += sampling.documents([file], job.shape, 1, _WINDOW_BYTES)
    sample += sampling.documents(files, job.shape, _WINDOWS, _WINDOW_BYTES)
    number = tokens.first_difference(fast, reference, sample)
    if number is None:
        return ""
    return f"it gives other tokens for {sample[number].decode(errors='replace')[:_SHOWN]!r}"
