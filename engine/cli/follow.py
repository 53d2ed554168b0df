"""Watch a run without a screen: its records as lines until it ends, then what it came to."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from engine.cli.output import duration, print_json, say
from engine.errors import ExitCode
from engine.monitor.record import parse_record
from engine.monitor.tail import Tail
from engine.patience import Patient
from engine.run.directory import RunDirectory
from engine.run.state import State, Status

_POLL_S = 0.2
_LINE_EVERY_S = 2.0
_QUIET = {"progress"}


def follow(run: RunDirectory, *, as_json: bool) -> ExitCode:
    """Print the run's records until it ends; return how it ended as an exit code.

    A disk that does not answer is told, and waited for.
    """
    metrics, events = Tail(run.metrics), Tail(run.events)
    disk = Patient()
    last_line = 0.0

    def look() -> tuple[State, list[bytes], list[bytes]]:
        # The state before the records, so that none is missed at the end.
        return run.read_state().observed(), events.read_all(), metrics.read_all()

    while True:
        state, new_events, new_metrics = disk.wait_for(look, partial(tell_silence, run))
        for record in filter(None, map(parse_record, new_events)):
            _show_event(record, as_json)
        for record in filter(None, map(parse_record, new_metrics)):
            now = time.monotonic()
            if as_json:
                print_json(record, line=True)
            if "loss" in record and now - last_line >= _LINE_EVERY_S:
                last_line = now
                say(_metric_line(record))
        if state.status not in (Status.PENDING, Status.RUNNING, Status.STOPPING):
            return exit_code(state)
        time.sleep(_POLL_S)


def tell_silence(run: RunDirectory) -> None:
    """Say why nothing more comes for a while."""
    say(f"{run.name}: its directory does not answer; waiting for it. Ctrl+C ends the waiting, not the run.")


def exit_code(state: State) -> ExitCode:
    """The exit code that stands for how a run ended."""
    if state.status is Status.FINISHED:
        return ExitCode.DONE
    return ExitCode.INTERRUPTED if state.status is Status.STOPPED else ExitCode.STEP_FAILED


def summary(run: RunDirectory, state: State) -> dict[str, Any]:
    """What the run came to: the facts that a script asks for."""
    results = state.results
    train, verify, export = (results.get(step, {}) for step in ("train", "verify", "export"))
    path = export.get("path")
    return {
        "run": run.name,
        "directory": str(run.path),
        "status": state.status.value,
        "message": state.message,
        "iteration": train.get("iteration", state.iteration),
        "checkpoint": state.checkpoint,
        "first_loss": train.get("first_loss"),
        "last_loss": train.get("last_loss"),
        "validation_loss": train.get("validation_loss"),
        "export": str(run.path / path) if path else None,
        "logits_max_difference": verify.get("logits_max_difference"),
        "logits_tolerance": verify.get("logits_tolerance"),
        "seconds": round((state.ended or state.heartbeat) - state.created, 1),
        "results": dict(results),
    }


def describe(facts: dict[str, Any]) -> str:
    """The summary as lines for a person."""
    lines = [f"{facts['run']}: {facts['status']} after {duration(facts['seconds'])}"]
    if facts["message"] and facts["status"] != "finished":
        lines.append(f"  {facts['message']}")
    if facts["first_loss"] is not None:
        text = f"  loss          {facts['first_loss']:.4f} -> {facts['last_loss']:.4f}"
        if facts["validation_loss"] is not None:
            text += f" (validation {facts['validation_loss']:.4f})"
        lines.append(text)
    if facts["export"]:
        lines.append(f"  export        {facts['export']}")
    if facts["logits_max_difference"] is not None:
        lines.append(
            f"  verification  logits differ by at most {facts['logits_max_difference']:.2e} "
            f"(allowed {facts['logits_tolerance']:.0e})"
        )
    lines.append(f"  run           {facts['directory']}")
    return "\n".join(lines)


def _show_event(record: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(record, line=True)
    if record.get("kind") not in _QUIET:
        clock = time.strftime("%H:%M:%S", time.localtime(float(record.get("t") or 0)))
        say(f"{clock}  {record.get('message', '')}")
        if record.get("hint"):
            say(f"          {record['hint']}")


def _metric_line(record: dict[str, Any]) -> str:
    parts = [f"          iteration {record.get('iteration')}", f"loss {record['loss']:.4f}"]
    if "tokens_per_s" in record:
        parts.append(f"{record['tokens_per_s']:,.0f} tokens/s")
    if "iteration_s" in record:
        parts.append(f"{record['iteration_s'] * 1000:.0f} ms")
    return "  ".join(parts)
