"""The options of torchrun and of Megatron-LM's pretrain_gpt.py as settings: the way from a command line into gptoss.

The other way is `launch/reference.py`. Checked against megatron-core 0.19.2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from engine.launch import reference
from engine.models import GPT_OSS_20B, GPT_OSS_120B, Model
from engine.options import Problem, Value, parse
from engine.plan.schedule import WSD_DECAY_SHARE
from engine.settings import OPTIONS, Settings
from engine.shell_words import Word

_COMPUTED = "the shell would compute it, and nothing is run here: set it by hand"
_OURS = "gptoss sets this itself, as gpt-oss needs it"
_FP8 = "it belongs to FP8, which is not offered yet"
_UNKNOWN = "it has no counterpart here; Megatron-Bridge's own value holds"


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What became of one thing that was found."""

    text: str
    """As it stood there: `--lr 1e-5`."""
    key: str = ""
    """The setting it became, or would have become."""
    why: str = ""


@dataclass(slots=True)
class Reading:
    """Settings found so far, and an account of every word."""

    values: dict[str, Value] = field(default_factory=dict)
    understood: list[Told] = field(default_factory=list)
    ignored: list[Told] = field(default_factory=list)
    impossible: list[Told] = field(default_factory=list)

    def set(self, key: str, text: str, said: str, why: str = "") -> bool:
        """Take `text` for the setting `key`; `said` is what stood there. False when it cannot be."""
        value = parse(OPTIONS[key], text)
        if isinstance(value, Problem):
            self.impossible.append(Told(text=said, key=key, why=f"{value.message}; {value.hint}"))
            return False
        self.values[key] = value
        self.understood.append(Told(text=said, key=key, why=why))
        return True

    def ignore(self, said: str, why: str) -> None:
        self.ignored.append(Told(text=said, why=why))

    def refuse(self, said: str, why: str, key: str = "") -> None:
        self.impossible.append(Told(text=said, key=key, why=why))


@dataclass(frozen=True, slots=True)
class Given:
    """One option of a command line with its values."""

    name: str
    words: tuple[Word, ...]

    @property
    def value(self) -> str:
        return self.words[0].text if self.words else ""

    @property
    def said(self) -> str:
        return " ".join([self.name, *(word.text for word in self.words)])

    @property
    def is_known(self) -> bool:
        return all(word.is_known for word in self.words)


type Flags = Mapping[str, Given]


def split(words: Sequence[Word]) -> dict[str, Given]:
    """Options by name with what follows them; the last of a name wins, as argparse has it."""
    found: dict[str, Given] = {}
    name, values = "", list[Word]()
    for word in [*words, Word("--")]:
        if not word.text.startswith("--"):
            values.append(word)
            continue
        if name:
            found[name] = Given(name, tuple(values))
        name, equals, value = word.text.partition("=")
        values = [Word(value, word.is_known)] if equals else []
    return found


def read_torchrun(flags: Flags, reading: Reading) -> None:
    """torchrun's own options: how many ranks, and where they meet."""
    for given in flags.values():
        name = given.name.replace("_", "-")
        if not given.is_known:
            reading.refuse(given.said, _COMPUTED, _TORCHRUN.get(name, ""))
        elif name in ("--rdzv-endpoint", "--rdzv-conf") and ":" in given.value:
            address, _, port = given.value.rpartition(":")
            reading.set("launch.master_addr", address, given.said)
            reading.set("launch.master_port", port, given.said)
        elif name in _TORCHRUN:
            reading.set(_TORCHRUN[name], given.value, given.said)
        else:
            reading.ignore(given.said, "gptoss starts torchrun with options of its own")


def read_training(flags: Flags, reading: Reading) -> None:
    """pretrain_gpt.py's options."""
    model = _model(flags, reading)
    expected = split([Word(word) for word in reference.architecture(model or GPT_OSS_20B)])
    for name, given in flags.items():
        if not given.is_known:
            reading.refuse(given.said, _COMPUTED, _SIMPLE.get(name, ""))
        elif name in _SIMPLE:
            reading.set(_SIMPLE[name], given.value, given.said)
        elif name in _SPECIAL:
            _SPECIAL[name](given, flags, reading)
        elif name in _CANNOT:
            reading.refuse(given.said, _CANNOT[name])
        elif name in _SET_BY_US:
            reading.ignore(given.said, _OURS)
        elif name in _ARCHITECTURE or name in expected:
            _read_architecture(given, expected.get(name), model, reading)
        else:
            reading.ignore(given.said, _FP8 if name.startswith(("--fp8-", "--fp4-")) else _UNKNOWN)
    if any(name in flags for name in _LAYOUT):
        reading.values["layout.mode"] = "manual"
    _read_goal(flags, reading)


