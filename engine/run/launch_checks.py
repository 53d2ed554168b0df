"""What would keep the chosen launcher from starting the run, asked before it is made."""

from __future__ import annotations

import os
import re
import secrets
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from engine import paths
from engine.checkpoints import danger
from engine.errors import EngineError
from engine.findings import Finding, by_severity, error, info, warning
from engine.launch import container, launchers, probe, slurm, slurm_answers, ssh, traps
from engine.launch.command import StepRequest
from engine.launch.reference import SCRIPT
from engine.paths import expanded
from engine.plan.plan import Plan
from engine.run import commands
from engine.run.directory import RunDirectory
from engine.settings import Settings

LIMIT_S = 30


def check(settings: Settings, plan: Plan) -> tuple[Finding, ...]:
    """Everything that is wrong with how the steps would be started. Asks docker, Slurm or the nodes.

    Takes milliseconds for the local launcher and at most half a minute for one that does not answer.
    """
    root = expanded(settings.output.directory) if settings.output.directory else paths.runs_root()
    run = RunDirectory(root / "RUN")
    try:
        requests = commands.all_requests(run, settings, plan)
        for request in requests:
            launchers.command(request)
    except EngineError as problem:
        return (error("launch.settings", problem.message, "", problem.hint),)
    found = (*traps.find(settings, plan.world_size, _tutorial_script(settings)), *_unpickled(settings))
    if settings.launch.launcher == "container":
        found = (*found, *_container(settings, requests))
    elif settings.launch.launcher == "slurm":
        found = (*found, *_slurm(requests))
    elif settings.launch.launcher == "ssh":
        found = (*found, *_ssh(plan, requests[0], root))
    return by_severity(found)


def _unpickled(settings: Settings) -> Iterator[Finding]:
    """What loading somebody's Megatron checkpoint may do: Megatron unpickles it, and a pickle can call anything."""
    if not settings.model.checkpoint:
        return
    checkpoint = expanded(settings.model.checkpoint)
    if found := danger.find(checkpoint):
        yield error(
            "checkpoint.pickle",
            "model.checkpoint holds pickles that call what no training writes, or that cannot be looked through: "
            + ", ".join(found[:3]),
            "Megatron unpickles it, which would carry that out with your rights.",
            "do not load it; convert the Hugging Face safetensors of that model instead. If a file is only damaged, "
            "give the directory of a whole iteration",
        )
    elif checkpoint.exists() and checkpoint.stat().st_uid not in (os.getuid(), 0):
        yield warning(
            "checkpoint.owner",
            "model.checkpoint belongs to somebody else, and Megatron unpickles it",
            "A pickle can carry out anything with your rights; nothing suspicious was found in this one.",
            "use it only if you trust its owner",
        )


def _tutorial_script(settings: Settings) -> str | None:
    if not settings.launch.megatron_lm:
        return None
    try:
        return (expanded(settings.launch.megatron_lm) / SCRIPT).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _container(settings: Settings, requests: list[StepRequest]) -> Iterator[Finding]:
    runtime, image = requests[0].runtime, container.image_for(settings.launch)
    if not shutil.which(runtime):
        yield error("container.runtime", f"{runtime} is not installed here", "The steps run in a container.",
                    "install docker or podman, or --set launch.launcher=local")  # fmt: skip
        return
    for path in sorted({path for request in requests for path in container.mounted(request)}):
        if path != requests[0].run and path not in requests[0].caches and not path.exists():
            yield error("container.mount", f"{path} does not exist and cannot be mounted", "", "correct the path")
    answer = ask([runtime, "info"])
    if answer.returncode:
        yield error("container.engine", f"{runtime} does not work here: {last_line(answer.stderr)}",
                    "The steps run in a container.", "start its engine, or --set launch.runtime=podman")  # fmt: skip
    elif ask([runtime, "image", "inspect", image]).returncode:
        yield warning("container.image", f"the image {image} is not here yet and will be fetched",
                      "NVIDIA's images are about 20 GB.", f"{runtime} pull {image}")  # fmt: skip


def _slurm(requests: list[StepRequest]) -> Iterator[Finding]:
    if not shutil.which("sbatch"):
        yield error("slurm.sbatch", "sbatch is not installed here", "The steps are handed to Slurm.",
                    "start the run on a login node of the cluster")  # fmt: skip
        return
    # The largest job: what Slurm takes of it, it takes of the others.
    largest = max(requests, key=lambda request: request.nodes_used * request.ranks_per_node)
    with tempfile.TemporaryDirectory() as directory:
        script = Path(directory) / slurm.JOB_SCRIPT
        script.write_text(slurm.job_script([largest], largest.attempt / slurm.JOB_SCRIPT), encoding="utf-8")
        answer = ask(["sbatch", "--test-only", str(script)])
    if answer.returncode:
        meaning, fix = slurm_answers.refusal(answer.stderr)
        yield error("slurm.refused", meaning, last_line(answer.stderr), fix)
    elif start := re.search(r"to start at (\S+)", answer.stderr):
        yield info("slurm.start", f"Slurm expects to start the training at {start[1]} at the earliest")


def _ssh(plan: Plan, request: StepRequest, root: Path) -> tuple[Finding, ...]:
    token = secrets.token_hex(8)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=root, prefix=".gptoss-probe-") as file:
            file.write(token)
            file.flush()
            values = request.environment
            words = [request.python, file.name, str(values["MASTER_ADDR"]), str(values["MASTER_PORT"])]
            with ThreadPoolExecutor(max_workers=32) as pool:
                answers = list(pool.map(lambda host: _ask_node(host, words), request.hosts))
    except OSError as problem:
        return (
            error("ssh.directory", f"{root} cannot be written: {problem.strerror}", "", "--set output.directory=DIR"),
        )
    gpus = plan.ranks_per_node if plan.device == "gpu" else 0
    return probe.judge(answers, token=token, gpus=gpus, address=words[2], port=int(words[3]))


def _ask_node(host: str, words: list[str]) -> probe.Answer:
    remote = "bash -s -- " + " ".join(map(shlex.quote, words))
    options = [option for option in ssh.OPTIONS if option != "-n"]  # the script goes in by stdin
    asked = time.time()
    answer = ask(["ssh", *options, "--", host, remote], probe.SCRIPT)
    if answer.returncode:
        return probe.Answer(host=host, failure=last_line(answer.stderr) or f"ssh returned {answer.returncode}")
    return probe.Answer(host=host, asked_at=(asked + time.time()) / 2, facts=probe.parse(answer.stdout))


def ask(words: list[str], text: str = "") -> subprocess.CompletedProcess[str]:
    """Run a program that answers a question; silence and absence are failed answers."""
    try:
        return subprocess.run(words, input=text, capture_output=True, text=True, timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(words, 1, "", f"no answer within {LIMIT_S} s")
    except OSError as problem:
        return subprocess.CompletedProcess(words, 1, "", f"{words[0]} cannot be started: {problem.strerror}")


def last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else "no reason given"
