#!/usr/bin/env python3
"""FakeDocker: stands in for the docker client where no engine can run.

`run` starts the command after the image on this machine, with the environment that `--env`
gives and nothing else of the caller's but PATH; `exec`, `stop` and `rm` act on what was started
under a name. Every call's argv is appended to $FAKE_DOCKER_LOG as one JSON line. What it cannot
show, namespaces and mounts, is tested with podman.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

LOG = Path(os.environ["FAKE_DOCKER_LOG"])
VALUED = {"--name", "--detach-keys", "--ulimit", "--gpus", "--device", "--user", "--env", "--mount", "--workdir"}


def pid_file(name):
    return LOG.parent / f"container-{name}.pid"


def run(words):
    options, environment = {}, {"PATH": os.environ["PATH"]}
    while words[0].startswith("-"):
        key, equals, value = words.pop(0).partition("=")
        if not equals and key in VALUED:
            value = words.pop(0)
        options[key] = value
        if key == "--env":
            name, has_value, given = value.partition("=")
            if has_value:
                environment[name] = given
            elif name in os.environ:
                environment[name] = os.environ[name]
    name = options["--name"]
    if pid_file(name).exists():
        sys.exit(f"the container name {name} is already in use")
    child = subprocess.Popen(words[1:], env=environment, cwd=options["--workdir"], start_new_session=True)
    pid_file(name).write_text(str(child.pid))
    signal.signal(signal.SIGTERM, lambda number, frame: child.send_signal(number))
    code = child.wait()
    pid_file(name).unlink(missing_ok=True)
    sys.exit(code if code >= 0 else 128 - code)


def main(words):
    with LOG.open("a") as log:
        log.write(json.dumps(words) + "\n")
    verb, *rest = words
    if verb == "run":
        run(rest)
    elif verb == "exec":
        sys.exit(subprocess.run(rest[1:]).returncode)
    elif verb in ("stop", "rm"):
        pid = pid_file(rest[-1])
        if not pid.exists():
            sys.exit(f"no such container: {rest[-1]}")
        os.killpg(int(pid.read_text()), signal.SIGTERM if verb == "stop" else signal.SIGKILL)
        pid.unlink(missing_ok=True)
    elif verb not in ("info", "image"):
        sys.exit(f"FakeDocker has no {verb}")


main(sys.argv[1:])
