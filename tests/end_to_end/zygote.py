"""A process that imports Megatron once and forks the ranks of each case.

Importing costs 6 s on idle cores and 20 s on busy ones, a tiny training much less. The forked
ranks get the variables that torchrun sets and run the worker's own `run_worker`. One JSON
object a line on stdin and stdout:

    {"start": WORKER, "run": DIR, "attempt": DIR, "ranks": N, "without": [FIX, ...]}  ->  {"pids": [...]}
    {"wait": [PID, ...], "timeout_s": S}                                               ->  {"codes": [...]}
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

LEFT_A_PROCESS = 77
"""Exit code of a rank whose worker ended well and left a child process behind."""

WORKERS = ("prepare", "convert", "train", "export", "verify")


_stores: dict[tuple[int, ...], Any] = {}
"""Where the ranks of one start meet, by their pids."""


def main() -> None:
    # Imports and forked ranks print; what they print must not be taken for a reply.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    workers = load()
    print(json.dumps({"ready": True}), file=replies, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "start" in request:
            reply: dict[str, Any] = {"pids": start(workers, request)}
        else:
            reply = {"codes": wait(request["wait"], request["timeout_s"])}
        print(json.dumps(reply), file=replies, flush=True)


def load() -> dict[str, ModuleType]:
    """Import what the workers import; the fixes of cpu.py but the stubs are left to the ranks."""
    from engine.workers import cpu

    cpu.prepare_environment()
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch

    torch.set_num_threads(1)
    cpu.absent_packages()
    for name in (
        "megatron.bridge.training.gpt_step",
        "megatron.bridge.training.pretrain",
        "transformers.models.gpt_oss.modeling_gpt_oss",
        "engine.workers.metrics",
    ):
        importlib.import_module(name)
    return {name: importlib.import_module(f"engine.workers.{name}") for name in WORKERS}


def start(workers: dict[str, ModuleType], request: dict[str, Any]) -> list[int]:
    # As with torchrun, the store is nobody's rank: a port that is listened to from the beginning is taken by nobody
    # else, and no rank that ends first takes the store away from the others.
    from torch.distributed import TCPStore

    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    port = store.port
    pids: list[int] = []
    for rank in range(request["ranks"]):
        pid = os.fork()
        if pid == 0:
            be_rank(workers, request, rank, port)
        pids.append(pid)
    _stores[tuple(pids)] = store
    return pids


def be_rank(workers: dict[str, ModuleType], request: dict[str, Any], rank: int, port: int) -> None:
    """Never returns."""
    code = 1
    try:
        ranks = str(request["ranks"])
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=ranks,
            LOCAL_WORLD_SIZE=ranks,
            MASTER_ADDR="localhost",
            MASTER_PORT=str(port),
            TORCHELASTIC_USE_AGENT_STORE="True",
            TORCHELASTIC_RESTART_COUNT="0",
            GPTOSS_ATTEMPT=request["attempt"],
        )
        from engine.workers import cpu
        from engine.workers.report import run_worker

        cpu.install(without=["absent_packages", *request["without"]])
        name = request["start"]
        code = run_worker(name, workers[name].work, [request["run"]])
        if code == 0 and multiprocessing.active_children():
            code = LEFT_A_PROCESS
    finally:
        for child in multiprocessing.active_children():
            child.terminate()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(pids: list[int], timeout_s: float) -> list[int | None]:
    """Exit codes; as with torchrun, one rank that fails ends the others. None: it had to be killed."""
    codes: dict[int, int | None] = {}
    deadline = time.monotonic() + timeout_s
    while len(codes) < len(pids):
        for pid in pids:
            if pid not in codes and (ended := os.waitpid(pid, os.WNOHANG))[0]:
                codes[pid] = os.waitstatus_to_exitcode(ended[1])
        if time.monotonic() > deadline or any(codes.values()):
            for pid in pids:
                if pid not in codes:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                    codes[pid] = None
        time.sleep(0.02)
    _stores.pop(tuple(pids), None)
    return [codes[pid] for pid in pids]


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    main()
