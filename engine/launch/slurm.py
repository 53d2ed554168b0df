"""The Slurm launcher: each step as a batch job.

Written here and not taken from a library: submitit pickles Python functions, which our workers
are not, and simple-slurm only joins `#SBATCH` lines, which is the smallest part.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from engine.errors import SettingsError
from engine.launch import images, local
from engine.launch.command import BASH, Command, Quoter, StepRequest, comment
from engine.launch_settings import LaunchSettings

JOB_SCRIPT, NODE_SCRIPT, JOB_ID, JOB_ENV = "job.sbatch", "node.sh", "slurm.job", "job.env"

SIGNAL_DELAY_S = 60
"""By how much Slurm may be early or late with a signal."""

# sbatch reads these lines itself: no shell quoting is undone there.
_PLAIN = re.compile(r"[A-Za-z0-9._,@:=+/%\[\]*()&|!-]*")
_OPTION = re.compile(r"--?[A-Za-z][A-Za-z-]*(=.*)?")
_TIME = re.compile(r"[0-9]+(:[0-9]{2}){0,2}|[0-9]+-[0-9]{1,2}(:[0-9]{2}){0,2}")


def command(request: StepRequest) -> Command:
    """The step as a batch job, submitted and followed by `engine.run.slurm_job`. Raises SettingsError."""
    job = f'"$(cat -- {Quoter(request.run)(str(request.attempt / JOB_ID))})"'
    return Command(
        argv=("$GPTOSS_PYTHON", "-m", "engine.run.slurm_job", str(request.run), str(request.attempt)),
        variables={"GPTOSS_PYTHON": request.own_python},
        title=local.title(request),
        run=request.run,
        makes=(request.attempt,),
        files={JOB_SCRIPT: job_script([request], request.attempt / JOB_SCRIPT), NODE_SCRIPT: node_script(request)},
        stop=(
            f"job={job}",
            'scancel --state=PENDING "$job" # it has no batch script yet that could be asked',
            'scancel --batch --signal=TERM "$job"',
        ),
        kill=(
            "# shellcheck disable=SC2016 # awk has variables of its own",
            f'job="$({_job_number(request)})"',
            'scancel "$job"',
        ),
        stacks=(f"job={job}", 'scancel --batch --signal=USR2 "$job"') if local.on_node(request).reports else (),
        reports=local.on_node(request).reports,
        log="slurm-*.log",
        ranks=request.ranks,
    )


def _job_number(request: StepRequest) -> str:
    """Bash that prints the job's number: the one that was noted, or what the queue has of this name and directory."""
    noted = Quoter(request.run)(str(request.attempt / JOB_ID))
    asked = f'squeue --noheader --user "$(id -u)" --name {shlex.quote(request.name)} --format "%A|%Z"'
    # The name alone may be another run's; sbatch was given the directory as it was spelled then.
    places = f'-v place="$RUN_DIR" -v spelled={shlex.quote(str(request.run))}'
    ours = "$2 == place || $2 == spelled { print $1 }"
    return f"cat -- {noted} 2>/dev/null || {asked} | awk -F'|' {places} '{ours}'"


def node_script(request: StepRequest) -> str:
    """The text of what srun starts on each node; it lies in the attempt's directory."""
    return node_command(request).script(request.attempt / NODE_SCRIPT)


def node_command(request: StepRequest) -> Command:
    """What srun starts once on each node of the allocation."""
    inner = local.on_node(request)
    job_env = Quoter(request.run)(str(request.attempt / JOB_ENV))
    return replace(
        inner,
        before=(
            "# The allocation knows better than the env file who takes part and where to meet.",
            "set -a",
            f"source {job_env}",
            "set +a",
            'export NODE_RANK="$SLURM_NODEID"',
            *inner.before,
        ),
    )


