"""Make the Plan of a run: device, layout and steps, each with its reason."""

from __future__ import annotations

from typing import Any

from engine.errors import PlanError
from engine.machine import Machine
from engine.models import Model, find
from engine.plan import memory, report, rules
from engine.plan.cluster import Cluster, of_machine
from engine.plan.correction import Subject, correct, cpu_name
from engine.plan.job import RECOMPUTE_OF_SETTING, Job, from_training
from engine.plan.layout import Layout
from engine.plan.plan import Plan, PlannedStep
from engine.plan.report import Question
from engine.plan.rules import Case, Violation, divisors
from engine.plan.search import SETTABLE_RECOMPUTES, Candidate, Space, best_per_layout, case_of, choose, search
from engine.settings import Settings

PROCESS_GIB = 1.0
"""What a worker takes on the CPU beside the model: Python, torch, Megatron."""


def make_plan(settings: Settings, machine: Machine, *, with_alternatives: bool = True) -> Plan:
    """The plan for `settings` on `machine`; naming the alternatives to it takes most of the time.

    Raises PlanError for a layout that breaks a rule, an automatic one that cannot fit, or a device
    that is not there; SettingsError for a bad model. A manual layout that is predicted not to fit
    is planned, with that verdict in `estimate`.
    """
    model = find(settings)
    job = from_training(settings.training, model, settings.finetune.lora_rank)
    device, gpus = _device(settings, machine)
    if device == "cpu":
        return _plan_cpu(settings, job, machine)
    cluster = of_machine(machine, len(gpus), nodes=max(settings.machine.nodes, machine.nodes))
    layout = _given_layout(settings, cluster.world_size)
    if layout is None:
        layout = _choose(job, cluster)
    elif broken := rules.check(case_of(job, layout, cluster)):
        raise _refusal(broken)
    estimate = report.answer(_question(job, cluster, layout))
    # 02_train.sh chooses for itself: another layout could not be set.
    is_fixed = settings.launch.route == "tutorial"
    estimate["alternatives"] = [] if is_fixed or not with_alternatives else _alternatives(job, cluster, layout)
    estimate, told = correct(estimate, Subject(device=cluster.family.name, job=job, layout=layout), machine.measured)
    return Plan(
        device="gpu",
        layout=layout,
        ranks_per_node=cluster.gpus_per_node,
        nodes=cluster.nodes,
        gpus=gpus,
        steps=plan_steps(settings, "gpu", cluster.gpus_per_node),
        reasons=(*estimate["reasons"], *told),
        estimate=estimate,
    )


def plan_steps(settings: Settings, device: str, ranks: int) -> tuple[PlannedStep, ...]:
    """The steps of a run, in order."""
    # Tensor by tensor one process is enough, and on the CPU anyway; on GPUs Bridge uses all of a node.
    ranks_to_convert = ranks if settings.model.converter == "bridge" and device == "gpu" else 1
    steps = [PlannedStep(name="prepare", ranks_per_node=1, why="Check or make the data, and the tiny model.")]
    if settings.training.goal != "pretrain" and not settings.model.checkpoint:
        why = "Turn the Hugging Face weights into a Megatron checkpoint."
        steps.append(PlannedStep(name="convert", ranks_per_node=ranks_to_convert, why=why))
    steps.append(PlannedStep(name="train", ranks_per_node=ranks, why="Train, saving checkpoints."))
    if settings.output.export:
        why = "Write the trained model as Hugging Face safetensors."
        steps.append(PlannedStep(name="export", ranks_per_node=1, why=why))
    # There is nothing to compare without an export.
    if settings.output.export and settings.output.verify:
        why = "Compare the exported model with the trained one on the same tokens."
        steps.append(PlannedStep(name="verify", ranks_per_node=1, why=why))
    return tuple(steps)


def as_settings(candidate: Candidate) -> dict[str, object]:
    """What to set so that a run is planned as `candidate`."""
    layout, job = candidate.layout, candidate.job
    recompute = next((name for name, modules in RECOMPUTE_OF_SETTING.items() if modules == job.recompute), "none")
    sizes = {f"layout.{name}": getattr(layout, name) for name in ("tp", "pp", "cp", "ep", "vpp")}
    return {
        "layout.mode": "manual",
        **sizes,
        "training.micro_batch": job.micro_batch,
        "training.recompute": recompute,
    }


def _device(settings: Settings, machine: Machine) -> tuple[str, tuple[int, ...]]:
    """`gpu` with NVML's indices of the GPUs to use, or `cpu`."""
    wanted = settings.machine
    if wanted.device == "cpu" or (wanted.device == "auto" and not machine.gpus):
        return "cpu", ()
    if not machine.gpus:
        raise PlanError("machine.device is gpu and no GPU can be used here", "look at: gptoss doctor")
    if wanted.gpus_per_node > len(machine.gpus):
        raise PlanError(
            f"machine.gpus_per_node = {wanted.gpus_per_node} and there are {len(machine.gpus)} GPUs here",
            f"use {len(machine.gpus)} or fewer, or 0 for all",
        )
    count = wanted.gpus_per_node or len(machine.gpus)
    return "gpu", tuple(gpu.index for gpu in machine.gpus[:count])


