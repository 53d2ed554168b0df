"""`gptoss plan`: judge a layout or choose one, for this machine or one that is only described."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from engine.cli import output
from engine.cli.machines import machine_of
from engine.cli.plan_question import question_of
from engine.errors import ExitCode, SettingsError
from engine.measurements import Measurement
from engine.plan import report
from engine.plan.correction import Subject, correct
from engine.plan.layout import Layout
from engine.plan.report import Question

_BAR_CELLS = 30


def plan(arguments: argparse.Namespace) -> int:
    """Print the plan for a model on GPUs that are named, described in a file, or here."""
    if arguments.gpu and arguments.machine:
        raise SettingsError(f"--gpu {arguments.gpu} and --machine {arguments.machine} name two machines", "give one")
    machine = None if arguments.gpu else machine_of(arguments)
    question = question_of(arguments, machine)
    found = report.answer(question)
    if machine is not None and found["throughput"]:
        found = _as_measured_here(found, question, machine.measured)
    if arguments.json:
        output.print_json(found)
    else:
        print(output.clean(describe(found)))
    return ExitCode.DONE if found["verdict"] in ("SAFE", "TIGHT") else ExitCode.PREFLIGHT_REFUSED


def _as_measured_here(found: dict[str, Any], question: Question, known: tuple[Measurement, ...]) -> dict[str, Any]:
    """The plan with what earlier runs measured on this machine."""
    chosen = {name: found[name] for name in ("micro_batch", "precision", "gradient_precision")}
    job = replace(question.job, **chosen, recompute=frozenset(found["recompute"]))
    subject = Subject(device=found["gpu"], job=job, layout=Layout(**found["layout"]))
    corrected, told = correct(found, subject, known)
    return {**corrected, "reasons": [*found["reasons"], *told]}


def describe(found: dict[str, Any]) -> str:
    """The plan as lines for a person."""
    where = f"{found['world_size']} x {found['gpu']}"
    lines = [f"{found['verdict']}: {found['model']}, {found['goal']}, on {where}", ""]
    sizes = "  ".join(f"{name.upper()} {size}" for name, size in found["layout"].items())
    lines.append(f"layout      {sizes}")
    lines.append(
        f"batch       {found['global_batch']} samples of {found['sequence_length']:,} tokens, "
        f"{found['micro_batch']} at a time"
    )
    recompute = ", ".join(found["recompute"]) or "nothing"
    lines.append(f"precision   {found['precision']}, gradients {found['gradient_precision']}, recomputes {recompute}")
    if found["memory"]:
        lines += ["", *_memory_lines(found["memory"])]
    if found["throughput"]:
        lines += ["", *_speed_lines(found)]
    lines += _section("why", found["reasons"])
    lines += _section("findings", [_finding(finding) for finding in found["findings"]])
    lines += _section("alternatives", [one["why"] for one in found["alternatives"]])
    return "\n".join(lines)


def _memory_lines(memory: dict[str, Any]) -> list[str]:
    capacity = memory["capacity_gib"]
    lines = [f"memory      {memory['peak_gib']:.1f} of {capacity:.1f} GiB per GPU; most of it {memory['largest_term']}"]
    for stage in memory["stages"]:
        share = stage["total_gib"] / capacity
        cells = min(_BAR_CELLS, round(share * _BAR_CELLS))
        bar = "#" * cells + "." * (_BAR_CELLS - cells)
        lines.append(f"  stage {stage['stage']:<3} [{bar}] {stage['total_gib']:6.1f} GiB  {share:4.0%}")
    return lines


def _speed_lines(found: dict[str, Any]) -> list[str]:
    speed, budget = found["throughput"], found["budget"]
    guess = " (extrapolated)" if speed["extrapolated"] else ""
    lines = [
        f"speed       {speed['tokens_per_s_per_gpu']:,.0f} tokens/s per GPU, "
        f"{speed['tflops_per_gpu']:,.0f} TFLOP/s per GPU, MFU {speed['mfu']:.0%}, "
        f"{speed['iteration_s']:.2f} s per iteration{guess}"
    ]
    if budget:
        cost = f", cost {budget['cost']:,.0f}" if budget["cost"] is not None else ""
        lines.append(f"time        {budget['hours']:,.1f} h for {budget['tokens']:,.0f} tokens{cost}")
    return lines


def _finding(finding: dict[str, Any]) -> str:
    text = f"{finding['severity']}: {finding['what']}"
    return text + (f" -> {finding['fix']}" if finding["fix"] else "")


def _section(title: str, lines: list[str]) -> list[str]:
    return ["", title, *(f"  {line}" for line in lines)] if lines else []
