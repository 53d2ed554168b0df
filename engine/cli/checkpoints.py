"""The verbs about checkpoints: convert, export, verify, checkpoint inspect."""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from engine import settings_file
from engine.checkpoints import hugging_face, manifest, torch_dist
from engine.checkpoints.inspect import KINDS, Inspection
from engine.checkpoints.inspect import inspect as look
from engine.cli import output
from engine.errors import CheckpointError, EngineError, ExitCode, NotFoundError, StepFailed
from engine.paths import expanded

_LOG_LINES = 5
_LOG_INTERVAL_S = 5.0
"""Between lines of progress where none can be rewritten."""
_PROBLEMS = 12
"""Shown of a checkpoint that is not verified: another model differs in hundreds of tensors."""


def convert(arguments: argparse.Namespace) -> int:
    """Hugging Face to Megatron."""
    source = hugging_face.find(arguments.source)
    out = _target(arguments, source)
    result = _work(
        {
            "job": "convert",
            "source": str(source),
            "out": str(out),
            "dtype": arguments.dtype,
            "threads": arguments.threads,
        },
        arguments,
    )
    return _done(result, f"{out}: {_speed(result)}, {result['parameters']:,} parameters", arguments)


def export(arguments: argparse.Namespace) -> int:
    """Megatron to Hugging Face."""
    source = _source(arguments)
    reference, base = _reference(source, arguments.reference), _base(source, arguments.base)
    out = _target(arguments, torch_dist.find_iteration(source), reference, *([Path(base)] if base else []))
    result = _work(
        {
            "job": "export",
            "source": str(source),
            "out": str(out),
            "reference": str(reference),
            "base": base,
            "origin": arguments.reference,
            "dtype": arguments.dtype,
            "threads": arguments.threads,
        },
        arguments,
    )
    for warning in result["warnings"]:
        print(output.clean(f"warning: {warning}"), file=sys.stderr)
    adapter = f", the adapter alone in {out / 'adapter'}" if result["adapters"] else ""
    return _done(result, f"{out}: {_speed(result)}, {result['tensors']} tensors{adapter}", arguments)


def verify(arguments: argparse.Namespace) -> int:
    """Compare a Megatron checkpoint with itself and with the Hugging Face checkpoint it came from."""
    source = _source(arguments)
    against = hugging_face.find(arguments.against) if arguments.against else None
    result = _work(
        {
            "job": "verify",
            "source": str(source),
            "base": _base(source, arguments.base),
            "against": str(against) if against else "",
            "with_logits": not arguments.no_logits,
            "threads": arguments.threads,
        },
        arguments,
    )
    if arguments.json:
        output.print_json(result)
    else:
        print(output.clean("\n".join(_verification(result))))
    return ExitCode.DONE if result["is_verified"] else ExitCode.STEP_FAILED


def inspect(arguments: argparse.Namespace) -> int:
    """Say what a directory is and what it is good for."""
    found = look(_of_run(expanded(arguments.path)))
    if arguments.json:
        output.print_json(found.to_json())
    else:
        print(output.clean("\n".join(_description(found))))
    return ExitCode.DONE if found.is_complete else ExitCode.STEP_FAILED


