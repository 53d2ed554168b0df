"""`gptoss data`: look at training data, and turn it into what Megatron reads."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from engine.cli import output
from engine.errors import ExitCode, NotFoundError, SettingsError
from engine.paths import expanded

if TYPE_CHECKING:
    from engine.data.estimates import Estimate
    from engine.data.inspect import Inspection
    from engine.data.manifest import Manifest
    from engine.data.packed_file import PackRules
    from engine.data.request import Status
    from engine.data.shape import Shape
    from engine.data.vocabulary import Vocabulary
    from engine.settings import Settings

OWN_TOKENIZER = "openai/gpt-oss-20b"
GPT_OSS_ROWS = 201_088
"""Embedding rows of both released models."""

_PROGRESS_INTERVAL_S = 0.5
_BAR = 24
_CHART = 40


def inspect(arguments: argparse.Namespace) -> int:
    """Say what is in the data."""
    from engine.data import sources
    from engine.data.inspect import inspect as look
    from engine.data.inspect import shape_of
    from engine.data.work import default_workers

    files = sources.find(arguments.path, arguments.split)
    shape = shape_of(files, arguments.column)
    settings = _settings(arguments.preset)
    length = arguments.sequence_length or (settings.training.sequence_length if settings else 0)
    vocabulary, notice = _optional_vocabulary(arguments.tokenizer)
    found = look(
        arguments.path, files, shape, vocabulary, is_exact=arguments.exact, sequence_length=length,
        planned_tokens=_planned_tokens(settings), workers=default_workers(), tell=_Counter().tell,
    )  # fmt: skip
    if notice:
        found = replace(found, notices=(*found.notices, notice))
    if arguments.json:
        output.print_json(asdict(found))
    else:
        print(output.clean(describe(found)))
    return ExitCode.DONE


def prepare(arguments: argparse.Namespace) -> int:
    """Make a dataset."""
    from engine.data import job, sources, vocabulary
    from engine.data.harmony import Style
    from engine.data.inspect import shape_of
    from engine.data.prepare import prepare as make
    from engine.data.request import Request

    files = sources.find(arguments.path, arguments.split)
    shape = shape_of(files, arguments.column)
    tokenizer = vocabulary.find(arguments.tokenizer or OWN_TOKENIZER)
    words = vocabulary.read(tokenizer, arguments.end_of_document)
    vocabulary.check_fits(
        words, arguments.rows, needs_gpt_oss=arguments.rows == GPT_OSS_ROWS, is_forced=arguments.force
    )
    progress = _Progress(arguments.json)
    started = time.monotonic()
    made = make(
        Request(
            files=tuple(files),
            shape=shape,
            vocabulary=words,
            output=output.directory(arguments.output).absolute(),
            source="text" if shape.kind == "text" else "chat",
            validation_percent=arguments.validation_percent,
            on_bad_record=job.SKIP if arguments.skip_bad else job.STOP,
            encoder=arguments.encoder,
            workers=arguments.workers,
            style=Style(effort=arguments.effort),
            packing=_packing(arguments, shape, words),
            reads_back=not arguments.quick,
        ),
        progress.tell,
    )
    seconds = time.monotonic() - started
    progress.end()
    if arguments.json:
        facts = {"output": arguments.output, "seconds": round(seconds, 2), **asdict(made)}
        output.print_json({**facts, "tokenising_s": round(progress.tokenising_s, 2)}, line=True)
    else:
        print(output.clean(_summary(made, arguments.output, seconds)))
    return ExitCode.DONE


def check(arguments: argparse.Namespace) -> int:
    """Check a .bin/.idx pair, or a prepared dataset."""
    from engine.data import indexed, manifest

    path = expanded(arguments.path)
    if (path / manifest.FILE).is_file():
        made = manifest.Manifest.load(path)
        pairs = {name: indexed.check(path / name, arguments.rows) for name in ("train", "validation")
                 if (path / f"{name}.idx").exists()}  # fmt: skip
        changed = manifest.changed_sources(made)
    else:
        pairs, changed = {path.name: indexed.check(path, arguments.rows)}, []
    if arguments.json:
        output.print_json({"pairs": {name: asdict(facts) for name, facts in pairs.items()}, "changed_sources": changed})
        return ExitCode.DONE
    for name, facts in pairs.items():
        print(f"{name}: {facts.documents:,} documents, {facts.tokens:,} tokens, {facts.token_type}, "
              f"largest id {facts.largest_id:,}")  # fmt: skip
    for sentence in changed:
        output.say(f"note: {sentence}; prepare it again to train on what it is now")
    return ExitCode.DONE


def describe(found: Inspection) -> str:
    """An inspection as text."""
    size = found.size_bytes / 1e6
    kinds = ", ".join(f"{count} x {name}" for name, count in found.formats.items())
    lines = [
        f"{found.path}",
        f"  files      {kinds}, {size:,.1f} MB",
        f"  records    {_count(found.records)} of {found.kind} ({', '.join(found.columns)})",
        f"  text       {found.text_bytes.value / 1e6:,.1f} MB",
    ]
    if found.tokens:
        lines.append(f"  tokens     {_count(found.tokens)}")
    if found.lengths:
        facts = ", ".join(f"{name} {value:,.0f}" for name, value in found.lengths.items())
        lines.append(f"  a record   {facts} {found.length_unit}")
    if found.over_sequence_length is not None:
        share = found.over_sequence_length
        lines.append(f"  longer     {share:.1%} of the records are longer than {found.sequence_length:,} tokens")
    if found.trained_share is not None:
        lines.append(f"  learnt     {found.trained_share:.1%} of the tokens: the answers")
    if found.epochs:
        low, high = found.epochs.low, found.epochs.high
        sure = "" if low == high else f" (95 %: {low:,.2f} to {high:,.2f})"
        lines.append(f"  epochs     {found.epochs.value:,.2f} in the planned training{sure}")
    if found.prepare_s is not None:
        lines.append(f"  prepare    about {output.duration(found.prepare_s)} on this machine")
    lines += _doubts(found)
    lines += ["", *_chart(found.histogram, found.length_unit)]
    for number, sample in enumerate(found.samples, 1):
        flat = " ".join(sample.split())
        lines.append(f"  sample {number}   {flat[:160]}")
    return "\n".join(lines)


def _doubts(found: Inspection) -> list[str]:
    seen = f"of {found.seen_records:,} seen"
    lines = [f"  empty      {found.empty:,} {seen}"] if found.empty else []
    if found.duplicates:
        lines.append(f"  duplicates {found.duplicates:,} of {found.duplicates_of_first:,} compared")
    if found.with_control_tokens:
        lines.append(f"  control    {found.with_control_tokens:,} records spell out control tokens such as <|end|>")
    if found.rejected:
        lines.append(f"  unusable   {found.rejected:,} {seen}; the first:")
        lines += [f"             {problem}" for problem in found.problems[:5]]
    return lines + [f"  note       {notice}" for notice in found.notices]


def _chart(histogram: tuple[tuple[int, int], ...], unit: str) -> list[str]:
    if not histogram:
        return []
    highest = max(count for _, count in histogram)
    rows = [
        f"  up to {bound:>9,} {unit:<6} {count:>9,} {'#' * round(_CHART * count / highest)}"
        for bound, count in histogram
    ]
    return [*rows, ""]


def _count(estimate: Estimate) -> str:
    if estimate.low == estimate.high:
        return f"{estimate.value:,.0f}"
    return f"about {estimate.value:,.0f} (95 %: {estimate.low:,.0f} to {estimate.high:,.0f})"


def _summary(made: Manifest, where: str, seconds: float) -> str:
    lines = [
        f"{made.documents:,} documents, {made.train_tokens:,} tokens to train on, "
        f"{made.validation_tokens:,} for validation, in {output.duration(seconds)}",
        f"written to {where}" + (f", read back by {made.checked_by}" if made.checked_by else ""),
    ]
    left_out = {"empty": made.empty, "unusable": made.rejected, "too long": made.too_long}
    lines += [f"left out: {number:,} {why}" for why, number in left_out.items() if number]
    if made.rejected:
        lines.append(f"which and why: {where}/rejected.jsonl")
    if made.shortened:
        lines.append(f"{made.shortened:,} chats lost their oldest turns to fit")
    if made.with_control_tokens:
        lines.append(f"{made.with_control_tokens:,} documents spell out control tokens such as <|end|>; "
                     "they became control tokens, as with Megatron's own tool")  # fmt: skip
    for side in ("train", "validation"):
        if facts := made.packing.get(side):
            lines.append(
                f"{side}: {facts['chats']:,} chats in {facts['rows']:,} rows, {facts['efficiency']:.1%} filled"
            )
    return "\n".join(lines + [f"note: {notice}" for notice in made.notices])


def _packing(arguments: argparse.Namespace, shape: Shape, words: Vocabulary) -> PackRules | None:
    from engine.data.packed_file import PackRules

    if shape.kind == "text":
        return None
    padding = words.end_of_answer if words.end_of_answer >= 0 else words.end_of_document
    return PackRules(
        sequence_length=arguments.sequence_length or 4096,
        is_packed=not arguments.no_packing,
        multiple=arguments.multiple,
        padding_id=padding,
    )


def _optional_vocabulary(reference: str) -> tuple[Vocabulary | None, str]:
    from engine.data import vocabulary

    if reference:
        return vocabulary.read(vocabulary.find(reference)), ""
    try:
        return vocabulary.read(vocabulary.find(OWN_TOKENIZER, allow_download=False)), ""
    except (NotFoundError, SettingsError):
        return None, "lengths are in bytes: give the model's tokenizer with --tokenizer DIR to see tokens"


def _settings(preset: str) -> Settings | None:
    if not preset:
        return None
    from engine import presets

    return presets.find(preset).settings


def _planned_tokens(settings: Settings | None) -> int:
    if settings is None:
        return 0
    training = settings.training
    return training.iterations * training.global_batch * training.sequence_length


class _Progress:
    """Progress of a preparation: a line that is rewritten, or JSON lines."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._is_terminal = output.can_rewrite()
        self._last = 0.0
        self._phase = ""
        self._started = time.monotonic()
        self.tokenising_s = 0.0

    def tell(self, status: Status) -> None:
        now = time.monotonic()
        if status.phase == "tokenising":
            self.tokenising_s = now - self._started
        is_new = status.phase != self._phase
        if not is_new and now - self._last < (_PROGRESS_INTERVAL_S if self._is_terminal or self._as_json else 5.0):
            return
        self._last, self._phase = now, status.phase
        if self._as_json:
            output.print_json({"progress": asdict(status)}, line=True)
        elif self._is_terminal:
            output.rewrite(_line(status))
        else:
            output.say(_line(status))

    def end(self) -> None:
        if self._is_terminal and not self._as_json:
            output.rewrite("")


class _Counter:
    """How far a look at the data is, on a terminal."""

    def tell(self, done: int, total: int) -> None:
        if output.can_rewrite():
            output.rewrite("" if done >= total else f"looking at part {done + 1} of {total}")


def _line(status: Status) -> str:
    if not status.total_bytes:
        return status.phase
    share = status.done_bytes / status.total_bytes
    bar = "#" * round(_BAR * share)
    left = "" if status.eta_s is None else f", {output.duration(status.eta_s)} left"
    return (
        f"{status.phase} [{bar:<{_BAR}}] {share:4.0%}  {status.documents:,} documents "
        f"({status.documents_per_s:,.0f}/s), {status.tokens:,} tokens ({status.tokens_per_s:,.0f}/s){left}"
    )
