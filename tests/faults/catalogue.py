"""Every fault of the suite: what it does, what becomes of the run, and what a person sees.

`table.py` makes the table of docs/reliability.md from it; a test carries the mark `fault("KEY")`.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault and what is promised after it."""

    key: str
    what: str
    """What happens, as a person would say it."""
    then: str
    """What becomes of the run."""
    seen: str = ""
    """A part of an event or message that tells of it; empty when nothing needs to be told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal(Fault):
    """A signal to one process of a run at work."""

    process: str
    number: signal.Signals


_RESTART = "starts the step again by itself; training goes on from its last checkpoint"
_NOTHING = "goes on as if nothing had been"
_SAVED = "the ranks save first and leave; the step is started again by itself"

SIGNALS = (
    Signal(key="watcher-kill", process="watcher", number=signal.SIGKILL, what="what watches is killed", then=_NOTHING),
    Signal(key="watcher-term", process="watcher", number=signal.SIGTERM, what="what watches gets SIGTERM",
           then=_NOTHING),
    Signal(key="watcher-hup", process="watcher", number=signal.SIGHUP, what="what watches gets SIGHUP",
           then=_NOTHING),
    Signal(key="watcher-stop", process="watcher", number=signal.SIGSTOP, what="what watches is frozen (SIGSTOP)",
           then=_NOTHING),
    Signal(key="supervisor-kill", process="supervisor", number=signal.SIGKILL, what="the supervisor is killed",
           then="the ranks save and leave; the run is `lost`, `gptoss run --resume` goes on",
           seen="going on where the run was left"),
    Signal(key="supervisor-term", process="supervisor", number=signal.SIGTERM, what="the supervisor gets SIGTERM",
           then="saves and is `stopped`; `gptoss run --resume` goes on", seen="a checkpoint is saved first"),
    Signal(key="supervisor-hup", process="supervisor", number=signal.SIGHUP, what="the supervisor gets SIGHUP",
           then=_NOTHING),
    Signal(key="supervisor-stop", process="supervisor", number=signal.SIGSTOP,
           what="the supervisor is frozen (SIGSTOP) for a while", then="the training goes on meanwhile"),
    Signal(key="torchrun-kill", process="torchrun", number=signal.SIGKILL, what="torchrun is killed",
           then=_SAVED, seen="starting"),
    Signal(key="torchrun-term", process="torchrun", number=signal.SIGTERM, what="torchrun gets SIGTERM",
           then=_SAVED, seen="a signal from outside gptoss stopped it"),
    Signal(key="torchrun-hup", process="torchrun", number=signal.SIGHUP, what="torchrun gets SIGHUP",
           then=_SAVED, seen="starting"),
    Signal(key="torchrun-stop", process="torchrun", number=signal.SIGSTOP, what="torchrun is frozen (SIGSTOP)",
           then="the ranks go on; at the end of the step the watchdog ends torchrun", seen="no sign of life"),
    Signal(key="rank-kill", process="rank", number=signal.SIGKILL, what="one rank is killed (as by the OOM killer)",
           then=_RESTART, seen="killed from outside or out of memory"),
    Signal(key="rank-term", process="rank", number=signal.SIGTERM, what="one rank gets SIGTERM",
           then=_SAVED, seen="a signal from outside gptoss stopped it"),
    Signal(key="rank-hup", process="rank", number=signal.SIGHUP, what="one rank gets SIGHUP",
           then=_RESTART, seen="starting"),
    Signal(key="rank-stop", process="rank", number=signal.SIGSTOP, what="one rank is frozen (SIGSTOP)",
           then="the watchdog saves the stacks of the others and " + _RESTART, seen="it hung"),
)  # fmt: skip

SURROUNDINGS = (
    Fault(key="pty-headless", what="the terminal of `gptoss attach --headless` goes away", then=_NOTHING),
    Fault(key="pty-screen", what="the terminal of the full screen goes away (dropped ssh)", then=_NOTHING),
    Fault(key="deadlock", what="all ranks wait for each other for ever",
          then="stacks of all ranks are saved, then the step is started again", seen="it hung"),
    Fault(key="supervisor-asleep", what="the supervisor is frozen for longer than a hang may last", then=_NOTHING),
    Fault(key="supervisor-and-torchrun", what="supervisor and torchrun are killed at once",
          then="the ranks save and leave; the run is `lost` and goes on with `gptoss run --resume`"),
    Fault(key="deaf-rank", what="supervisor and torchrun are killed and a rank ignores SIGTERM",
          then="`gptoss runs --repair` or a resume ends the rank", seen="still ran and were ended"),
    Fault(key="two-supervisors", what="a second supervisor is started for a run", then="it is refused",
          seen="has a supervisor already"),
    Fault(key="two-resumes", what="a run is resumed twice at once", then="one goes on with it, the other is refused",
          seen="has a supervisor already"),
    Fault(key="start-cut-short", what="`gptoss run` is killed before the run has a supervisor",
          then="the run is `lost`, a resume starts it", seen="its start was cut short"),
    Fault(key="attempt-cut-short", what="the supervisor is killed after an attempt began and before the state says so",
          then="its processes are ended, the next attempt has a directory of its own"),
    Fault(key="same-second", what="eight runs without a name are made in the same second",
          then="each gets a name of its own"),
    Fault(key="stale-pid", what="the supervisor's pid belongs to another program now",
          then="the run is `lost`, the other program is left alone, a resume goes on"),
    Fault(key="reboot", what="the machine was restarted: every recorded process is of another boot",
          then="the run is `lost`, a resume goes on"),
    Fault(key="clock-forward", what="the clock jumps a day ahead", then="goes on; nothing is ended by it"),
    Fault(key="clock-back", what="the clock jumps a day back", then="goes on; the state is still written"),
    Fault(key="time-limit", what="the Slurm allocation around the run ends soon",
          then="saves in time and is `stopped`", seen="the Slurm allocation is about to end"),
    Fault(key="disk-full-create", what="the disk is full when a run is made", then="it is refused",
          seen="cannot be written"),
    Fault(key="disk-full-save", what="the disk has no room for the next checkpoint",
          then="ends before the save is cut short; resumed with room it goes on", seen="no room for the checkpoint"),
    Fault(key="disk-room-made", what="the disk has room for two checkpoints, and three are wanted",
          then="an older one is deleted before the save, never the last good one"),
    Fault(key="disk-full-step", what="the disk is full while a step writes its result",
          then="`failed`, and the message says so; resumed with room it goes on", seen="No space left on device"),
    Fault(key="disk-full-records", what="the disk is full for a while under the records and the state",
          then="what runs goes on; the records of that time are missing"),
    Fault(key="read-only", what="the run's directory becomes read-only",
          then="the start is refused, the message says so", seen="Read-only file system"),
    Fault(key="directory-gone", what="the run's directory vanishes for a while",
          then="waits, and goes on when it is back; no second directory is made in its place"),
    Fault(key="share-slow", what="the run's network share takes long over every call", then="only takes longer"),
    Fault(key="share-silent", what="the run's network share answers nobody for a while",
          then="waits for it and goes on; the watchdog does not take that for a hang"),
    Fault(key="share-screen", what="the share is silent under a screen that shows the run",
          then="keys are answered, `q` leaves", seen="does not answer"),
    Fault(key="share-list", what="the share of some runs is silent while runs are listed or found",
          then="the others are listed", seen="no answer within"),
    Fault(key="share-stale", what="every call to the run's share fails for a while (ESTALE, EIO)",
          then="waits, and goes on when it is back; other runs are listed meanwhile"),
    Fault(key="share-gone", what="the run's share is unmounted and mounted again",
          then="waits, and goes on when it is back; nothing is made on the mount point", seen="which is not there"),
    Fault(key="checkpoint-cut-off", what="the newest checkpoint is cut off",
          then="is put aside, training goes on from the one before", seen="is cut off"),
    Fault(key="checkpoint-unfinished", what="the newest checkpoint was never finished",
          then="is deleted, training goes on from the one before", seen="was never finished"),
    Fault(key="checkpoint-tracker", what="the file that names the newest checkpoint holds nonsense",
          then="is written anew from the whole checkpoints"),
    Fault(key="rotation", what="the newest checkpoint is damaged when old ones are removed",
          then="the last good one stays"),
    Fault(key="state-damaged", what="state.json holds nonsense",
          then="a resume or `gptoss runs --repair` rebuilds it from the attempts", seen="rebuilt from its attempts"),
    Fault(key="settings-damaged", what="settings.toml holds nonsense", then="the resume is refused",
          seen="is not TOML"),
    Fault(key="plan-damaged", what="plan.json holds nonsense", then="the resume is refused",
          seen="plan.json is damaged"),
    Fault(key="metrics-damaged", what="metrics.jsonl and events.jsonl hold binary, half and absurd lines",
          then="those lines are left out"),
    Fault(key="power-loss", what="power is cut: what was written last is empty or zeros",
          then="a resume rebuilds the state and goes on from the last whole checkpoint", seen="iteration 13"),
    Fault(key="disk-quota", what="the quota is used up for a while (EDQUOT)",
          then="is started again by itself, or `failed` or `lost` when that lasts; resumed with room it goes on"),
    Fault(key="newer-version", what="the run was written by a newer gptoss", then="is refused and left as it is",
          seen="newer gptoss"),
    Fault(key="repair", what="a run that is not at work is marked as running",
          then="`gptoss runs --repair` makes the record true", seen="marked as running and is not"),
    Fault(key="chaos", what="signals at random, to random processes, at random moments",
          then="finishes with the losses of an undisturbed run"),
)  # fmt: skip

ALL: tuple[Fault, ...] = (*SIGNALS, *SURROUNDINGS)
BY_KEY = {fault.key: fault for fault in ALL}
