"""What would fail in the first minutes of a run, said before it starts.

`check` reads this host and judges; `judge` is pure: settings, plan, machine and facts in, findings out.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from engine import models, versions
from engine.findings import Finding, by_severity, error, info, warning
from engine.machine import Machine
from engine.models import Model
from engine.number_text import size_text
from engine.paths import expanded
from engine.plan import finetune, schedule
from engine.plan.plan import Plan
from engine.preflight_facts import Facts, HubFacts, facts_of_described, has_weights, read_facts
from engine.run.commands import is_in_container
from engine.run.space import CHECKPOINT_BYTES
from engine.settings import Settings

GIB = 2**30
WEIGHT_BYTES = {"bf16": 2, "fp32": 4}
MXFP4_BYTES = 4.25 / 8
"""Released expert weights: 4 bits, and 8 bits of scale for every 32 of them."""
PRECISION_NEEDS = {"bf16": (8, 0), "fp32": (0, 0), "fp8": (8, 9), "mxfp8": (10, 0), "nvfp4": (10, 0)}
"""Compute capability per number format (TransformerEngine, quantization.py:154-175)."""
RANK_GIB = 1.1
"""Memory of one worker process before any model (measured)."""
CONVERT_FACTOR = 2.0
"""Peak memory of Bridge's conversion over the size of the bf16 weights (measured: 1.57 GiB took 3.1):
it keeps every expert that it has dequantised."""
SHM_GIB = 1.0
"""NCCL and the data loaders share memory; Docker's default of 64 MiB ends in a bus error."""
OPEN_FILES = 4096


def check(
    settings: Settings, plan: Plan, machine: Machine, runs_root: Path, environ: Mapping[str, str] | None = None
) -> tuple[Finding, ...]:
    """Everything that speaks against this start, the worst first. Raises SettingsError for a bad model.

    A machine that is only described is judged by its file: what this host has installed or stored is not asked.
    """
    model = models.find(settings)
    if machine.is_described:
        return judge(settings, plan, machine, model, facts_of_described(machine))
    facts = read_facts(settings, model, runs_root, os.environ if environ is None else environ)
    return judge(settings, plan, machine, model, facts)


def judge(settings: Settings, plan: Plan, machine: Machine, model: Model, facts: Facts) -> tuple[Finding, ...]:
    """The findings for facts already read."""
    # What an image or another machine holds cannot be seen from here.
    can_see = not (is_in_container(settings) or machine.is_described)
    seen = [*versions.check_versions(facts.installed, plan.device), *_tracker(settings, facts)] if can_see else []
    findings = [
        *seen,
        *_estimate(plan),
        *_schedule(settings, plan),
        *finetune.check(settings, model, plan.device, plan.layout),
        *_paths(settings, plan, facts),
        *_disk(settings, plan, model, facts),
        *_memory(settings, plan, model, machine),
        *_hub(settings, plan, model, facts.hub),
        *_network(settings, plan, facts),
        *_limits(plan, machine),
    ]
    if plan.device == "gpu":
        driver = () if machine.is_described else versions.check_driver(facts.installed, machine.cuda_version)
        findings += [*driver, *_gpus(settings, plan, machine)]
    return by_severity(findings)


def disk_need_gib(settings: Settings, plan: Plan, model: Model, data_bytes: int = 0) -> dict[str, float]:
    """GiB that the run will write into its directory, by what it is."""
    chosen, precision = settings.training, settings.training.precision
    weights = model.parameters * WEIGHT_BYTES[precision]
    trained = finetune.trained_parameters(settings, model)
    saves = math.ceil(chosen.iterations / chosen.checkpoint_interval)
    keep = settings.output.keep_checkpoints
    # The new one is complete before the oldest is deleted; the best one is kept beside them.
    kept = saves if keep == 0 else min(saves, keep + 1 + (settings.output.export_checkpoint == "best"))
    need = {
        "the converted model": weights if plan.step("convert") else 0,
        f"{kept} checkpoint{'s' if kept != 1 else ''}": kept * trained * CHECKPOINT_BYTES[precision],
        "the exported model": weights if plan.step("export") else 0,
        # Four bytes a token, and a token is about four bytes of text.
        "the tokenised data": data_bytes,
    }
    return {what: size / GIB for what, size in need.items() if size}


def download_gib(model: Model) -> float:
    """Size of the released checkpoint: experts in MXFP4, everything else in bf16."""
    quantised = model.layers * model.experts * 3 * model.hidden * model.ffn
    return (quantised * MXFP4_BYTES + (model.parameters - quantised) * 2) / GIB


def memory_need_gib(settings: Settings, plan: Plan, model: Model) -> dict[str, float]:
    """GiB of host memory that each step of the run needs on one node, at its peak."""
    weights = model.parameters * 2 / GIB
    need = {}
    if step := plan.step("convert"):
        need["converting"] = step.ranks_per_node * RANK_GIB
        if settings.model.converter == "bridge":
            need["converting"] += CONVERT_FACTOR * weights
    ranks = plan.ranks_per_node * RANK_GIB
    if plan.device == "cpu":
        # Weights, gradients and two moments in fp32, once at least.
        need["training"] = 16 * model.parameters / GIB + ranks
    else:
        # Saving copies each rank's part of the checkpoint into memory first.
        held = finetune.trained_parameters(settings, model)
        state = CHECKPOINT_BYTES[settings.training.precision] * held / GIB
        need["saving a checkpoint"] = state / plan.nodes + ranks
    return need


