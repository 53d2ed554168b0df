"""What an attempt has on disk to be started, asked and ended: command.sh, signal.sh, stop.sh, kill.sh.

stop.sh and kill.sh exist where the ranks are not processes of this machine: in a container, on
other nodes, in a queue. They work by hand as well.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from engine.launch import signals
from engine.launch.command import Command
from engine.launch.slurm import JOB_ID
from engine.paths import write_atomic

COMMAND, STOP, KILL = "command.sh", "stop.sh", "kill.sh"
KILL_LIMIT_S = 60
"""A node that does not answer must not keep the run from ending."""


def write(command: Command, attempt: Path) -> Path:
    """Write the scripts of `command` into `attempt`; return the one to start. Raises OSError."""
    texts = {
        **command.files,
        signals.NAME: signals.SCRIPT,
        STOP: command.stop_script(attempt / STOP),
        KILL: command.kill_script(attempt / KILL),
        COMMAND: command.script(attempt / COMMAND),
    }
    for name, text in texts.items():
        if text:
            is_data = name.endswith(".env")
            write_atomic(attempt / name, text, mode=0o644 if is_data else 0o755)
    return attempt / COMMAND


def ask_to_stop(attempt: Path) -> bool:
    """Start stop.sh and do not wait; False when the attempt has none."""
    script = attempt / STOP
    if not script.exists():
        return False
    with (attempt / "launcher.log").open("ab") as log:
        subprocess.Popen(["bash", str(script)], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    return True


def kill(attempt: Path) -> bool:
    """Run kill.sh for at most a minute; False when there is none or it found nothing to end."""
    script = attempt / KILL
    if not script.exists():
        return False
    try:
        with (attempt / "launcher.log").open("ab") as log:
            words = ["bash", str(script)]
            ended = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=KILL_LIMIT_S)
    except subprocess.TimeoutExpired:
        return False  # its ssh or scancel hangs with the node it asks
    return ended.returncode == 0


def is_queued(attempt: Path) -> bool:
    """True when Slurm carries the attempt out: then nobody here needs to keep it alive."""
    return (attempt / JOB_ID).exists()
