"""What the tutorial's own route does that its reader does not expect, told before it starts.

Each trap was found by reading examples/gptoss of Megatron-LM and by parsing its flags with
megatron-core 0.19.2; docs/launching.md lists them beside our route.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from engine.findings import Finding, error, info, warning
from engine.settings import Settings

_LAYERS = 12
"""Layers of the model in 02_train.sh, when the script itself cannot be read."""


def find(settings: Settings, world_size: int, script: str | None) -> tuple[Finding, ...]:
    """The traps that apply; `script` is the text of 02_train.sh, None when there is none.

    A version of the script that was mended meanwhile is not accused of what it does no longer.
    """
    route = settings.launch.route
    if route == "bridge":
        return ()
    found = list(_of_both(settings))
    if route == "tutorial":
        if script is None:
            return (*found, error("reference.script", "the checkout has no examples/gptoss/02_train.sh",
                                  "It is older than the example, or the directory is another repository.",
                                  "git -C DIR pull, or --set launch.megatron_lm=DIR"))  # fmt: skip
        found += _of_tutorial(settings, world_size, script)
    return tuple(found)


def _of_both(settings: Settings) -> Iterator[Finding]:
    if settings.output.export:
        yield error(
            "reference.export",
            "what Megatron-LM trains cannot be exported to Hugging Face",
            "Its checkpoints have no run_config.yaml, and Bridge then rebuilds the model with another activation.",
            "--set output.export=false or --set launch.route=bridge",
        )
    if settings.model.name == "tiny":
        yield error(
            "reference.model",
            "the tiny model exists for the Bridge route only",
            "Megatron-LM alone cannot train it on a CPU, and the tutorial's script has a model of its own.",
            "--set model.name=gpt-oss-20b",
        )


def _of_tutorial(settings: Settings, world_size: int, script: str) -> Iterator[Finding]:
    layers = _number(script, "NUM_LAYERS") or _LAYERS
    if _sets(script, "PP_SIZE=${WORLD_SIZE}") and layers % world_size:
        fits = ", ".join(str(n) for n in range(1, layers + 1) if layers % n == 0)
        yield error(
            "reference.pipeline",
            f"02_train.sh makes {world_size} pipeline stages of {layers} layers and Megatron refuses",
            "It sets PP_SIZE to the number of GPUs, and the layers must divide evenly among the stages.",
            f"use {fits} GPUs, edit PP_SIZE in the script, or --set launch.route=megatron-lm",
        )
    yield from (finding for sign, source, finding in _WITH if sign in script and source in ("", settings.data.source))
    yield from (finding for sign, finding in _WITHOUT if not re.search(sign, script))


_OURS = "--set launch.route=megatron-lm or bridge"
_WITH = (
    ("--hidden-size 512", "", warning(
        "reference.toy",
        "02_train.sh trains a toy of about 0.3 billion parameters, not gpt-oss",
        "It has 12 layers of width 512, 4 experts, other positions and no biases.",
        f"{_OURS} for the real architecture")),
    ("1953125000", "mock", warning(
        "reference.mock",
        "02_train.sh builds an index of about 8 billion mock samples before the first iteration",
        "One rank needs about 125 GB of memory and an hour for it.",
        "lower TRAIN_SAMPLES in the script, or --set launch.route=megatron-lm")),
    ("--fp8-format", "", warning(
        "reference.fp8",
        "02_train.sh always computes in FP8",
        "An A100 cannot, and Hopper and Blackwell have better recipes than delayed scaling.",
        "remove the --fp8 options from the script, or --set launch.route=megatron-lm")),
    ("--enable-gpt-oss", "", warning(
        "reference.modelopt",
        "02_train.sh has options that Megatron-LM knows only with nvidia-modelopt",
        "--enable-gpt-oss and --export-force-local-attention end in `unrecognized arguments` without it.",
        "pip install nvidia-modelopt in the image, or --set launch.route=megatron-lm")),
    ("--vocab-size 128256", "prefix", warning(
        "reference.vocabulary",
        "the embedding gets as many rows as the tokenizer has tokens, not gpt-oss's 201,088",
        "Megatron ignores --vocab-size for a Hugging Face tokenizer and tolerates the mismatch on loading.",
        "--set launch.route=megatron-lm")),
    ('--tensorboard-dir "${CHECKPOINT_PATH}/tensorboard"', "", info(
        "reference.tensorboard",
        "TensorBoard's files appear in checkpoints/tensorboard",
        "02_train.sh takes --tensorboard-logs-path and does not use it.")),
)  # fmt: skip
"""What in the script is the sign of a trap, with which data.source it matters (empty: any), and the trap."""
_WITHOUT = (
    (r"--load\s", warning(
        "reference.load",
        "02_train.sh never loads a checkpoint",
        "It starts from random weights each time: a converted checkpoint is ignored and a restart begins anew.",
        f"{_OURS}; restarts are off for this route")),
    ("--exit-signal-handler", warning(
        "reference.stop",
        "02_train.sh saves nothing when it is stopped",
        "It has no signal handler, and saves every 10,000 iterations only.",
        _OURS)),
)  # fmt: skip
"""What the script lacks, as a pattern, and the trap that this is."""


def _number(script: str, name: str) -> int | None:
    found = re.search(rf"{name}=(\d+)", script)
    return int(found[1]) if found else None


def _sets(script: str, assignment: str) -> bool:
    return any(line.strip().startswith(assignment) for line in script.splitlines())
