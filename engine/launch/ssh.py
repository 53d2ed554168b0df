"""The ssh launcher: torchrun on every host of a list, started and ended from one place.

The run's directory must lie on storage that all hosts share, under one path.
"""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

from engine.env_file import render
from engine.errors import SettingsError
from engine.launch import local, signals
from engine.launch.command import Command, Quoter, StepRequest

# A dead connection is noticed within a minute, and nothing waits for a password.
OPTIONS = ("-n", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10",
           "-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=3")  # fmt: skip
_WAIT = ("found=1", 'for pid in "${pids[@]}"; do if wait "$pid"; then found=0; fi; done', 'exit "$found"')
PATIENCE_S = 10
"""How long the other nodes may take to report after one has failed."""


def command(request: StepRequest) -> Command:
    """The step on every host it needs. Raises SettingsError when the hosts do not fit the plan."""
    hosts = request.hosts[: request.nodes_used]
    if len(request.hosts) != request.nodes:
        raise SettingsError(
            f"machine.hosts names {len(request.hosts)} hosts and the plan has {request.nodes} nodes",
            f"--set machine.nodes={len(request.hosts)} or name {request.nodes} hosts",
        )
    files: dict[str, str] = {}
    for rank, _ in enumerate(hosts):
        files |= node_files(request, request.attempt, rank)
    at = Quoter(request.run)(str(request.attempt))
    starts = [
        f"start {shlex.quote(host)} {at}/{script_name(rank)} {at}/node-{rank}.log" for rank, host in enumerate(hosts)
    ]
    return Command(
        argv=("wait_for_all",),
        before=(*_head(at), *starts),
        after=('exit "$code"',),
        title=local.title(request),
        run=request.run,
        makes=(request.attempt,),
        files=files,
        stop=tuple(_on_every(hosts, f"{at}/{signals.NAME}", "stop")),
        kill=tuple(_kill_on_every(hosts, at)),
        stacks=tuple(_on_every(hosts, f"{at}/{signals.NAME}", "stacks")) if local.on_node(request).reports else (),
        reports=local.on_node(request).reports,
        log=f"node-{len(hosts) - 1}.log",  # the last rank prints them (print_rank_last)
        ranks=request.ranks,
    )


def node_files(request: StepRequest, directory: Path, rank: int) -> dict[str, str]:
    """The env file and the script of one node, by name; they lie in `directory`."""
    node = node_command(request, directory, rank)
    return {
        env_name(rank): render({**request.environment, "NODE_RANK": rank}),
        script_name(rank): node.script(directory / script_name(rank)),
    }


def node_command(request: StepRequest, directory: Path, rank: int) -> Command:
    """One node's part; its env file differs from the others' in NODE_RANK alone."""
    node = local.on_node(request)
    own = Quoter(request.run)(str(directory / env_name(rank)))
    return replace(
        node,
        title=f"node {rank}: {node.title}",
        before=("set -a", f"source {own}", "set +a", *node.before),
    )


def env_name(rank: int) -> str:
    return f"node-{rank}.env"


def script_name(rank: int) -> str:
    return f"node-{rank}.sh"


def _head(at: str) -> list[str]:
    """The functions that start the nodes and wait for them; `at` is the attempt's directory."""
    return f"""\
pids=()
start() {{ # HOST SCRIPT LOG
  ssh {" ".join(OPTIONS)} -- "$1" "bash $(printf '%q' "$2")" >>"$3" 2>&1 &
  pids+=("$!")
}}
code=0
# The first node that fails ends the others: they would wait for it until NCCL gives up.
node_failed() {{
  if [ "$code" -ne 0 ]; then return; fi
  code="$1"
  sleep {PATIENCE_S}
  bash {at}/kill.sh || true
}}
wait_for_all() {{
  local pid running=("${{pids[@]}}") left
  while [ "${{#running[@]}}" -gt 0 ]; do
    left=()
    for pid in "${{running[@]}}"; do
      if kill -0 "$pid" 2>/dev/null; then
        left+=("$pid")
      elif wait "$pid"; then
        continue
      else
        node_failed "$?"
      fi
    done
    running=(${{left[@]+"${{left[@]}}"}})
    sleep 1
  done
}}
trap 'bash {at}/stop.sh || true' TERM""".splitlines()


def _kill_on_every(hosts: tuple[str, ...], at: str) -> list[str]:
    """End the attempt on every host at once, without reading its directory; true when one found something."""
    lines = ["# shellcheck disable=SC2016 # expanded there", f"script={shlex.quote(signals.KILL_HERE)}"]
    lines += ["pids=()", "end() { # HOST"]
    remote = f"""bash -c $(printf '%q' "attempt=$(printf '%q' {at}); $script")"""
    lines += [f"""  ssh {" ".join(OPTIONS)} -- "$1" "{remote}" &""", '  pids+=("$!")', "}"]
    return [*lines, *(f"end {shlex.quote(host)}" for host in hosts), *_WAIT]


def _on_every(hosts: tuple[str, ...], script_path: str, action: str) -> list[str]:
    """Run the signal script on every host at once; true when one of them found something."""
    options = " ".join(OPTIONS)
    lines = ["pids=()", "signal() { # HOST SCRIPT"]
    lines += [f"""  ssh {options} -- "$1" "bash $(printf '%q' "$2") {action}" &""", '  pids+=("$!")', "}"]
    lines += [f"signal {shlex.quote(host)} {script_path}" for host in hosts]
    return [*lines, *_WAIT]