def _estimate(plan: Plan) -> Iterator[Finding]:
    """What the planner says against the layout; an estimate may be wrong, so a person may overrule it."""
    for found in plan.estimate.get("findings", ()):
        yield replace(Finding.from_json(found), ignorable=True)


def _schedule(settings: Settings, plan: Plan) -> Iterator[Finding]:
    """What Megatron refuses only when training starts, after the conversion.

    core/optimizer_param_scheduler.py:160, core/num_microbatches_calculator.py:381.
    """
    yield from schedule.check(settings.training)
    chosen = settings.training
    share = chosen.micro_batch * plan.layout.dp
    if chosen.global_batch % share:
        what = (
            f"training.global_batch is {chosen.global_batch}, no multiple of micro batch x data-parallel size, "
            f"{chosen.micro_batch} x {plan.layout.dp}"
        )
        near = share * max(1, round(chosen.global_batch / share))
        why = "every GPU gets the same number of samples"
        yield error("training.batch", what, why, f"--set training.global_batch={near}")


def _paths(settings: Settings, plan: Plan, facts: Facts) -> Iterator[Finding]:
    for missing in facts.missing:
        fix = "give a path that exists and that you may read"
        yield error("paths.missing", f"{missing} is not there or cannot be read", "the first step would fail", fix)
    if facts.data_problem:
        what, fix = facts.data_problem
        yield error("data.unusable", what, "the prepare step would stop there", fix)
    if not facts.output.is_writable:
        what = f"runs cannot be written to {facts.output.path}"
        yield error("paths.output", what, "nothing of the run could be kept", "--set output.directory=DIR")
    path = expanded(settings.model.path)
    if settings.model.path and plan.step("convert") and path.is_dir() and not has_weights(path):
        what = f"model.path = {settings.model.path!r} holds no .safetensors file"
        yield error(
            "paths.weights", what, "there is nothing to convert", "download the weights, or set training.goal=pretrain"
        )


def _disk(settings: Settings, plan: Plan, model: Model, facts: Facts) -> Iterator[Finding]:
    need = disk_need_gib(settings, plan, model, facts.data_bytes)
    total, free = sum(need.values()), facts.output.free_gib
    parts = ", ".join(f"{size_text(size)} for {what}" for what, size in need.items())
    why = f"it writes {parts}"
    fix = "free some, --set output.directory=DIR or keep fewer: --set output.keep_checkpoints=1"
    if total > free:
        what = f"the run needs {size_text(total)} in {facts.output.path}, and {size_text(free)} are free"
        yield error("disk.full", what, why, fix, ignorable=True)
    elif total > 0.8 * free:
        what = f"the run will fill {total / free:.0%} of the room in {facts.output.path}"
        yield warning("disk.tight", what, why, fix)
    if plan.nodes > 1 and not facts.output.is_shared:
        what = f"{facts.output.path} is on {facts.output.filesystem or 'a local disk'}, which other nodes do not see"
        why = "every node reads the data and writes its part of each checkpoint there"
        fix = "--set output.directory=DIR on a shared file system (NFS, Lustre, ...)"
        yield error("disk.not-shared", what, why, fix, ignorable=True)


def _memory(settings: Settings, plan: Plan, model: Model, machine: Machine) -> Iterator[Finding]:
    need = memory_need_gib(settings, plan, model)
    step, most = max(need.items(), key=lambda item: item[1])
    if most > machine.ram_gib:
        what = f"{step} needs about {size_text(most)} of memory, and this node has {size_text(machine.ram_gib)}"
        other = ", or convert elsewhere and set model.checkpoint" if step == "converting" else ", or more nodes"
        fix = f"use a node with more memory{other}"
        yield error("memory.full", what, "the kernel would kill a worker", fix, ignorable=True)
    elif most > machine.ram_free_gib:
        what = f"{step} needs about {size_text(most)} of memory, and {size_text(machine.ram_free_gib)} are free now"
        yield warning("memory.busy", what, "the kernel may kill a worker", "end other programs first")


def _hub(settings: Settings, plan: Plan, model: Model, hub: HubFacts | None) -> Iterator[Finding]:
    """The published model: in the cache, to be downloaded, or out of reach."""
    if hub is None:
        return
    needs_weights = plan.step("convert") is not None and settings.training.goal != "pretrain"
    if hub.is_complete or (hub.has_config and not needs_weights):
        return
    if hub.is_offline:
        what = f"{hub.repository} is not complete in {hub.cache.path}, and HF_HUB_OFFLINE forbids to download it"
        fix = f"hf download {hub.repository} where there is a network, or give a directory as model.path"
        yield error("hub.offline", what, "the first step would fail", fix)
        return
    size = download_gib(model) if needs_weights else 0.1
    if size > hub.cache.free_gib:
        free = size_text(hub.cache.free_gib)
        what = f"downloading {hub.repository} takes {size_text(size)}, and {hub.cache.path} has {free}"
        yield error(
            "hub.disk", what, "the download would be cut off", "set HF_HOME to a disk with room", ignorable=True
        )
    elif not hub.cache.is_writable:
        what = f"the Hugging Face cache {hub.cache.path} cannot be written"
        yield error("hub.cache", what, "the model cannot be downloaded", "set HF_HOME to a directory of yours")
    else:
        why = "the model is not gated" + ("" if hub.has_token else "; without HF_TOKEN the hub may slow it down")
        yield info("hub.download", f"the first step downloads {hub.repository}, {size_text(size)}", why)


