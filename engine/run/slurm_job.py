"""Submit one step's batch job and follow it to its end: `python -m engine.run.slurm_job RUN ATTEMPT`.

The supervisor starts this like any other step's command. Ending it does not end the job: Slurm
keeps that, and a resumed run goes on following the job that it finds in the queue.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from engine.errors import EngineError, LaunchError, SettingsError
from engine.launch import slurm_answers
from engine.launch.slurm import JOB_ID, JOB_SCRIPT
from engine.launch.slurm_answers import JobState
from engine.paths import write_atomic
from engine.run.directory import RunDirectory

_JOB_NAME = re.compile(r"^#SBATCH --job-name=(\S+)$", re.MULTILINE)
FIRST_POLL_S, MAX_POLL_S = 1.0, 15.0
ANSWER_LIMIT_S = 60
HOPELESS_POLLS = 3
SILENCE_LIMIT_S = 900
"""How long the controller may be away (a restart, a failover) before the job is given up."""


def main(arguments: Sequence[str]) -> int:
    """Follow the job; 0 when Slurm says it completed."""
    run, attempt = RunDirectory(Path(arguments[0])), Path(arguments[1])
    step = attempt.name.partition("-")[2]
    try:
        number, earlier = _job_in_queue(run, attempt, step)
        if number:
            run.append_event("note", f"going on with Slurm job {number}, which is still there", step=step)
        else:
            number = _submit(run, attempt)
            run.append_event("queue", f"Slurm job {number} submitted", step=step, job=number)
        write_atomic(attempt / JOB_ID, number + "\n")
        state = _follow(run, number, step)
        if earlier:
            _take_reports(earlier, attempt)
    except EngineError as error:
        _report(attempt, type(error).__name__, error.message, error.hint)
        return 1
    print(f"Slurm job {number} {state.sentence} {state.exit_code}".rstrip(), flush=True)
    if state.state not in ("COMPLETED", "CANCELLED") and not list(attempt.glob("error-rank-*.json")):
        _report(
            attempt, "SlurmError", f"Slurm job {number} {state.sentence}", f"read {attempt.name}/slurm-{number}.log"
        )
    return 0 if state.state == "COMPLETED" else 1


def _submit(run: RunDirectory, attempt: Path) -> str:
    """Hand in the job and return its number. Raises SettingsError for a refusal, LaunchError for silence."""
    result = _ask(["sbatch", "--parsable", "--chdir", str(run.path), str(attempt / JOB_SCRIPT)])
    if result.returncode == 0:
        return result.stdout.strip().partition(";")[0]
    message, fix = slurm_answers.refusal(result.stderr)
    if "does not answer" in message:
        raise LaunchError(message, fix)
    raise SettingsError(message, fix)


def _follow(run: RunDirectory, number: str, step: str) -> JobState:
    """Wait for the job's end, telling each change. Raises LaunchError when Slurm stays silent."""
    last, wait_s = "", FIRST_POLL_S
    heard, hopeless_polls = time.monotonic(), 0
    while True:
        state = _state(number)
        if state is not None:
            heard = time.monotonic()
            if state.sentence != last:
                last, wait_s = state.sentence, FIRST_POLL_S
                run.append_event("queue", f"Slurm job {number} is {state.sentence}", step=step, job=number)
            if state.is_over:
                return state
            # A fresh job is judged before all of its nodes are looked at: a second look, then.
            hopeless_polls = hopeless_polls + 1 if state.hopeless else 0
            if state.hopeless and hopeless_polls >= HOPELESS_POLLS:
                _ask(["scancel", number])
                raise SettingsError(*state.hopeless)
        elif time.monotonic() - heard > SILENCE_LIMIT_S:
            raise LaunchError(
                f"Slurm has not answered for {SILENCE_LIMIT_S} s about job {number}", "ask: scontrol ping"
            )
        time.sleep(wait_s)
        wait_s = min(wait_s * 1.5, MAX_POLL_S)


def _state(number: str) -> JobState | None:
    """What Slurm knows of the job now, from the queue, its memory or its accounting; None for no answer."""
    queued = _ask(["squeue", "--noheader", "--format", "%T|%r|%S|%N", "--jobs", number])
    if queued.returncode == 0 and (state := slurm_answers.parse_squeue(queued.stdout)):
        return state
    remembered = _ask(["scontrol", "--oneliner", "show", "job", number])
    if remembered.returncode == 0 and (state := slurm_answers.parse_job(remembered.stdout)):
        return state
    accounts = ["sacct", "--noheader", "--parsable2", "--allocations", "--format", "State,ExitCode", "--jobs", number]
    accounted = _ask(accounts)
    return slurm_answers.parse_sacct(accounted.stdout) if accounted.returncode == 0 else None


def _job_in_queue(run: RunDirectory, attempt: Path, step: str) -> tuple[str, Path | None]:
    """The number and attempt of an earlier job of this step that has not ended; empty when there is none."""
    for earlier in sorted(run.attempts.glob(f"*-{step}"), reverse=True):
        number = _number_of(run, earlier) if earlier != attempt else ""
        if number:
            queued = _ask(["squeue", "--noheader", "--format", "%T|%r|%S|%N", "--jobs", number])
            state = slurm_answers.parse_squeue(queued.stdout)
            if state is not None and not state.is_over:
                return number, earlier
    return "", None


def _number_of(run: RunDirectory, attempt: Path) -> str:
    """The number of the attempt's job, also of one that was submitted and never noted; empty when there is none."""
    try:
        noted = (attempt / JOB_ID).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        noted = ""
    if noted.isdigit():
        return noted
    try:
        name = _JOB_NAME.search((attempt / JOB_SCRIPT).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return ""
    if name is None:
        return ""
    # Another run may have the name elsewhere: the job's directory tells them apart.
    words = ["squeue", "--noheader", "--user", str(os.getuid()), "--name", name[1], "--format", "%A|%Z"]
    queued = (line.strip().partition("|") for line in _ask(words).stdout.splitlines())
    return next((number for number, _, place in queued if number.isdigit() and place == str(run.path)), "")


def _take_reports(earlier: Path, attempt: Path) -> None:
    """What the ranks of the followed job left, where this attempt is judged."""
    for path in (*earlier.glob("rank-*"), *earlier.glob("error-rank-*.json")):
        shutil.copy2(path, attempt / path.name)


def _ask(words: list[str]) -> subprocess.CompletedProcess[str]:
    """Run one of Slurm's programs. Raises LaunchError when it is not there; silence is a failed answer."""
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=ANSWER_LIMIT_S, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        if words[0] == "sacct":
            return subprocess.CompletedProcess(words, 1, "", "")
        raise LaunchError(f"{words[0]} is not installed here", "start the run on a login node of the cluster") from None
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(words, 1, "", "Unable to contact slurm controller: no answer in time")


def _report(attempt: Path, error: str, message: str, hint: str) -> None:
    """Say why the job failed where ranks say it."""
    print(message, hint, flush=True)
    record = {"t": time.time(), "rank": 0, "error": error, "message": message, "hint": hint}
    write_atomic(attempt / "error-rank-0.json", json.dumps(record))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
