"""From files to what Megatron reads: tokenise on every core, merge in order, check, publish.

Memory does not depend on the input. A preparation that was killed goes on where it was when it is asked
for again with the same inputs and settings.
"""

from __future__ import annotations

import dataclasses
import errno
import math
import shutil
from pathlib import Path
from typing import Any

from engine.data import check, finish, indexed, manifest, optional, tokens
from engine.data.job import Job
from engine.data.manifest import Manifest
from engine.data.merge import Merger
from engine.data.pool import DiskFull
from engine.data.request import Request, Status, Tell
from engine.data.shape import TEXT
from engine.data.sources import total_bytes
from engine.data.work import Work
from engine.errors import SettingsError, StepFailed

_SMALL_BYTES = 4_000_000
"""Loading a second tokenizer and comparing the two takes longer than so much text."""
_FULL = (errno.ENOSPC, errno.EDQUOT)


def prepare(request: Request, tell: Tell = lambda status: None) -> Manifest:
    """Make the dataset and return its manifest. Raises SettingsError, StepFailed."""
    _check_output(request)
    if (ready := _ready(request, tell)) is not None:
        return ready
    work = request.output.with_name(f".{request.output.name}.partial")
    try:
        _check_room(request, work.parent)
        changes = _changes(request)
        merger, encoder, notices = _tokenise(request, work, tell)
        notices = [*changes, *notices]
        tell(Status(phase="writing the index"))
        packing = finish.write(request, merger, work)
        made = finish.describe(request, merger, encoder, notices, packing)
        finish.tidy(work)
        tell(Status(phase="reading it back"))
        made = dataclasses.replace(made, checked_by=check.read_back(request, work))
        made.save(work)
        finish.publish(work, request.output)
    except DiskFull as error:
        raise _disk_full(work) from error
    except OSError as error:
        if error.errno in _FULL:
            raise _disk_full(work) from error
        where = error.filename or work
        raise StepFailed(f"{where}: {error.strerror}", "check the disk; finished parts are kept") from error
    return made


def _ready(request: Request, tell: Tell) -> Manifest | None:
    """The manifest of a dataset that was made from the same inputs in the same way and is whole."""
    try:
        made = Manifest.load(request.output)
    except SettingsError:
        return None
    if made.identity != request.identity():
        return None
    for side, count in made.sides.items():
        try:
            if made.packing:
                (request.output / f"{side}.idx.parquet").stat()
            elif indexed.check_header(request.output / side).documents != count:
                return None
        except (SettingsError, OSError):
            return None
    tell(Status(phase=f"nothing to do: {request.output.name} was made from the same inputs and settings"))
    return made


def _changes(request: Request) -> list[str]:
    """What is no longer as it was when the dataset that is replaced was made."""
    try:
        old = Manifest.load(request.output)
    except SettingsError:
        return []
    if old.identity == request.identity():
        return ["prepared anew: the dataset that was there is damaged"]
    return [f"prepared anew: {sentence}" for sentence in manifest.changed_sources(old)] or [
        "prepared anew: the settings or the list of inputs changed"
    ]


def _tokenise(request: Request, work: Path, tell: Tell) -> tuple[Merger, str, list[str]]:
    """Work until the tokens are right and both sides hold something."""
    encoder, notices = _choose_encoder(request)
    share, halves = request.validation_percent / 100, 0.0
    is_first = True
    while True:
        job = request.job(work / "parts", encoder, share, halves)
        merger = Merger(work, _identity(request, job), [file.path for file in request.files], job.token_bytes)
        if merger.was_begun_otherwise and is_first:
            notices.append("an unfinished preparation with other inputs or settings was discarded")
        is_first = False
        if difference := Work(request, job, merger, tell).carry_out():
            notices.append(f"gigatoken was not used: {difference}")
            encoder = tokens.TOKENIZERS
            continue
        documents = merger.current.counts.documents
        if not sum(documents.values()):
            raise _nothing(request, merger)
        if not share or all(documents.values()):
            return merger, encoder, notices
        share, halves = _other_split(request, merger)