def job_script(requests: Sequence[StepRequest], at: Path) -> str:
    """The text of a batch script at `at` that carries out steps of one run, one after the other.

    Raises SettingsError for values that its `#SBATCH` lines cannot hold.
    """
    first = requests[0]
    lines = [
        BASH,
        *directives(requests),
        comment(f"{', '.join(request.step for request in requests)} of the run {first.run.name}; written by gptoss"),
        *([f"# By hand, from the run directory: sbatch {at.relative_to(first.run)}"] if at.name == JOB_SCRIPT else []),
        "# shellcheck disable=SC2317 # traps call `ask`",
        "set -euo pipefail",
        'RUN_DIR="$(cd -- "${RUN_DIR:-${SLURM_SUBMIT_DIR:?submit this script with sbatch}}" && pwd -P)"',
        *_assigned_image(first),
        _FUNCTIONS,
        *([_CHECKPOINT] if first.settings.launch.requeue else []),
    ]
    for request in requests:
        where = f'"$RUN_DIR"/{request.attempt.relative_to(request.run)}'
        nodes = request.nodes_used
        step = [f"step {where} {request.ranks_per_node} {nodes}", f"srun --nodes={nodes} --ntasks-per-node=1"]
        step += _step_options(request)
        lines.append(" \\\n  ".join(step))
    lines += [_requeue(first), "exit 0"]
    return "\n".join(line for line in lines if line) + "\n"


_FUNCTIONS = """\

fail() { # CODE SENTENCE
  echo "job.sbatch: $2" >&2
  exit "$1"
}
[ -f "$RUN_DIR"/settings.toml ] ||
  fail 2 "$RUN_DIR is no run directory: submit from there, or with --export=ALL,RUN_DIR=DIR"
# The first node's own address: node names need not resolve.
first="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
address="$(scontrol show node "$first" | sed -n 's/.*NodeAddr=\\([^ ]*\\).*/\\1/p')"
[ -n "$address" ] || fail 1 "the address of the first node is not known: scontrol show node $first"
asked=""
attempt=""
nodes=1
running=""
# Runs beside the step on every node and signals the ranks there; fails where one of them has none.
signal_ranks() { srun --overlap --nodes="$nodes" --ntasks-per-node=1 bash "$attempt"/signal.sh "$1"; }
ask() {
  [ "$asked" = stop ] || asked="$1" # the limit may come while they save: who was stopped is not put back
  # Ranks that are only being started cannot be reached yet.
  until [ -z "$running" ] || signal_ranks stop || ! kill -0 "$running" 2>/dev/null; do sleep 1; done
}
trap 'ask limit' USR1 # Slurm, before the time limit
trap 'ask stop' TERM # gptoss stop, scancel --batch --signal=TERM
trap 'signal_ranks stacks || true' USR2 # the supervisor, when the step hangs

step() { # ATTEMPT RANKS_PER_NODE NODES COMMAND...
  attempt="$1"
  nodes="$3"
  [ -d "$attempt" ] || fail 2 "$attempt is missing: export the scripts again"
  # After a requeue: what is done stays done, what an earlier start reported says nothing of this one.
  if [ -n "$asked" ] || grep -qs '"outcome": *"finished"' "$attempt"/rank-0.json; then return 0; fi
  rm -f -- "$attempt"/rank-*.json "$attempt"/error-rank-*.json
  cat >"$attempt"/job.env <<END
GPUS_PER_NODE=$2
NUM_NODES=$3
MASTER_ADDR=$address
MASTER_PORT=$((20000 + (SLURM_JOB_ID + ${SLURM_RESTART_COUNT:-0}) % 12000))
END
  shift 3
  "$@" bash "$attempt"/node.sh &
  running=$!
  local code
  if [ -n "$asked" ]; then ask "$asked"; fi # it came while the step was being started
  while :; do # a trap ends `wait` early
    if wait "$running"; then code=0; else code=$?; fi
    kill -0 "$running" 2>/dev/null || break
  done
  running=""
  if [ "$code" -ne 0 ] && [ -z "$asked" ]; then
    fail "$code" "${attempt##*/} ended with exit code $code; its logs are in $attempt"
  fi
}
"""


_CHECKPOINT = """\
checkpoint() { cat -- "$RUN_DIR"/checkpoints/latest_checkpointed_iteration.txt 2>/dev/null || echo none; }
at_start="$(checkpoint)"
"""


def _requeue(request: StepRequest) -> str:
    if not request.settings.launch.requeue:
        return ""
    return """\

# Without a newer checkpoint it would only do the same again.
if [ "$asked" = limit ] && [ "$(checkpoint)" != "$at_start" ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi"""


