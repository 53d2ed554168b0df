"""The local launcher: torchrun on this machine's GPUs or CPU."""

from __future__ import annotations

import random
import socket

from engine.errors import LaunchError, SettingsError
from engine.launch import environment, reference, signals
from engine.launch.command import Command, Quoter, StepRequest, Words

_OWN_PORTS = (20_000, 32_000)
# Not the module's own generator: supervisors that were forked from one process, or seeded, would try the same ports.
_chance = random.SystemRandom()
_PORT_TRIES = 100


def command(request: StepRequest) -> Command:
    """The step as a torchrun command that reads the env file for its sizes. Raises SettingsError."""
    if request.nodes > 1 and request.uses_all_ranks and not request.by_hand:
        raise SettingsError(
            f"the local launcher starts one node and the plan has {request.nodes}",
            "--set launch.launcher=slurm or ssh; or gptoss export-scripts for one script a node",
        )
    return on_node(request)


def on_node(request: StepRequest) -> Command:
    """One node's part of the step; which node it is, the env file says."""
    is_worker = request.step != "train" or request.settings.launch.route == "bridge"
    return Command(
        argv=worker_argv(request) if is_worker else reference.argv(request, rendezvous(request)),
        env=environment.of_worker(request),
        run=request.run,
        cwd=None if is_worker else reference.checkout(request),
        variables={"PYTHON": request.python},
        makes=(request.attempt,),
        env_file=request.env_file,
        before=_OWN_ADDRESS if request.nodes_used > 1 else (),
        title=title(request),
        reports=is_worker,
        stop=() if is_worker else (f"bash {Quoter(request.run)(str(request.attempt / signals.NAME))} stop",),
        ranks=request.ranks,
    )


_OWN_ADDRESS = tuple(
    r"""
# gloo takes the address that this host's own name has: often 127.0.1.1, which no other node reaches.
if [ -z "${GLOO_SOCKET_IFNAME:-}" ] && command -v ip >/dev/null; then
  address="$(getent ahostsv4 "$MASTER_ADDR" | awk 'NR == 1 { print $1 }' || true)"
  if [ "$NODE_RANK" = 0 ]; then
    device="$(ip -o -4 addr show to "$address" 2>/dev/null | awk 'NR == 1 { print $2 }' || true)"
  else
    device="$(ip -o route get "$address" 2>/dev/null | sed -n 's/.* dev \([^ ]*\).*/\1/p' || true)"
  fi
  if [ -n "$device" ]; then export GLOO_SOCKET_IFNAME="$device"; fi
fi""".strip().splitlines()
)


def title(request: StepRequest) -> str:
    return f"{request.step} of the run {request.run.name}; written by gptoss, runs without it"


def worker_argv(request: StepRequest) -> Words:
    """The worker, under torchrun where it has ranks."""
    module = f"engine.workers.{request.step}"
    if request.step == "prepare":
        return ("$PYTHON", "-m", module, str(request.run))
    return ("$PYTHON", "-m", "torch.distributed.run", *rendezvous(request), "-m", module, str(request.run))


def rendezvous(request: StepRequest) -> Words:
    """torchrun's options that say who meets whom."""
    if not request.uses_all_ranks:
        # One process on one node; its own rendezvous must not meet that of other nodes.
        sizes: Words = ("--nproc-per-node", str(request.ranks_per_node), "--nnodes", "1")
        return (*sizes, "--master-addr", "localhost", "--master-port", "$MASTER_PORT")
    sizes = ("--nproc-per-node", "$GPUS_PER_NODE", "--nnodes", "$NUM_NODES", "--node-rank", "$NODE_RANK")
    where = ("--master-addr", "$MASTER_ADDR", "--master-port", "$MASTER_PORT")
    if request.nodes == 1:
        return (*sizes, *where)
    # A node that never comes is to be noticed sooner than after ten minutes (static_tcp_rendezvous.py, torch 2.13).
    return (*sizes, *where, "--rdzv-conf", "timeout=300")


def free_port(wanted: int = 0) -> int:
    """`wanted` when nobody listens there, else a free port below those that outgoing connections take.

    torchrun listens seconds after the port was chosen; a port of the kernel's own range could be
    some connection's by then. Raises LaunchError when every port tried is taken.
    """
    tries = (_chance.randrange(*_OWN_PORTS) for _ in range(_PORT_TRIES))
    for port in (wanted, *tries) if wanted else tries:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise LaunchError(f"{_PORT_TRIES} ports tried from {_OWN_PORTS[0]} on are all in use", "set launch.master_port")
