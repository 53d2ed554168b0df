"""`signal.sh`: reach the processes of one attempt on the node where it is run.

Pure bash, so that it works in any container, over ssh and inside a Slurm job, with and without
gptoss there. A process belongs to the attempt when its environment says so: that survives
sessions, process groups and lost parents, and cannot meet a stranger that reuses a pid.
"""

from __future__ import annotations

NAME = "signal.sh"

SCRIPT = r"""#!/usr/bin/env bash
# Usage: signal.sh stop|kill|stacks
# stop: ask the ranks of this attempt on this node to save a checkpoint and to leave. Asked again when they have left,
#   it does nothing: torchrun, ended by a signal, would let srun end the nodes whose ranks still save.
# kill: end every process of this attempt on this node.
# stacks: let the ranks of this attempt on this node write where they are to rank-K.stacks.
set -uo pipefail
attempt="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)"

has() { grep -zqs -e "$2" "/proc/$1/environ"; }
belongs() { grep -zqsxF -e "GPTOSS_ATTEMPT=$attempt" "/proc/$1/environ"; }
some_have_left() { cat -- "$attempt"/rank-*.json 2>/dev/null | grep -qs '"outcome": *"\(stopped\|finished\|failed\)"'; }
parent_of() { sed -n 's/^PPid:[[:space:]]*//p' "/proc/$1/status" 2>/dev/null || true; }

all=() ranks=() roots=()
for entry in /proc/[0-9]*; do
  pid="${entry#/proc/}"
  if [ "$pid" = "$$" ] || ! belongs "$pid"; then continue; fi
  all+=("$pid")
  parent="$(parent_of "$pid")"
  if ! belongs "${parent:-0}"; then roots+=("$pid"); fi
  # torchrun gives its ranks LOCAL_RANK and has none itself; a rank's own children inherit it.
  if has "$pid" '^LOCAL_RANK=' && ! has "${parent:-0}" '^LOCAL_RANK='; then ranks+=("$pid"); fi
done

case "${1:-}" in
  stop)
    if [ "${#ranks[@]}" -gt 0 ]; then targets=("${ranks[@]}"); else targets=("${roots[@]}"); fi
    if [ "${#ranks[@]}" -eq 0 ] && some_have_left; then exit 0; fi
    signal=TERM ;;
  kill) targets=("${all[@]}") signal=KILL ;;
  stacks) targets=("${ranks[@]}") signal=USR1 ;;
  *) echo "usage: signal.sh stop|kill|stacks" >&2; exit 2 ;;
esac
if [ "${#targets[@]}" -eq 0 ]; then
  echo "no process of $attempt runs on $(hostname 2>/dev/null || echo this node)" >&2
  exit 1
fi
kill -s "$signal" "${targets[@]}" 2>/dev/null || true
"""

KILL_HERE = (
    "found=1; for entry in /proc/[0-9]*; do "
    'if grep -zqsxF -e "GPTOSS_ATTEMPT=$attempt" "$entry"/environ; then '
    'kill -s KILL "${entry#/proc/}" && found=0; fi; done; exit "$found"'
)
"""`signal.sh kill` without a file of the run: for a node whose share is gone. It wants `attempt` to be set.

One line: bash's `%q` has spellings for a line's end that other shells, which sshd may start, do not know.
"""