def _network(settings: Settings, plan: Plan, facts: Facts) -> Iterator[Finding]:
    launch = settings.launch
    if facts.port_owner:
        what = f"port {launch.master_port} is used by {facts.port_owner}"
        yield error("network.port", what, "torchrun cannot listen there", "--set launch.master_port=0 finds a free one")
    if facts.address_problem:
        what = f"launch.master_addr = {launch.master_addr!r} {facts.address_problem}"
        yield error("network.master", what, "the ranks meet there and would wait for minutes",
                    "give a name or address of the first node that every node reaches", ignorable=True)  # fmt: skip
    if plan.nodes < 2:
        return
    is_by_hand = launch.launcher in ("local", "container")  # the others know their nodes and choose a port
    if is_by_hand and launch.master_addr in ("localhost", "127.0.0.1", "::1"):
        what = f"launch.master_addr is {launch.master_addr} and the run has {plan.nodes} nodes"
        yield error("network.address", what, "other nodes would look for it at home", "give the first node's name")
    if is_by_hand and not launch.master_port:
        what = "launch.master_port is 0, so that each node would choose a port of its own"
        yield error("network.no-port", what, "the nodes would not meet", "--set launch.master_port=29500 on every node")
    if launch.node_rank >= plan.nodes:
        what = f"launch.node_rank is {launch.node_rank} and there are {plan.nodes} nodes, counted from 0"
        yield error("network.rank", what, "this node would take part in nothing", f"give 0 to {plan.nodes - 1}")
    if facts.is_clock_synchronised is False:
        what = "the clock of this node does not follow a time server"
        yield warning(
            "network.clock", what, "logs and checkpoints of the nodes get out of order", "timedatectl set-ntp true"
        )


def _tracker(settings: Settings, facts: Facts) -> Iterator[Finding]:
    tracker, installed = settings.output.tracker, facts.installed
    if tracker != "none" and tracker not in installed.packages:
        what = f"output.tracker is {tracker}, which {installed.executable} does not have"
        fix = f"{installed.executable} -m pip install {tracker}, or set output.tracker to none"
        yield error("packages.tracker", what, "the training would end when it is imported", fix)


def _limits(plan: Plan, machine: Machine) -> Iterator[Finding]:
    if plan.device == "gpu" and machine.shm_gib < SHM_GIB:
        what = f"/dev/shm has {size_text(machine.shm_gib)}"
        why = "NCCL and the data loaders share memory there and end with a bus error"
        yield error("limits.shm", what, why, "docker run --ipc=host, or --shm-size=16g", ignorable=True)
    if plan.nodes > 1 and machine.network_gb_per_s and machine.memlock_gib is not None:
        what = f"only {size_text(machine.memlock_gib)} may be locked in memory (ulimit -l)"
        why = "NCCL registers memory with the network adapter and fails"
        yield error(
            "limits.memlock", what, why, "ulimit -l unlimited, or docker run --ulimit memlock=-1", ignorable=True
        )
    if plan.nodes > 1 and not machine.network_gb_per_s:
        what = "no active RDMA port was found on this node"
        yield warning("limits.rdma", what, "the nodes talk over TCP, many times slower", "look at: ibstat")
    if machine.open_files is not None and machine.open_files < OPEN_FILES and plan.device == "gpu":
        what = f"a process may open {machine.open_files:,} files (ulimit -n)"
        yield warning("limits.files", what, "large runs open thousands of sockets and shards", "ulimit -n 65536")


def _gpus(settings: Settings, plan: Plan, machine: Machine) -> Iterator[Finding]:
    yield from machine.findings
    used = [gpu for gpu in machine.gpus if not plan.gpus or gpu.index in plan.gpus]
    if len(used) < plan.ranks_per_node:
        what = f"the plan uses {plan.ranks_per_node} GPUs of each node, and {len(used)} of them are here"
        yield error("gpu.too-few", what, "torchrun starts one rank for each GPU", "plan again: gptoss plan")
    precision = settings.training.precision
    needed = PRECISION_NEEDS.get(precision, (0, 0))
    for gpu in used:
        if gpu.compute_capability and gpu.compute_capability < needed:
            have, want = (".".join(map(str, pair)) for pair in (gpu.compute_capability, needed))
            what = f"{gpu.name} has compute capability {have}; {precision} needs {want}"
            yield error("gpu.precision", what, "its kernels do not exist for this GPU", "--set training.precision=fp32")
            break
