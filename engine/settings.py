"""Everything a person can choose, declared once. Same settings, same run.

The file form is TOML (`settings_file.py`); the checks that need no machine are here; those
that need the model or the machine are the planner's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from engine.errors import SettingsError
from engine.finetune_settings import FinetuneSettings
from engine.launch_settings import LaunchSettings
from engine.options import Option, Problem, Value, check, option, options_of, parse, suggest

VERSION = 1
"""Raised when an older file would be understood differently."""

HUB_PREFIX = "hf:"
"""In data.path, `hf:owner/name` is a dataset on the Hugging Face hub and no path."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    name: str = option(
        "gpt-oss-20b",
        help="The architecture to train.",
        why="It fixes the size of everything else: memory, disk and time. `tiny` has every trait of gpt-oss "
        "with 0.4 million parameters and runs on a CPU; `custom` reads the config.json in model.path.",
        choices=("gpt-oss-20b", "gpt-oss-120b", "tiny", "custom"),
        native="AutoBridge.from_hf_pretrained",
    )
    path: str = option(
        "",
        is_path=True,
        help="Directory with the Hugging Face checkpoint; empty means the published one.",
        why="Give a directory to work offline, or to start from weights of your own. "
        "The released MXFP4 weights are dequantised to BF16 while converting.",
        native="hf_model_id",
    )
    checkpoint: str = option(
        "",
        is_path=True,
        help="Directory of a Megatron checkpoint to start from; the conversion is then left out.",
        why="Use it when the weights were converted before, or to train on from another run.",
        native="checkpoint.pretrained_checkpoint",
        advanced=True,
    )
    converter: str = option(
        "auto",
        help="What turns the Hugging Face checkpoint into a Megatron checkpoint.",
        why="`streaming` moves one tensor at a time and needs less than 1 GiB of memory at any size; `bridge` holds "
        "the whole model, about 80 GiB for 20b. Both write the same tensors; `auto` is streaming.",
        choices=("auto", "streaming", "bridge"),
        native="AutoBridge.import_ckpt",
        advanced=True,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSettings:
    source: str = option(
        "mock",
        help="Where the training text comes from.",
        why="`text` reads your own files, `chat` conversations or prompts with answers, `prefix` an existing Megatron "
        "dataset. `sample` is what comes with the program: the sources of the running Python's standard library, or "
        "toy chats for the goals sft and lora. `mock` invents tokens: good for timing, useless for learning.",
        choices=("text", "chat", "prefix", "sample", "mock"),
        native="dataset",
    )
    path: str = option(
        "",
        is_path=True,
        help="A file, directory, pattern or hf:owner/name (source = text or chat), or the prefix of a .bin/.idx pair.",
        why="Megatron reads a .bin/.idx pair; text is tokenised into one by the prepare step. A chat is a JSON line "
        "with `messages`, or with a prompt and its answer. hf: names a dataset on the Hugging Face hub.",
        native="dataset.blend",
    )
    column: str = option(
        "",
        help="The column that holds the text or the messages, or PROMPT,ANSWER; empty means it is found.",
        why="`text`, `content`, `messages` and their like are known by name; another one has to be named.",
        advanced=True,
    )
    bad_records: str = option(
        "stop",
        help="What happens at a record that cannot be used: broken JSON, another type, bytes that are not UTF-8.",
        why="`skip` leaves such records out, counts them and lists them in data/rejected.jsonl with where and why.",
        choices=("stop", "skip"),
        advanced=True,
    )
    tokenizer: str = option(
        "",
        is_path=True,
        help="Directory of a Hugging Face tokenizer; empty means the model's own.",
        why="Token ids must fit the model's embedding: another tokenizer makes the released weights useless.",
        native="tokenizer.tokenizer_model",
        advanced=True,
    )
    foreign_tokenizer: str = option(
        "refuse",
        help="What happens when a gpt-oss model is to read tokens of another tokenizer than its own.",
        why="The ids fit and mean other words. `allow` it for a model that starts from random weights.",
        choices=("refuse", "allow"),
        advanced=True,
    )
    validation_percent: float = option(
        5.0,
        help="Share of the documents that is kept out of training.",
        why="The loss on text that the model never saw tells learning from memorising.",
        unit="%",
        minimum=0.1,
        maximum=50,
        native="dataset.split",
    )
    max_megabytes: float = option(
        0.0,
        help="Read at most this much text; 0 means all of it.",
        why="A small share is enough to try a set-up.",
        unit="MB",
        minimum=0,
        advanced=True,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSettings:
    goal: str = option(
        "continue",
        help="What the training is for.",
        why="`continue` trains the released weights on with text. `sft` teaches them chats by changing all weights, "
        "`lora` by training small adapters beside them, which takes a fraction of the memory. `pretrain` starts from "
        "random weights and needs trillions of tokens before it is worth anything.",
        choices=("continue", "sft", "lora", "pretrain"),
    )
    iterations: int = option(
        100,
        help="How many optimiser updates to make.",
        why="Tokens seen = iterations x global batch x sequence length.",
        minimum=1,
        maximum=100_000_000,
        native="train.train_iters",
    )
    sequence_length: int = option(
        4096,
        help="Tokens in one sample.",
        why="Activation memory grows with it. gpt-oss was trained for up to 131,072.",
        unit="tokens",
        minimum=8,
        maximum=131_072,
        native="model.seq_length",
    )
    global_batch: int = option(
        128,
        help="Samples in one optimiser update, over all GPUs.",
        why="It must be a multiple of micro batch x data-parallel size. Larger batches are steadier and need fewer, "
        "longer iterations.",
        unit="samples",
        minimum=1,
        maximum=1_000_000,
        native="train.global_batch_size",
    )
    micro_batch: int = option(
        1,
        help="Samples that one GPU works on at a time.",
        why="Larger is faster until memory is full; activation memory grows with it.",
        unit="samples",
        minimum=1,
        maximum=1024,
        native="train.micro_batch_size",
    )
    learning_rate: float = option(
        1e-5,
        help="The highest learning rate, reached after the warm-up.",
        why="Too high and the loss jumps or becomes NaN; too low and nothing is learnt. 1e-5 suits released weights, "
        "3e-4 random ones.",
        minimum=0,
        maximum=1,
        native="optimizer.lr",
    )
    minimum_learning_rate: float = option(
        0.0,
        help="The learning rate at the end of the schedule.",
        minimum=0,
        maximum=1,
        native="optimizer.min_lr",
        advanced=True,
    )
    schedule: str = option(
        "cosine",
        help="How the learning rate falls after the warm-up.",
        choices=("cosine", "linear", "constant", "inverse-square-root", "WSD"),
        native="scheduler.lr_decay_style",
        advanced=True,
    )
    warmup_iterations: int = option(
        10,
        help="Iterations over which the learning rate rises from 0.",
        why="The optimiser's first estimates are poor; a short rise keeps them from doing harm.",
        minimum=0,
        maximum=100_000_000,
        native="scheduler.lr_warmup_iters",
    )
    decay_iterations: int = option(
        0,
        help="Iterations over which the learning rate falls; 0 means the whole run.",
        why="A run that is prolonged keeps it; beyond its end the rate stays at minimum_learning_rate.",
        minimum=0,
        maximum=100_000_000,
        native="scheduler.lr_decay_iters",
        advanced=True,
    )
    weight_decay: float = option(
        0.1,
        help="AdamW's weight decay.",
        minimum=0,
        maximum=10,
        native="optimizer.weight_decay",
        advanced=True,
    )
    adam_beta2: float = option(
        0.95,
        help="How long AdamW remembers the size of past gradients.",
        minimum=0,
        maximum=0.9999999,
        native="optimizer.adam_beta2",
        advanced=True,
    )
    gradient_clip: float = option(
        1.0,
        help="Gradients are scaled down to this norm.",
        why="It keeps one bad batch from wrecking the weights.",
        minimum=0,
        maximum=1000,
        native="optimizer.clip_grad",
        advanced=True,
    )
    precision: str = option(
        "bf16",
        help="The number format of weights and activations.",
        why="bf16 is what gpt-oss was trained in; fp32 takes twice the memory and is for the CPU and for comparisons.",
        choices=("bf16", "fp32"),
        native="mixed_precision",
        advanced=True,
    )
    recompute: str = option(
        "none",
        help="What is computed twice to save activation memory.",
        why="`moe` recomputes the activation and the norm of each layer (about 2 % slower), "
        "`full` whole layers (about 30 % slower).",
        choices=("none", "moe", "full"),
        native="model.recompute_granularity",
        advanced=True,
    )
    checkpoint_interval: int = option(
        100,
        help="A checkpoint is saved every so many iterations.",
        why="A crash costs at most this many iterations; a checkpoint of 20b with its optimiser is about 293 GB.",
        unit="iterations",
        minimum=1,
        maximum=100_000_000,
        native="checkpoint.save_interval",
    )
    evaluation_interval: int = option(
        100,
        help="The validation loss is measured every so many iterations.",
        unit="iterations",
        minimum=1,
        maximum=100_000_000,
        native="validation.eval_interval",
    )
    evaluation_iterations: int = option(
        4,
        help="Global batches in one measurement of the validation loss.",
        minimum=1,
        maximum=100_000,
        native="validation.eval_iters",
        advanced=True,
    )
    patience: int = option(
        0,
        help="The training ends early after so many evaluations without a lower validation loss; 0 means never.",
        why="What is learnt after that is the training data by heart. The run goes on with the export.",
        unit="evaluations",
        minimum=0,
        maximum=100_000,
    )
    log_interval: int = option(
        1,
        help="A metric record is written every so many iterations.",
        unit="iterations",
        minimum=1,
        maximum=10_000,
        native="logger.log_interval",
        advanced=True,
    )
    seed: int = option(
        1234,
        help="Seed of every random choice: data order and new weights.",
        minimum=1,
        maximum=2**31 - 1,
        native="rng.seed",
        advanced=True,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutSettings:
    mode: str = option(
        "auto",
        help="`auto` lets the planner choose the parallel sizes, `manual` takes those below.",
        why="A wrong layout fails at start-up or leaves GPUs idle; the planner knows every rule of Megatron.",
        choices=("auto", "manual"),
    )
    tp: int = option(
        1,
        help="Tensor-parallel size: GPUs that share each matrix.",
        why="Keep it inside one NVLink domain; for gpt-oss 1, 2, 4 or 8.",
        minimum=1,
        maximum=8,
        native="model.tensor_model_parallel_size",
    )
    pp: int = option(
        1,
        help="Pipeline-parallel size: stages of consecutive layers.",
        why="It must divide the number of layers (24 for 20b, 36 for 120b).",
        minimum=1,
        maximum=128,
        native="model.pipeline_model_parallel_size",
    )
    cp: int = option(
        1,
        help="Context-parallel size: GPUs that share one long sequence.",
        minimum=1,
        maximum=64,
        native="model.context_parallel_size",
        advanced=True,
    )
    ep: int = option(
        1,
        help="Expert-parallel size: GPUs over which the experts are spread.",
        why="It must divide the number of experts (32 for 20b, 128 for 120b). Keep it inside one NVLink domain.",
        minimum=1,
        maximum=128,
        native="model.expert_model_parallel_size",
    )
    vpp: int = option(
        1,
        help="Virtual pipeline stages on each GPU.",
        why="More of them shrink the pipeline bubble and cost communication; they need pp > 1.",
        minimum=1,
        maximum=36,
        native="model.virtual_pipeline_model_parallel_size",
        advanced=True,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineSettings:
    device: str = option(
        "auto",
        help="What the run computes on; `auto` means the GPUs, and the CPU where there are none.",
        choices=("auto", "gpu", "cpu"),
    )
    gpus_per_node: int = option(
        0,
        help="GPUs to use on each node; 0 means all of them.",
        minimum=0,
        maximum=72,
        native="GPUS_PER_NODE",
    )
    nodes: int = option(1, help="How many machines take part.", minimum=1, maximum=4096, native="NUM_NODES")
    hosts: str = option(
        "",
        help="The nodes for the ssh launcher: names separated by commas, or a file with one a line.",
        why="The first one is the rendezvous, and every other must reach it. `user@host` is understood.",
        advanced=True,
    )
    cpu_ranks: int = option(
        2,
        help="Processes to start when the run computes on the CPU.",
        why="Two of them rehearse a real parallel layout on a laptop; each takes about 1 GB of memory.",
        minimum=1,
        maximum=16,
        advanced=True,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputSettings:
    directory: str = option(
        "",
        is_path=True,
        help="Where the run's directory is made; empty means gptoss/runs in your data directory.",
        why="Checkpoints are large: choose a disk with room, shared by all nodes.",
    )
    keep_checkpoints: int = option(
        2,
        help="How many of the newest checkpoints are kept; 0 means all.",
        why="Damaged ones do not count, so that the last good one is never removed.",
        minimum=0,
        maximum=100_000,
        advanced=True,
    )
    export_checkpoint: str = option(
        "last",
        help="Which checkpoint is exported: the last one, or the one with the lowest validation loss.",
        why="`best` keeps that one in addition to the newest ones, until a better one is saved.",
        choices=("last", "best"),
    )
    export: bool = option(
        True,
        help="Write the trained model as Hugging Face safetensors at the end.",
        why="It is what transformers, vLLM and everybody else can load.",
        native="AutoBridge.save_hf_pretrained",
    )
    verify: bool = option(
        True,
        help="Compare the exported model with the trained one.",
        why="Conversions have been silently wrong; this runs both on the same tokens and compares.",
    )
    verify_first_loss: bool = option(
        False,
        help="At the end, compare the first iteration's loss with that of the original weights, too.",
        why="Megatron with the converted weights must have the loss that transformers has with the original ones. The "
        "tiny model is always compared; a large one has to be loaded once more.",
        advanced=True,
    )
    tensorboard: bool = option(
        True, help="Write TensorBoard event files.", native="logger.tensorboard_dir", advanced=True
    )
    tracker: str = option(
        "none",
        help="An experiment tracker that gets the metrics too.",
        why="Its package must be installed. W&B without a key writes an offline file into the run's directory; MLflow "
        "and Trackio write there, too, unless MLFLOW_TRACKING_URI or TRACKIO_SPACE_ID names a server. Keys come from "
        "the environment, never from here.",
        choices=("none", "wandb", "mlflow", "trackio"),
        advanced=True,
    )
    tracker_project: str = option(
        "gptoss", help="The tracker's project or experiment; the run's name is the name in it.", advanced=True
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All a person chose. Frozen: an edit makes a new one (`with_values`)."""

    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    finetune: FinetuneSettings = field(default_factory=FinetuneSettings)
    layout: LayoutSettings = field(default_factory=LayoutSettings)
    machine: MachineSettings = field(default_factory=MachineSettings)
    launch: LaunchSettings = field(default_factory=LaunchSettings)
    output: OutputSettings = field(default_factory=OutputSettings)

    def value(self, key: str) -> Value:
        """The value of `table.name`. Raises SettingsError for an unknown key."""
        found = find_option(key)
        return getattr(getattr(self, found.table), found.name)  # type: ignore[no-any-return]

    def with_values(self, values: Mapping[str, object]) -> Settings:
        """A copy with `table.name` keys replaced. Raises SettingsError naming every bad one."""
        return merge(self, _as_tables(values))


_TABLES: dict[str, type] = {
    "model": ModelSettings,
    "data": DataSettings,
    "training": TrainingSettings,
    "finetune": FinetuneSettings,
    "layout": LayoutSettings,
    "machine": MachineSettings,
    "launch": LaunchSettings,
    "output": OutputSettings,
}
OPTIONS: dict[str, Option] = {o.key: o for table, owner in _TABLES.items() for o in options_of(table, owner)}
"""Every option by its key, in the order in which people meet them."""


_MOST_HINTS = 50


def find_option(key: str) -> Option:
    """The option called `key`. Raises SettingsError with the nearest name."""
    if key in OPTIONS:
        return OPTIONS[key]
    # People type the last part alone.
    namesakes = [k for k in OPTIONS if k.partition(".")[2] == key]
    hint = f"did you mean {namesakes[0]}?" if namesakes else suggest(key, list(OPTIONS))
    raise SettingsError(f"there is no setting {key!r}", hint or "list them with: gptoss settings")


def parse_assignments(assignments: list[str]) -> dict[str, Value]:
    """Read `key=value` texts. Raises SettingsError naming every bad one."""
    values: dict[str, Value] = {}
    problems: list[Problem] = []
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals:
            raise SettingsError(f"{text!r} is not key=value", "for example training.iterations=200")
        result = parse(find_option(key.strip()), value)
        if isinstance(result, Problem):
            problems.append(result)
        else:
            values[key.strip()] = result
    _refuse(problems)
    return values


def merge(base: Settings, tables: Mapping[str, Any]) -> Settings:
    """`base` with the values of nested `tables`. Raises SettingsError naming every bad one."""
    problems: list[Problem] = []
    changed: dict[str, Any] = {}
    for table, values in tables.items():
        if table not in _TABLES:
            problems.append(
                Problem(key=table, message="there is no such table", hint=_near(table, list(_TABLES), problems))
            )
            continue
        if table == "layout" and isinstance(values, str):
            values = {"mode": values}  # `layout = "auto"` is how people say it
        if not isinstance(values, Mapping):
            problems.append(Problem(key=table, message=f"{values!r} is not a table", hint=f"write [{table}]"))
            continue
        good = _checked(table, values, problems)
        changed[table] = dataclasses.replace(getattr(base, table), **good)
    _refuse(problems)
    return dataclasses.replace(base, **changed)


def to_tables(settings: Settings, since: Settings | None = None) -> dict[str, dict[str, Value]]:
    """Nested plain values; with `since`, only those that differ from it."""
    tables: dict[str, dict[str, Value]] = {}
    for key, one in OPTIONS.items():
        value = settings.value(key)
        if since is None or since.value(key) != value:
            tables.setdefault(one.table, {})[one.name] = value
    return tables


def _checked(table: str, values: Mapping[str, Any], problems: list[Problem]) -> dict[str, Value]:
    good: dict[str, Value] = {}
    for name, value in values.items():
        key = f"{table}.{name}"
        if key not in OPTIONS:
            problems.append(
                Problem(key=key, message="there is no such setting", hint=_near(key, list(OPTIONS), problems))
            )
            continue
        result = check(OPTIONS[key], value)
        if isinstance(result, Problem):
            problems.append(result)
        else:
            good[name] = result
    return good


def _as_tables(values: Mapping[str, object]) -> dict[str, dict[str, object]]:
    tables: dict[str, dict[str, object]] = {}
    for key, value in values.items():
        found = find_option(key)
        tables.setdefault(found.table, {})[found.name] = value
    return tables


def _near(word: str, known: list[str], problems: list[Problem]) -> str:
    """`did you mean X?`, for the first problems only: to look for X takes a millisecond."""
    return suggest(word, known) if len(problems) < _MOST_HINTS else ""


def _refuse(problems: list[Problem]) -> None:
    if problems:
        first = problems[0]
        more = "".join(f"\n{problem}" for problem in problems[1:])
        raise SettingsError(f"{first.key}: {first.message}{more}", first.hint)