def _given_layout(settings: Settings, world: int) -> Layout | None:
    """The layout that a person typed, None for `auto`."""
    chosen = settings.layout
    if chosen.mode == "auto":
        return None
    dp = max(1, world // (chosen.tp * chosen.pp * chosen.cp))
    return Layout(tp=chosen.tp, pp=chosen.pp, cp=chosen.cp, ep=chosen.ep, vpp=chosen.vpp, dp=dp)


def _refusal(broken: tuple[Violation, ...]) -> PlanError:
    fixes = dict.fromkeys(one.fix for one in broken)
    return PlanError("; ".join(one.message for one in broken), "; ".join(fixes))


def _question(job: Job, cluster: Cluster, layout: Layout | None) -> Question:
    return Question(
        model=job.model,
        cluster=cluster,
        goal=job.goal,
        sequence_length=job.sequence_length,
        global_batch=job.global_batch,
        micro_batch=job.micro_batch,
        precision=job.precision,
        gradient_precision=job.gradient_precision,
        recompute=tuple(sorted(job.recompute)),
        lora_rank=job.lora_rank,
        layout=layout,
    )


def _choose(job: Job, cluster: Cluster) -> Layout:
    """The best layout for the job as it was set. Raises PlanError when none fits."""
    as_set = Space(micro_batches=(job.micro_batch,), recomputes=(job.recompute,), precisions=(job.precision,))
    if ranked := search(job, cluster, as_set):
        return choose(ranked).layout
    closest = report.answer(_question(job, cluster, None))
    problem = closest["findings"][0]
    raise PlanError(problem["what"], _smaller(job, cluster) or problem["fix"])


def _smaller(job: Job, cluster: Cluster) -> str:
    """Settings under which the job fits, in words; empty when there are none."""
    sizes = tuple(divisors(job.micro_batch))
    found = search(
        job, cluster, Space(micro_batches=sizes, recomputes=SETTABLE_RECOMPUTES, precisions=(job.precision,))
    )
    if not found:
        return ""
    values = as_settings(choose(found))
    changed = {key: value for key, value in values.items() if key.startswith("training.")}
    return "set " + " and ".join(f"{key} to {value}" for key, value in changed.items())


def _alternatives(job: Job, cluster: Cluster, layout: Layout) -> list[dict[str, Any]]:
    """Other layouts, micro batches and recomputations, with the settings that choose them."""
    space = Space(recomputes=SETTABLE_RECOMPUTES, precisions=(job.precision,))
    ranked = search(job, cluster, space)
    current = search(job, cluster, Space(micro_batches=(job.micro_batch,), recomputes=(job.recompute,)), layout)
    if not ranked or not current:
        return []
    others = [one for one in best_per_layout(ranked, 5) if (one.layout, one.job) != (layout, job)]
    return [{**report.compare(one, current[0]), "settings": as_settings(one)} for one in others[:4]]


def _plan_cpu(settings: Settings, job: Job, machine: Machine) -> Plan:
    nodes, per_node = settings.machine.nodes, settings.machine.cpu_ranks
    ranks = per_node * nodes
    layout = _given_layout(settings, ranks)
    if layout is not None and (broken := rules.check(_cpu_case(job, layout, ranks))):
        raise _refusal(broken)
    origin = "the layout that was set" if layout else "the simplest layout that every rule allows"
    layout = layout or _simplest(job, ranks)
    needed_gib = per_node * PROCESS_GIB + sum(
        memory.cpu_gib(job, layout, stage) * per_node / layout.pp for stage in range(layout.pp)
    )
    if machine.ram_gib and needed_gib > machine.ram_gib:
        raise PlanError(
            f"training {job.model.name} on the CPU takes about {needed_gib:,.0f} GiB of memory "
            f"and this machine has {machine.ram_gib:,.1f} GiB",
            "set model.name to tiny to rehearse here, or use a machine with GPUs",
        )
    planned = {"memory": {"peak_gib": needed_gib, "capacity_gib": machine.ram_gib}}
    estimate, told = correct(planned, Subject(device=cpu_name(machine.host), job=job, layout=layout), machine.measured)
    return Plan(
        device="cpu",
        layout=layout,
        ranks_per_node=per_node,
        nodes=nodes,
        steps=plan_steps(settings, "cpu", per_node),
        reasons=(
            "The CPU was asked for." if machine.gpus else "There is no GPU to use: the same code runs on the CPU.",
            f"{layout} is {origin}.",
            *told,
        ),
        estimate=estimate,
    )


def _cpu_case(job: Job, layout: Layout, ranks: int) -> Case:
    return Case(job=job, layout=layout, world_size=ranks, ranks_per_node=ranks, device="cpu")


def _simplest(job: Job, ranks: int) -> Layout:
    """Data and expert parallelism before anything else. Raises PlanError when no layout is legal."""
    for layout in sorted(_cpu_layouts(job.model, ranks), key=lambda one: (one.tp * one.pp, one.tp, -one.ep)):
        if rules.is_legal(_cpu_case(job, layout, ranks)):
            return layout
    raise _refusal(rules.check(_cpu_case(job, Layout(dp=ranks), ranks)))


def _cpu_layouts(model: Model, ranks: int) -> list[Layout]:
    return [
        Layout(tp=tp, pp=pp, ep=ep, dp=ranks // (tp * pp))
        for tp in divisors(ranks)
        for pp in divisors(ranks // tp)
        for ep in divisors(model.experts, ranks // pp)
    ]