def _model(flags: Flags, reading: Reading) -> Model | None:
    """The released model whose layers and experts were given."""
    sizes = {name: flags[name].value for name in ("--num-layers", "--num-experts", "--hidden-size") if name in flags}
    if not sizes:
        return None
    said = " ".join(f"{name} {value}" for name, value in sizes.items())
    for model in (GPT_OSS_20B, GPT_OSS_120B):
        real = {"--num-layers": model.layers, "--num-experts": model.experts, "--hidden-size": model.hidden}
        if sizes == {name: str(value) for name, value in real.items()}:
            reading.set("model.name", model.name, said)
            return model
    reading.refuse(
        said,
        "these are not the sizes of gpt-oss-20b (24 layers of 2880, 32 experts) or 120b (36 layers, 128 experts); "
        "a toy of your own can be trained with launch.route = tutorial, and not exported",
        "model.name",
    )
    return None


def _read_architecture(given: Given, expected: Given | None, model: Model | None, reading: Reading) -> None:
    if given.name in _SIZES:
        return  # told with the model
    if model is None:
        reading.ignore(given.said, "the architecture follows from model.name")
    elif expected is None:
        reading.refuse(given.said, f"{model.name} does not have it; with it the released weights mean something else")
    elif _same(given, expected):
        reading.understood.append(Told(text=given.said, key="model.name", why=f"as {model.name} has it"))
    else:
        reading.refuse(given.said, f"{model.name} has {expected.said}", "model.name")


def _same(given: Given, expected: Given) -> bool:
    return [_number(word.text) for word in given.words] == [_number(word.text) for word in expected.words]


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text.replace(" ", "").strip("()[]")


def _read_goal(flags: Flags, reading: Reading) -> None:
    """Weights to start from make it a continued training; none, one from random weights."""
    for name in ("--pretrained-checkpoint", "--load"):
        given = flags.get(name)
        if given is None or not given.is_known:
            continue
        if name == "--load" and given.value == _value(flags, "--save"):
            reading.ignore(given.said, "a run goes on from its own checkpoints by itself")
            continue
        reading.set("model.checkpoint", given.value, given.said, "its weights; the optimiser's state begins anew")
        reading.values["training.goal"] = "continue"
        return
    if any(name in flags for name in ("--train-iters", "--train-samples")):
        reading.values["training.goal"] = "pretrain"
        reading.understood.append(
            Told(text="no checkpoint to start from", key="training.goal", why="it begins from random weights")
        )


def _value(flags: Flags, name: str) -> str:
    return flags[name].value if name in flags else ""


def _whole(text: str) -> int | None:
    try:
        return int(float(text))
    except (ValueError, OverflowError):
        return None


