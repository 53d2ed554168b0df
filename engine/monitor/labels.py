"""What a person writes on a run: tags, a note, whether it is put away. Kept in the run's `labels.json`."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from engine import visible
from engine.errors import RunError, SettingsError, UnreadableError
from engine.paths import write_atomic

FILE_NAME = "labels.json"
MOST_TAGS = 32
LONGEST_NOTE = 2000

_TAG = re.compile(r"[a-z0-9][a-z0-9._:-]{0,31}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """The labels of one run."""

    tags: tuple[str, ...] = ()
    """Sorted."""
    note: str = ""
    is_archived: bool = False
    """Left out of lists until asked for."""

    def with_tags(self, add: Iterable[str] = (), remove: Iterable[str] = ()) -> Labels:
        """Raises SettingsError for a word that is no tag, and for too many."""
        tags = {*self.tags, *map(_checked_tag, add)} - set(remove)
        if len(tags) > MOST_TAGS:
            raise SettingsError(f"{len(tags)} tags are more than {MOST_TAGS}", "remove some with --remove TAG")
        return replace(self, tags=tuple(sorted(tags)))

    def with_note(self, text: str) -> Labels:
        """Raises SettingsError for a text that is too long."""
        text = text.strip()
        if len(text) > LONGEST_NOTE:
            raise SettingsError(f"the note has {len(text):,} letters, at most {LONGEST_NOTE:,}", "make it shorter")
        return replace(self, note=visible.clean(text, " "))

    @property
    def text(self) -> str:
        """Tags and note in one line, for lists and searching."""
        return " ".join([*(f"#{tag}" for tag in self.tags), self.note.replace("\n", " ")]).strip()


def read(run: Path) -> Labels:
    """The labels in the run's directory; none from a missing or damaged file."""
    try:
        value = json.loads((run / FILE_NAME).read_text(encoding="utf-8"))
        return Labels(is_archived=value["is_archived"] is True).with_tags(value["tags"]).with_note(value["note"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SettingsError, RecursionError):
        return Labels()


def write(run: Path, labels: Labels) -> None:
    """Raises RunError when the directory cannot be written, as that of somebody else's run, and UnreadableError."""
    try:
        # What cannot be read at the moment was taken for nothing: it must not be replaced by that.
        (run / FILE_NAME).read_bytes()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise UnreadableError.of(run / FILE_NAME, error) from error
    try:
        write_atomic(run / FILE_NAME, json.dumps(asdict(labels)) + "\n")
    except OSError as error:
        raise RunError(
            f"{run / FILE_NAME} cannot be written: {error.strerror}",
            "only its owner can label it" if error.errno in (errno.EACCES, errno.EPERM) else "check its disk",
        ) from error


def _checked_tag(tag: str) -> str:
    if not isinstance(tag, str) or not _TAG.fullmatch(tag):
        raise SettingsError(f"{tag!r} is no tag", "use up to 32 small letters, digits, dots, colons and dashes")
    return tag
