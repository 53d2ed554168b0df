"""The failure doctor: what a failed attempt died of, told from what its ranks wrote.

Looks for the earliest explaining error among the ranks; what the other ranks say afterwards
(a closed connection, a time-out) is their echo. Patterns and sentences are in catalogue.toml,
proposed changes in cures.py.
"""

from __future__ import annotations

import json
import re
import time
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from engine.errors import EngineError
from engine.models import find as find_model
from engine.monitor.cures import Patient, capacity_gib, need_gib, propose
from engine.options import Value
from engine.plan import memory
from engine.plan.job import from_training
from engine.plan.plan import Plan
from engine.proposals import edit_in
from engine.settings import Settings

TAIL_BYTES = 1 << 18
"""Errors stand at the end of a log; no more than this of it is read."""
MAX_LOGS = 256
LONGEST_EVIDENCE = 400

UNKNOWN = "unknown"
"""Key of a diagnosis that only repeats what was said."""

_LEVELS = ("cause", "symptom", "echo")
_CAUSE = _LEVELS.index("cause")
_MAY_PASS = frozenset({"CheckpointError", "LaunchError"})
"""Errors of gptoss that another start may not meet again: an older checkpoint is taken, a port is free."""
# Most lines of a log cannot match anything; this look is far cheaper than all patterns.
_SUSPECT = re.compile(
    r"rror|ERR|WARN|[Kk]ill|SIG|Xid|ail|Bus|Fatal|divisible|Duplicate|No |not |cannot|can't|Timed out|timed out|"
    r"CANCELLED|exit|nan|inf|NaN|closed|reset|Broken|fault|handle|only supported|undefined|EADDR|oom|Memory|mory|"
    r"too |Too |exceeded|bad_alloc|assert|Assert|attribute|refused|already|Unexpected|CUDA|enqueued|"
    r"mismatch|Exception|timeout|Timeout"
)
_HARMLESS = re.compile(r"Warning:|^\s*warnings\.warn|^INFO:|\bINFO\b(?! \[)|^\s*#|frame #\d+:")
_PREFIX = r"^(?:\[\w+\]: ?|\d+: )?"
_PLACE = re.compile(_PREFIX + r'\s*File ".*", line \d+')
_INDENTED = re.compile(_PREFIX + r"    ")
_METRIC = re.compile(r"iteration\s+\d+\s*/\s*\d+ *\|")
_RANK = re.compile(r"\[(?:rank|default)(\d+)\]|\[Rank (\d+)\]|\bRank (\d+), node|^(\d+): ")
_ELASTIC_RANK = re.compile(r"^\s*rank\s+: (\d+) ")
_GLOG = re.compile(r"\b[EWF](\d\d?)(\d\d) (\d\d):(\d\d):(\d\d)\.(\d+)")
_ENQUEUED = re.compile(r"Rank (\d+)\].*?[Ll]ast enqueued (?:NCCL )?work: (-?\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    """One kind of failure: how it is recognised and what is said about it."""

    key: str
    regex: re.Pattern[str]
    level: int
    curable: bool
    cause: str
    why: str
    next: str
    source: str
    cure: str = ""
    final: bool = False
    """True for words that healthy programs print too: they count only in what ended the process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnError:
    """An error that gptoss raised: a sentence for the person and the next thing to try."""

    name: str
    message: str
    hint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """What one rank, or the launcher, wrote."""

    name: str
    lines: tuple[str, ...]
    t: float
    """When it ended, unix seconds; lines with a time of their own have that."""
    rank: int | None = None
    is_report: bool = False
    """True for a rank's own report of the exception that ended it."""
    own_error: OwnError | None = None
    """Of a report: what gptoss itself refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What an attempt died of and what to do about it."""

    key: str
    cause: str
    """One sentence."""
    why: str
    next_step: str
    edit: Mapping[str, Value]
    """Settings to change, `table.name` to value; empty when no setting helps."""
    evidence: str
    """The line that told it."""
    log: str
    """The file it stands in."""
    rank: int | None
    t: float
    is_curable: bool
    """True when the same start may succeed; False when it would fail again."""
    source: str
    """Where the pattern comes from: a source file or a thread."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Numbers beside it: memory by the planner's formula, ranks that did not report."""

    @property
    def sentence(self) -> str:
        """Cause and place in one line."""
        return self.cause if self.rank is None else f"rank {self.rank}: {self.cause}"

    def to_json(self) -> dict[str, Any]:
        """Plain values, for `diagnosis.json` and events."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Diagnosis:
        """Raises TypeError for anything that `to_json` did not make."""
        return cls(**value)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Match:
    pattern: Pattern
    text: Text
    number: int
    line: str
    said: Mapping[str, str]
    t: float
    rank: int | None

    @property
    def order(self) -> tuple[int, float, int]:
        return (self.pattern.level, self.t, self.number)


@cache
def catalogue() -> tuple[Pattern, ...]:
    """Every pattern, in the order in which they are tried."""
    text = resources.files("engine.monitor").joinpath("catalogue.toml").read_text(encoding="utf-8")
    return tuple(
        Pattern(**{**item, "regex": re.compile(item["regex"]), "level": _LEVELS.index(item["level"])})
        for item in tomllib.loads(text)["pattern"]
    )


def diagnose(attempt: Path, settings: Settings | None = None, plan: Plan | None = None) -> Diagnosis | None:
    """What the attempt in the directory `attempt` died of; None when nothing known is in its files."""
    return diagnose_texts(read_attempt(attempt), settings, plan)


def diagnose_texts(
    texts: Iterable[Text], settings: Settings | None = None, plan: Plan | None = None
) -> Diagnosis | None:
    """The same from texts at hand."""
    texts = list(texts)
    best = min((match for text in texts for match in _search(text)), key=lambda match: match.order, default=None)
    refused = min((text for text in texts if text.own_error), key=lambda text: text.t, default=None)
    # Whoever refuses says why; only an older cause among the other ranks can have led to that.
    if refused and (best is None or best.rank == refused.rank or best.order > (_CAUSE, refused.t, 0)):
        return _of_own_error(refused)
    if best is None:
        return None
    said = {name: value for name, value in best.said.items() if value is not None}
    edit: Mapping[str, Value] = {}
    facts: dict[str, Any] = {}
    if settings is not None:
        patient = Patient(settings=settings, plan=plan, said=said)
        edit = propose(best.pattern.cure, patient)
        if best.pattern.key == "gpu-memory":
            facts |= _memory_facts(patient, edit)
    if best.pattern.key == "nccl-timeout":
        facts |= _absent_ranks(texts, plan)
    return Diagnosis(
        key=best.pattern.key,
        cause=_fill(best.pattern.cause, said) + _absence_words(facts),
        why=best.pattern.why,
        next_step=_fill(best.pattern.next, said),
        edit=edit,
        evidence=best.line.strip()[:LONGEST_EVIDENCE],
        log=best.text.name,
        rank=best.rank,
        t=best.t,
        is_curable=best.pattern.curable,
        source=best.pattern.source,
        facts=facts,
    )


def _of_own_error(text: Text) -> Diagnosis:
    """What gptoss refused, in its own words; its hint becomes the edit when it is nothing but that."""
    error = text.own_error
    assert error is not None  # chosen for it
    return Diagnosis(
        key="gptoss",
        cause=error.message,
        why="gptoss checked this itself before going on",
        next_step=error.hint or f"read {text.name}",
        edit=edit_in(error.hint),
        evidence=f"{error.name}: {error.message}"[:LONGEST_EVIDENCE],
        log=text.name,
        rank=text.rank,
        t=text.t,
        is_curable=error.name in _MAY_PASS,
        source="engine/errors.py",
    )


def read_attempt(attempt: Path) -> list[Text]:
    """What the ranks and the launcher of one attempt wrote: error reports, then logs."""
    reports = (_read_report(path) for path in sorted(attempt.glob("error-rank-*.json")))
    texts = [text for text in reports if text is not None]
    logs = [path for pattern in ("*.log", "*.out", "*.err") for path in attempt.glob(pattern)]
    return texts + read_logs(sorted(logs, key=_by_rank)[:MAX_LOGS])


def read_logs(paths: Iterable[Path]) -> list[Text]:
    """The ends of log files; those that cannot be read are left out."""
    texts = []
    for path in paths:
        try:
            with path.open("rb") as file:
                size = file.seek(0, 2)
                file.seek(max(0, size - TAIL_BYTES))
                data = file.read(TAIL_BYTES)
            t = path.stat().st_mtime
        except OSError:
            continue
        rank = _by_rank(path)[0]
        lines = tuple(data.decode("utf-8", "replace").splitlines())
        texts.append(Text(name=path.name, lines=lines, t=t, rank=rank if rank < _NO_RANK else None))
    return texts


_NO_RANK = 1 << 30


def _by_rank(path: Path) -> tuple[int, str]:
    found = re.search(r"(?:rank|node|worker|task)?[-_.]?(\d+)\.(?:log|out|err)$", path.name)
    is_rank = found is not None and "rank" in path.name
    return (int(found[1]) if found and is_rank else _NO_RANK, path.name)


def _read_report(path: Path) -> Text | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        traceback = str(value.get("traceback", ""))
        lines = [f"{value['error']}: {value['message']}".splitlines(), traceback.splitlines()]
        error = OwnError(name=str(value["error"]), message=str(value["message"]), hint=str(value.get("hint") or ""))
        # Other programs have a SettingsError, too; Python names the module of whose it is.
        is_own = re.search(rf"^engine\.errors\.{re.escape(error.name)}\b", traceback, re.MULTILINE) is not None
        return Text(
            name=path.name,
            lines=tuple(line for part in lines for line in part),
            t=float(value["t"]),
            rank=int(value["rank"]),
            is_report=True,
            own_error=error if is_own else None,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
        return None


def _search(text: Text) -> Iterator[_Match]:
    """The first match of every pattern in `text`."""
    lines = text.lines
    begin = _after_last_metric(lines)
    end = 0 if text.is_report else _last_traceback(lines)
    seen: set[str] = set()
    for number in range(begin, len(lines)):
        line = lines[number]
        if _SUSPECT.search(line) is None or _HARMLESS.search(line):
            continue
        if number and _INDENTED.match(line) and _PLACE.match(lines[number - 1]):
            continue  # a line of source code that a traceback quotes
        for pattern in catalogue():
            found = pattern.regex.search(line)
            if found is None or (pattern.final and number < end):
                continue
            if pattern.key not in seen:
                seen.add(pattern.key)
                yield _Match(pattern=pattern, text=text, number=number, line=line, said=found.groupdict(),
                             t=_time_of(line, text.t), rank=_rank_near(lines, number, text.rank))  # fmt: skip
            break


def _after_last_metric(lines: tuple[str, ...]) -> int:
    """Where the last iteration was logged: what stands before it did not end the job."""
    for number in range(len(lines) - 1, -1, -1):
        if _METRIC.search(lines[number]):
            return number
    return 0


def _last_traceback(lines: tuple[str, ...]) -> int:
    """Where the exception that ended the process begins, with those it was raised from."""
    start = len(lines)
    for number in range(len(lines) - 1, -1, -1):
        if "Traceback (most recent call last)" in lines[number]:
            start = number
            above = "".join(lines[max(0, number - 3) : number])
            if "another exception occurred" not in above and "direct cause of" not in above:
                break
    return start if start < len(lines) else max(0, len(lines) - 30)


def _time_of(line: str, otherwise: float) -> float:
    """The time in a line of PyTorch's native log (month and day, local time), else `otherwise`."""
    found = _GLOG.search(line)
    if found is None:
        return otherwise
    month, day, hour, minute, second = (int(found[i]) for i in range(1, 6))
    year = time.localtime(otherwise).tm_year
    try:
        return time.mktime((year, month, day, hour, minute, second, 0, 0, -1)) + float(f"0.{found[6]}")
    except (ValueError, OverflowError):
        return otherwise


def _rank_of(line: str, otherwise: int | None) -> int | None:
    found = _RANK.search(line)
    return int(next(group for group in found.groups() if group)) if found else otherwise


def _rank_near(lines: tuple[str, ...], number: int, otherwise: int | None) -> int | None:
    """The rank of a line; torchrun's summary names it some lines above the exit code."""
    for line in lines[max(0, number - 3) : number + 1]:
        if found := _ELASTIC_RANK.match(line):
            return int(found[1])
    return _rank_of(lines[number], otherwise)


def _fill(sentence: str, said: Mapping[str, str]) -> str:
    """Put what the failure said into the braces; what it did not say becomes `?`."""
    return re.sub(r"\{(\w+)\}", lambda found: said.get(found[1], "?"), sentence)


def _memory_facts(patient: Patient, edit: Mapping[str, Value]) -> dict[str, Any]:
    """The planner's memory bar of the job as it ran, and the total after the edit."""
    try:
        settings = patient.settings
        job = from_training(settings.training, find_model(settings), settings.finetune.lora_rank)
        peak = max(memory.estimate(job, patient.layout), key=lambda stage: stage.total_gib)
    except EngineError:
        return {}
    edited = need_gib(patient, edit) if edit else None
    return {
        "memory_gib": {name: round(size, 2) for name, size in peak.terms},
        "total_gib": round(peak.total_gib, 2),
        "capacity_gib": round(capacity_gib(patient), 2) or None,
        "edited_total_gib": None if edited is None else round(edited, 2),
    }


def _absent_ranks(texts: list[Text], plan: Plan | None) -> dict[str, Any]:
    """Ranks that reported no time-out while others waited, or those that had enqueued the least work."""
    waiting: set[int] = set()
    enqueued: dict[int, int] = {}
    for text in texts:
        for line in text.lines:
            if "Watchdog caught collective operation timeout" in line:
                rank = _rank_of(line, text.rank)
                waiting |= {rank} if rank is not None else set()
            elif found := _ENQUEUED.search(line):
                rank, work = int(found[1]), int(found[2])
                enqueued[rank] = min(work, enqueued.get(rank, work))
    everyone = set(range(plan.world_size)) if plan else {text.rank for text in texts if text.rank is not None}
    absent = sorted(everyone - waiting) if everyone > waiting else []
    if not absent and len(set(enqueued.values())) > 1:
        least = min(enqueued.values())
        absent = sorted(rank for rank, work in enqueued.items() if work == least)
    return {"waiting_ranks": sorted(waiting), "absent_ranks": absent}


def _absence_words(facts: Mapping[str, Any]) -> str:
    absent = facts.get("absent_ranks")
    if not absent:
        return ""
    shown = ", ".join(map(str, absent[:8])) + (" and others" if len(absent) > 8 else "")
    return f"; missing: rank {shown}"