def _work(job: Mapping[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """Have a process of its own do `job`; torch is never loaded here. Raises what that process reports."""
    argv = [arguments.python or sys.executable, "-m", "engine.workers.stream", json.dumps(dict(job))]
    environment = {**os.environ, "PYTHONPATH": _python_path(arguments.python)}
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        try:
            process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
        except OSError as error:
            raise StepFailed(f"{argv[0]} cannot be started: {error.strerror}", "give another --python") from error
        with process:
            try:
                assert process.stdout is not None  # it is a pipe
                result = _listen(process.stdout)
                code = process.wait()
            except KeyboardInterrupt:
                if "out" in job:
                    if output.can_rewrite():
                        output.rewrite("")
                    output.say("interrupted; with the same words it goes on where it was")
                raise
            finally:
                process.kill()
        if result is None:
            log.seek(0)
            lines = [line.strip() for line in log.read().splitlines() if line.strip()][-_LOG_LINES:]
            raise StepFailed(
                f"{job['job']} ended with code {code}: {' | '.join(lines) or 'it said nothing'}",
                "see what is missing with: gptoss doctor",
            )
    return result


def _listen(answers: IO[str]) -> dict[str, Any] | None:
    """Show progress as it comes; return the result, or None when the process ended without one."""
    is_rewritten = output.can_rewrite()
    told_at = -math.inf
    for line in answers:
        record = json.loads(line)
        if "progress" not in record:
            if is_rewritten:
                output.rewrite("")
            if "error" in record:
                raise _error(record)
            result: dict[str, Any] = record["result"]
            return result
        now, is_done = time.monotonic(), record["done"] >= record["total"]
        if is_rewritten:
            output.rewrite(record["progress"])
        elif is_done or now - told_at >= _LOG_INTERVAL_S:
            told_at = now
            output.say(record["progress"])
    return None


def _error(record: Mapping[str, Any]) -> EngineError:
    error = EngineError(record["error"], record["hint"])
    error.exit_code = ExitCode(record["code"])
    return error


def _python_path(python: str) -> str:
    """Another interpreter finds `engine` here; this one has it."""
    own = str(Path(__file__).parent.parent.parent) if python else ""
    return os.pathsep.join(part for part in (own, os.environ.get("PYTHONPATH", "")) if part)


def _target(arguments: argparse.Namespace, *read: Path) -> Path:
    """Where to write; `read` is what the work reads. Raises CheckpointError when that, or something else, is there."""
    out = output.directory(arguments.out)
    for path in read:
        here, there = out.resolve(), path.resolve()
        if here == there or here in there.parents or there in here.parents:
            raise CheckpointError(
                f"{out} {'is' if here == there else 'lies in' if there in here.parents else 'holds'} {path}, "
                "which is read",
                "give a directory beside it",
            )
    is_free = not out.exists() or (out.is_dir() and not any(out.iterdir()))
    if not is_free and not arguments.overwrite:
        raise CheckpointError(f"{out} exists already", "give another directory, or --overwrite to replace it when done")
    return out


def _source(arguments: argparse.Namespace) -> Path:
    """The Megatron checkpoint that was named, also by the run that made it. Raises CheckpointError for another kind."""
    source = _of_run(expanded(arguments.source))
    if (source / "config.json").is_file() and not (source / torch_dist.TRACKER).exists():
        raise CheckpointError(
            f"{source} is a Hugging Face checkpoint and not a Megatron one",
            f"convert it: gptoss convert {source} OUT, or compare with it: gptoss verify CKPT --against {source}",
        )
    return source


def _of_run(path: Path) -> Path:
    """The checkpoints of a run, where `path` is its directory."""
    return path / "checkpoints" if (path / "settings.toml").is_file() else path


def _run_of(source: Path) -> Path | None:
    """The directory of the run in which `source` lies, None when it lies in none."""
    near = [source.absolute(), *source.absolute().parents][:3]
    return next((path for path in near if (path / "settings.toml").is_file()), None)


def _base(source: Path, chosen: str) -> str:
    """The weights below adapters: those that were named, else those that the run noted; empty when neither."""
    if chosen:
        return str(hugging_face.find(chosen))
    run = _run_of(source)
    if run is None:
        return ""
    try:
        noted = json.loads((run / "adapter_base.json").read_text(encoding="utf-8"))["checkpoint"]
        return str(run / str(noted))
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{run / 'adapter_base.json'} cannot be read: {error}", "name the weights that were trained on: --base DIR"
        ) from error


def _reference(source: Path, chosen: str) -> Path:
    """The Hugging Face directory whose config and tokenizer an export takes. Raises NotFoundError."""
    if chosen:
        return hugging_face.find(chosen)
    for root in (source, source.parent):
        listed = manifest.read(root)
        if listed and (Path(str(listed.get("from", ""))) / "config.json").is_file():
            return Path(str(listed["from"]))
    if (run := _run_of(source)) is not None:
        if (run / "model" / "config.json").is_file():  # it made its own model
            return run / "model"
        model = settings_file.load(run / "settings.toml").model
        if model.path or model.name != "custom":
            return hugging_face.find(model.path or f"openai/{model.name}")
    raise NotFoundError(
        f"it is not known which model {source} is", "name its Hugging Face checkpoint: --reference openai/gpt-oss-20b"
    )


def _done(result: Mapping[str, Any], sentence: str, arguments: argparse.Namespace) -> int:
    if arguments.json:
        output.print_json(result)
    else:
        print(output.clean(sentence))
    return ExitCode.DONE


def _speed(result: Mapping[str, Any]) -> str:
    seconds = max(result["seconds"], 0.01)
    return f"{output.size(result['bytes'])} in {output.duration(seconds)} ({result['bytes'] / seconds / 1e9:.2f} GB/s)"


def _verification(result: Mapping[str, Any]) -> list[str]:
    lines = [f"{result['checkpoint']}: {'verified' if result['is_verified'] else 'NOT verified'}"]
    if "files_compared" in result:
        lines.append(f"  {result['files_compared']} files compared with their SHA-256")
    if "tensors_compared" in result:
        lines.append(f"  {result['tensors_compared']} tensors compared with {result['against']}, bit for bit")
    lines += [
        f"  logits of {one['tokens']} tokens ({result['precision']}): largest difference {one['difference']:.1e} "
        f"of {one['largest']:.1f}, KL {one['kl']:.0e}, {one['agreement']:.1%} of the predictions agree"
        for one in result.get("logits", [])
    ]
    lines += [f"  {result['logits_skipped']}"] if "logits_skipped" in result else []
    problems = result["problems"]
    lines += [f"  wrong: {problem}" for problem in problems[:_PROBLEMS]]
    if len(problems) > _PROBLEMS:
        lines.append(f"  wrong: {len(problems) - _PROBLEMS} more; --json names them all")
    return lines


def _description(found: Inspection) -> list[str]:
    sizes = " ".join(f"{name.upper()}{size}" for name, size in found.layout.items())
    rows = {
        "iteration": "" if found.iteration is None else f"{found.iteration} of {', '.join(map(str, found.iterations))}",
        "saved by": sizes,
        "numbers": ", ".join(found.dtypes),
        "parameters": f"{found.parameters:,} in {found.tensors} tensors" if found.tensors else "",
        "size": output.size(found.size_bytes),
        "optimiser": "saved with it" if found.has_optimizer else "",
        "LoRA": ", ".join(f"{name} {value}" for name, value in found.lora.items()),
    }
    lines = [f"{found.path}: {KINDS[found.kind]}, {'complete' if found.is_complete else 'NOT complete'}"]
    lines += [f"  {name:<11}{text}" for name, text in rows.items() if text]
    lines += [f"  wrong      {problem}" for problem in found.problems]
    return lines + [f"  good for   {use}" for use in found.good_for]