def _read_samples(key: str) -> Callable[[Given, Flags, Reading], None]:
    def read(given: Given, flags: Flags, reading: Reading) -> None:
        samples = _whole(given.value)
        batch = _whole(_value(flags, "--global-batch-size") or str(Settings().training.global_batch))
        if samples is None or not batch or batch < 1:
            reading.refuse(given.said, "a whole number of samples is needed", key)
        else:
            reading.set(key, str(samples // batch), given.said, f"{samples:,} samples in batches of {batch}")

    return read


def _read_warmup_fraction(given: Given, flags: Flags, reading: Reading) -> None:
    key = "training.warmup_iterations"
    length = reading.values.get("training.decay_iterations") or reading.values.get("training.iterations")
    for name in ("--lr-decay-iters", "--train-iters"):
        length = length or _whole(_value(flags, name))
    for name in ("--lr-decay-samples", "--train-samples"):
        samples, batch = _whole(_value(flags, name)), _whole(_value(flags, "--global-batch-size"))
        length = length or (samples // batch if samples and batch else None)
    try:
        share = float(given.value)
        iterations = int(share * int(length or 0))
    except (ValueError, OverflowError):
        iterations = -1
    if iterations < 0 or not length:
        reading.refuse(given.said, "a share of an unknown length", key)
    else:
        reading.set(key, str(iterations), given.said, f"{share:.1%} of {int(length):,} iterations")


def _read_recompute(given: Given, flags: Flags, reading: Reading) -> None:
    key = "training.recompute"
    modules = {word.text for word in flags["--recompute-modules"].words} if "--recompute-modules" in flags else set()
    if _value(flags, "--recompute-granularity") == "full":
        reading.set(key, "full", given.said)
    elif modules & {"moe_act", "layernorm", "moe"}:
        reading.set(key, "moe", given.said, "recomputes moe_act and layernorm")
    else:
        reading.ignore(given.said, "attention alone keeps next to nothing that could be recomputed with fused kernels")


def _read_data_path(given: Given, flags: Flags, reading: Reading) -> None:
    if len(given.words) != 1:
        reading.refuse(given.said, "several weighted data sets; merge them into one prefix first", "data.path")
        return
    reading.set("data.source", "prefix", given.said)
    reading.values["data.path"] = given.value


def _read_mock(given: Given, flags: Flags, reading: Reading) -> None:
    if "--data-path" not in flags:
        reading.set("data.source", "mock", given.said)


def _read_tokenizer(given: Given, flags: Flags, reading: Reading) -> None:
    if given.value in (GPT_OSS_20B.published, GPT_OSS_120B.published):
        reading.understood.append(Told(text=given.said, key="data.tokenizer", why="the model's own"))
    else:
        reading.set("data.tokenizer", given.value, given.said)


def _read_split(given: Given, flags: Flags, reading: Reading) -> None:
    key = "data.validation_percent"
    try:
        shares = [float(part) for part in given.value.strip("'\"").split(",")]
        total = sum(shares)
        share = 100 * shares[1] / total if len(shares) > 1 and total else 0.0
    except ValueError:
        reading.refuse(given.said, "shares as in 99,1,0 are needed", key)
        return
    if len(shares) > 2 and shares[2]:
        reading.ignore(f"the last share of {given.said}", "there is no test set here")
    if share:
        reading.set(key, f"{share:g}", given.said)
    else:
        reading.refuse(given.said, "some documents are always kept for validation", key)


def _read_expert_tensor(given: Given, flags: Flags, reading: Reading) -> None:
    if given.value == "1":
        reading.ignore(given.said, _OURS)
    else:
        reading.refuse(given.said, "the experts of gpt-oss have biases, which Megatron cannot split", "layout.tp")


def _read_evaluations(given: Given, flags: Flags, reading: Reading) -> None:
    key = "training.evaluation_iterations"
    if given.value == "0":
        reading.refuse(given.said, "one validation at the end is always made; make the intervals long instead", key)
    else:
        reading.set(key, given.value, given.said)


def _read_precision(given: Given, flags: Flags, reading: Reading) -> None:
    reading.set("training.precision", "bf16", given.said)


def _read_wsd(given: Given, flags: Flags, reading: Reading) -> None:
    reading.ignore(given.said, f"with WSD the rate falls over the last 1/{WSD_DECAY_SHARE} of the schedule here")


def _told_elsewhere(given: Given, flags: Flags, reading: Reading) -> None:
    """Read together with another option."""


def _read_tensorboard(given: Given, flags: Flags, reading: Reading) -> None:
    reading.set("output.tensorboard", "yes", given.said, "in the run's own directory")


def _read_wandb(given: Given, flags: Flags, reading: Reading) -> None:
    reading.set("output.tracker_project", given.value, given.said)
    reading.values["output.tracker"] = "wandb"


_TORCHRUN = {
    "--nproc-per-node": "machine.gpus_per_node",
    "--nnodes": "machine.nodes",
    "--node-rank": "launch.node_rank",
    "--master-addr": "launch.master_addr",
    "--master-port": "launch.master_port",
}
_LAYOUT = {
    "--tensor-model-parallel-size": "layout.tp",
    "--pipeline-model-parallel-size": "layout.pp",
    "--context-parallel-size": "layout.cp",
    "--expert-model-parallel-size": "layout.ep",
    "--num-virtual-stages-per-pipeline-rank": "layout.vpp",
}
_SIMPLE = {
    **_LAYOUT,
    "--train-iters": "training.iterations",
    "--seq-length": "training.sequence_length",
    "--global-batch-size": "training.global_batch",
    "--micro-batch-size": "training.micro_batch",
    "--lr": "training.learning_rate",
    "--min-lr": "training.minimum_learning_rate",
    "--lr-decay-style": "training.schedule",
    "--lr-warmup-iters": "training.warmup_iterations",
    "--lr-decay-iters": "training.decay_iterations",
    "--weight-decay": "training.weight_decay",
    "--adam-beta2": "training.adam_beta2",
    "--clip-grad": "training.gradient_clip",
    "--seed": "training.seed",
    "--save-interval": "training.checkpoint_interval",
    "--eval-interval": "training.evaluation_interval",
    "--log-interval": "training.log_interval",
}
_SPECIAL: dict[str, Callable[[Given, Flags, Reading], None]] = {
    "--train-samples": _read_samples("training.iterations"),
    "--lr-decay-samples": _read_samples("training.decay_iterations"),
    "--lr-warmup-samples": _read_samples("training.warmup_iterations"),
    "--lr-warmup-fraction": _read_warmup_fraction,
    "--lr-wsd-decay-iters": _read_wsd,
    "--recompute-granularity": _read_recompute,
    "--recompute-activations": _read_recompute,
    "--recompute-modules": _told_elsewhere,
    "--data-path": _read_data_path,
    "--mock-data": _read_mock,
    "--tokenizer-model": _read_tokenizer,
    "--split": _read_split,
    "--eval-iters": _read_evaluations,
    "--expert-tensor-parallel-size": _read_expert_tensor,
    "--bf16": _read_precision,
    "--tensorboard-dir": _read_tensorboard,
    "--wandb-project": _read_wandb,
    "--load": _told_elsewhere,
    "--pretrained-checkpoint": _told_elsewhere,
}
_CANNOT = {
    "--fp16": "gpt-oss is trained in bf16 here",
    "--fp8-format": "training.precision takes bf16 and fp32; FP8 is not offered yet",
    "--fp4-format": "training.precision takes bf16 and fp32; FP4 is not offered yet",
    "--sft": "Megatron-LM's own fine-tuning knows no Harmony format: set training.goal to sft and data.source to chat",
    "--train-data-path": "give one prefix; the validation text is split off it",
    "--decoder-first-pipeline-num-layers": "the stages of a pipeline are equal here",
    "--decoder-last-pipeline-num-layers": "the stages of a pipeline are equal here",
    "--pipeline-model-parallel-layout": "the stages of a pipeline are equal here",
    "--num-layers-per-virtual-pipeline-stage": "say it as --num-virtual-stages-per-pipeline-rank (layout.vpp)",
    "--use-megatron-fsdp": "weights are split by the layout here, not by FSDP",
    "--optimizer-cpu-offload": "the optimiser stays on the GPUs here",
    "--no-load-optim": "what is started from another checkpoint never takes its optimiser here",
}
_SIZES = frozenset({"--num-layers", "--num-experts", "--hidden-size"})
_ARCHITECTURE = _SIZES | frozenset(
    """--disable-bias-linear --swiglu --ffn-hidden-size --num-attention-heads --num-query-groups --kv-channels
    --max-position-embeddings --rotary-base --rotary-percent --rope-type --position-embedding-type --normalization
    --window-size --moe-router-topk --moe-ffn-hidden-size --hidden-dropout --attention-dropout --softmax-type
    --quick-geglu --moe-shared-expert-intermediate-size --moe-z-loss-coeff --moe-aux-loss-coeff
    --moe-router-load-balancing-type --use-rope-scaling --qk-layernorm --add-qkv-bias --enable-gpt-oss
    --export-force-local-attention --vocab-size --group-query-attention --untie-embeddings-and-output-weights""".split()
)
"""What fixes the model; `--vocab-size` too, which Megatron ignores for a Hugging Face tokenizer."""
_SET_BY_US = frozenset(
    """--use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather --sequence-parallel --cp-comm-type
    --ckpt-format --exit-signal-handler --dist-ckpt-strictness --log-throughput --save --tokenizer-type --finetune
    --padded-vocab-size --make-vocab-size-divisible-by --use-flash-attn --attention-backend --use-mcore-models
    --transformer-impl --accumulate-allreduce-grads-in-fp32 --distributed-backend --no-load-rng
    --no-create-attention-mask-in-dataloader --attention-softmax-in-fp32 --no-bias-gelu-fusion
    --recompute-num-layers --recompute-method --moe-per-layer-logging""".split()
)