def directives(requests: Sequence[StepRequest]) -> list[str]:
    """The `#SBATCH` lines. Raises SettingsError for a value that could not stand in one."""
    first = requests[0]
    launch = first.settings.launch
    log = first.attempt.relative_to(first.run) / "slurm-%j.log" if len(requests) == 1 else "slurm-%j.log"
    options = {
        "job-name": first.name if len(requests) == 1 else first.run_label,
        "nodes": str(max(request.nodes_used for request in requests)),
        "ntasks-per-node": "1",
        "output": str(log),
        "open-mode": "append",
        "partition": launch.partition,
        "account": launch.account,
        "qos": launch.qos,
        "time": _time(launch),
        "mail-user": launch.mail,
        "mail-type": "BEGIN,END,FAIL,REQUEUE" if launch.mail else "",
        # To the batch script only: it knows the ranks. Slurm may send it up to a minute late.
        "signal": f"B:USR1@{launch.grace_s + SIGNAL_DELAY_S}",
    }
    on_gpus = [request for request in requests if request.device == "gpu" and request.step != "prepare"]
    if on_gpus:
        options["gpus-per-node"] = str(max(request.ranks_per_node for request in on_gpus))
    lines = [f"#SBATCH --{key}={_plain(key, value)}" for key, value in options.items() if value]
    if any(request.uses_all_ranks for request in on_gpus):
        lines += ["#SBATCH --exclusive", "#SBATCH --mem=0"]
    lines.append("#SBATCH --requeue" if launch.requeue else "#SBATCH --no-requeue")
    return lines + [f"#SBATCH {option}" for option in _further(launch.slurm_options)]


def _step_options(request: StepRequest) -> list[str]:
    # One node that fails must not leave the others waiting for it until NCCL gives up.
    options = ["--kill-on-bad-exit=1"]
    if not request.runtime:
        return options
    quote = Quoter(request.run, ["IMAGE"])
    if request.runtime == "pyxis":
        options += ['--container-image="$IMAGE"', f"--container-mounts={quote(','.join(images.mounts(request)))}"]
        return [*options, "--no-container-mount-home", '--container-workdir="$RUN_DIR"']
    return [*options, " ".join(map(quote, (*images.apptainer_words(request), "$IMAGE")))]


def _assigned_image(request: StepRequest) -> list[str]:
    if not request.runtime:
        return []
    return [f"IMAGE={shlex.quote(images.source(request.settings.launch, request.runtime))}"]


def _plain(key: str, value: str) -> str:
    if not _PLAIN.fullmatch(value):
        raise SettingsError(
            f"{value!r} cannot stand in `#SBATCH --{key}`", "use letters, digits and . _ - , = : / only, without spaces"
        )
    return value


def _time(launch: LaunchSettings) -> str:
    """The time limit. Raises SettingsError for a text that is none, and for one that ends before work begins."""
    text = launch.time_limit
    if text and not _TIME.fullmatch(text):
        raise SettingsError(f"launch.time_limit = {text!r} is no time", "write 04:00:00, 2-12:00:00 or minutes")
    needed = launch.grace_s + 2 * SIGNAL_DELAY_S
    if text and 0 < limit_s(text) <= needed:
        raise SettingsError(
            f"launch.time_limit = {text} is {limit_s(text)} s, and saving begins {needed} s before its end: "
            f"launch.grace_s, {launch.grace_s} s, and two minutes for Slurm's clock",
            f"--set launch.time_limit={needed // 60 + 60} (minutes), or a smaller launch.grace_s",
        )
    return text


def limit_s(text: str) -> int:
    """The seconds of a time limit as sbatch reads it; 0 is no limit."""
    days, dash, rest = text.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash:  # D-HH[:MM[:SS]]
        parts += [0] * (3 - len(parts))
    elif len(parts) < 3:  # MM[:SS]
        parts = [0, *parts, 0][:3]
    hours, minutes, seconds = parts
    return int(days or 0) * 86_400 + hours * 3600 + minutes * 60 + seconds


def _further(text: str) -> list[str]:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise SettingsError(f"launch.slurm_options: {error}", "close the quote") from error
    for word in words:
        if not _OPTION.fullmatch(word):
            raise SettingsError(f"launch.slurm_options: {word!r} is no option", "write --constraint=h100, with the =")
        _plain(word.partition("=")[0].lstrip("-"), word.partition("=")[2])
    return words