def _identity(request: Request, job: Job) -> dict[str, Any]:
    """What an unfinished preparation must have in common with this one to be gone on with."""
    files = [(file.path, file.size_bytes, file.modified_ns) for file in request.files]
    described = {**job.to_json(), "parts": "", "tokenizer": request.vocabulary.sha256}
    return {"version": manifest.VERSION, "files": files, "limit": request.limit_bytes, "job": described}


def _choose_encoder(request: Request) -> tuple[str, list[str]]:
    if request.shape.kind != TEXT:
        # What people wrote in a chat must never become a control token, which gigatoken cannot be told.
        return tokens.TOKENIZERS, []
    if request.encoder:
        return request.encoder, []
    if min(total_bytes(list(request.files)), request.limit_bytes or math.inf) <= _SMALL_BYTES:
        return tokens.TOKENIZERS, []
    if not optional.version("gigatoken"):
        return tokens.TOKENIZERS, [tokens.MISSING]
    return tokens.GIGATOKEN, []


def _other_split(request: Request, merger: Merger) -> tuple[float, float]:
    """A split for so few documents that one side got none: the nearest one goes to the validation."""
    now, share = merger.current, request.validation_percent / 100
    if len(now.lowest) == 2:
        return now.lowest[1], 0.0
    if sum(now.counts.documents.values()) == 1 and request.shape.kind == TEXT:
        return share, share
    raise SettingsError(
        "all documents are the same: none can be kept for validation",
        "give different ones, or --validation-percent 0",
    )


def _check_output(request: Request) -> None:
    output = request.output
    is_foreign = output.exists() and not (output / manifest.FILE).exists()
    if is_foreign and (not output.is_dir() or any(output.iterdir())):
        raise SettingsError(
            f"{output} exists and is no prepared dataset", "choose another --output; nothing was changed"
        )
    if (output / manifest.FILE).exists():
        _check_manifest(output)
    output.parent.mkdir(parents=True, exist_ok=True)


def _check_manifest(output: Path) -> None:
    """Refuse what may be worth more than what would replace it.

    Many programs call a file of theirs manifest.json. A damaged one of ours lies beside an index.
    """
    try:
        Manifest.load(output)
    except SettingsError as error:
        cause = error.__cause__
        is_read = not isinstance(cause, OSError)
        is_ours = any((output / f"train.idx{ending}").exists() for ending in ("", ".parquet"))
        if "by a newer gptoss" in error.message or not is_read or not is_ours:
            raise SettingsError(
                f"{output} is not replaced: {error.message}", "choose another --output; nothing was changed"
            ) from error


def _check_room(request: Request, place: Path) -> None:
    # Three to five bytes of text make a token, which takes four bytes or two.
    needed = total_bytes(list(request.files)) // (2 if request.token_type == "int32" else 4)
    if request.limit_bytes:
        needed = min(needed, request.limit_bytes // 2)
    free = shutil.disk_usage(place).free
    if free < needed:
        raise SettingsError(
            f"{place} has {free / 1e9:,.1f} GB free; the tokens will take at least {needed / 1e9:,.1f} GB",
            "choose another disk with --output",
        )


def _nothing(request: Request, merger: Merger) -> SettingsError:
    counts = merger.current.counts
    reasons = {"empty": counts.empty, "unusable": counts.rejected, "too long": counts.too_long}
    why = ", ".join(f"{number:,} {reason}" for reason, number in reasons.items() if number)
    first = request.files[0].path if request.files else "the input"
    return SettingsError(
        f"there is nothing to train on in {first}" + (f" (left out: {why})" if why else ""),
        "look at it with: gptoss data inspect PATH",
    )


def _disk_full(work: Path) -> StepFailed:
    written = sum(path.stat().st_size for path in work.rglob("*") if path.is_file()) if work.exists() else 0
    return StepFailed(
        f"the disk of {work.parent} is full; {written / 1e9:,.2f} GB had been written",
        "free some space and run the same again: it goes on where it was; or choose another --output",
    )
