"""What an attempt has on disk to be started, asked and ended: command.sh, signal.sh, stop.sh, kill.sh, stacks.sh.

The last three exist where the ranks are not processes of this machine: in a container, on
other nodes, in a queue. They work by hand as well.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from engine.launch import signals
from engine.launch.command import Command
from engine.launch.slurm import JOB_ID
from engine.paths import write_atomic

COMMAND, STOP, KILL, STACKS = "command.sh", "stop.sh", "kill.sh", "stacks.sh"
KILL_LIMIT_S = 60
"""A node that does not answer must not keep the run from ending."""


def write(command: Command, attempt: Path) -> Path:
    """Write the scripts of `command` into `attempt`; return the one to start. Raises OSError."""
    texts = {
        **command.files,
        signals.NAME: signals.SCRIPT,
        STOP: command.stop_script(attempt / STOP),
        KILL: command.kill_script(attempt / KILL),
        STACKS: command.stacks_script(attempt / STACKS),
        COMMAND: command.script(attempt / COMMAND),
    }
    for name, text in texts.items():
        if text:
            is_data = name.endswith(".env")
            write_atomic(attempt / name, text, mode=0o644 if is_data else 0o755)
    return attempt / COMMAND


def ask_to_stop(attempt: Path) -> bool:
    """Start stop.sh and do not wait; False when the attempt has none, or its directory is gone."""
    script = attempt / STOP
    if not script.exists():
        return False
    try:
        with (attempt / "launcher.log").open("ab") as log:
            subprocess.Popen(["bash", str(script)], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    except OSError:
        return False
    return True


def kill(attempt: Path) -> bool:
    """Run kill.sh for at most a minute; False when there is none or it found nothing to end."""
    return _run(attempt, KILL)


def save_stacks(attempt: Path) -> bool:
    """Run stacks.sh for at most a minute; False when there is none or it reached no rank."""
    return _run(attempt, STACKS)


def _run(attempt: Path, name: str) -> bool:
    if not (attempt / name).exists():
        return False
    try:
        with (attempt / "launcher.log").open("ab") as log:
            words = ["bash", str(attempt / name)]
            ended = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=KILL_LIMIT_S)
    except (subprocess.TimeoutExpired, OSError):
        return False  # its ssh or scancel hangs with the node it asks; or the directory is gone
    return ended.returncode == 0


def is_queued(attempt: Path) -> bool:
    """True when Slurm carries the attempt out: then nobody here needs to keep it alive."""
    return (attempt / JOB_ID).exists()
