#!/usr/bin/env python3
"""FakePython: stands in for the interpreter and the torchrun that start workers.

It is named by `launch.python`, is called with the very arguments a real interpreter would get,
and behaves as the file `script.json` beside the run says: a list of actions for each step, one
for each attempt. It keeps the workers' reporting contract. Real workers are tested in
tests/end_to_end.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

RUN = Path(sys.argv[-1])
STEP = next(word for word in sys.argv if word.startswith("engine.workers.")).rpartition(".")[2]
ATTEMPT = Path(os.environ["GPTOSS_ATTEMPT"])


def process():
    stat = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return {"pid": os.getpid(), "start_ticks": int(stat[19]), "boot_id": boot}


def report(outcome, result=None, rank=0):
    value = {"rank": rank, "outcome": outcome, "process": process(), "result": result or {}, "peak_memory_gib": 0.5}
    path = ATTEMPT / f"rank-{rank}.json"
    path.with_suffix(".new").write_text(json.dumps(value))
    path.with_suffix(".new").rename(path)


def metric(iteration):
    with (RUN / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"t": time.time(), "step": "train", "iteration": iteration, "loss": 1.0}) + "\n")


def stop_on_sigterm(rank=0):
    def on_signal(number, frame):
        report("stopped", {"iteration": 7}, rank)
        sys.exit(0)

    signal.signal(signal.SIGTERM, on_signal)


def wait_for_ever():
    while True:
        time.sleep(0.05)


MESSAGES = {"OutOfMemoryError": "CUDA out of memory. Tried to allocate 1.54 GiB. GPU 0 has 79.1 GiB in all"}


def fail(error):
    message = MESSAGES.get(error, f"{error} was raised")
    value = {"t": time.time(), "rank": 0, "error": error, "message": message, "traceback": f"{error}: {message}"}
    (ATTEMPT / "error-rank-0.json").write_text(json.dumps(value))
    report("failed")
    sys.exit(1)


def act_as_node(action):
    """One of several nodes: its rank is the number that the launcher gave the node."""
    node = os.environ["NODE_RANK"]
    rank = int(node)
    addresses = subprocess.run(["hostname", "-I"], capture_output=True, text=True).stdout.strip()
    with (RUN / "nodes.jsonl").open("a") as file:
        file.write(json.dumps({"node": node, "address": addresses}) + "\n")
    if action == "die-on-node-1" and rank == 1:
        report("running", rank=rank)
        os.kill(os.getpid(), signal.SIGKILL)
    if action == "finish-as-node":
        report("finished", rank=rank)
        return
    stop_on_sigterm(rank)
    report("running", rank=rank)
    wait_for_ever()


def act(action):
    if "node" in action:
        act_as_node(action)
    elif action == "finish":
        metric(3)
        report("finished", {"answer": STEP})
    elif action == "hang":
        stop_on_sigterm()
        report("running")
        metric(5)
        wait_for_ever()
    elif action == "ignore-sigterm":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        report("running")
        wait_for_ever()
    elif action == "leave-a-child":
        if os.fork() == 0:
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            (RUN / "child.pid").write_text(str(os.getpid()))
            wait_for_ever()
        while not (RUN / "child.pid").exists():
            time.sleep(0.01)
        report("finished")
    elif action == "die":
        report("running")
        with (RUN / "metrics.jsonl").open("a") as file:
            file.write('{"t": 1, "iteration": 4, "lo')
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "exit-without-report":
        sys.exit(3)
    else:
        fail(action.removeprefix("raise-"))


script = json.loads((RUN / "script.json").read_text())
actions = script.get(STEP, ["finish"])
tries = len(list((RUN / "attempts").glob(f"*-{STEP}")))
act(actions[min(tries, len(actions)) - 1])
