"""The reference route: Megatron-LM itself, as the tutorial starts it or with gpt-oss's real flags.

Evidence for the flags: they were parsed and the resulting configuration compared with
Megatron-Bridge's for gpt-oss, on megatron-core 0.19.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engine import models
from engine.errors import SettingsError
from engine.launch.command import StepRequest, Words
from engine.models import Model
from engine.paths import expanded
from engine.plan import schedule

SCRIPT = "examples/gptoss/02_train.sh"
_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant", "WSD": "WSD",
              "inverse-square-root": "inverse-square-root"}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where the tutorial's script finds things."""

    checkout: str
    checkpoints: str
    tensorboard: str
    tokenizer: str
    data: str
    env_file: str

    @classmethod
    def in_container(cls) -> Places:
        """The tutorial's mount points."""
        return cls(
            checkout="/workspace/megatron-lm",
            checkpoints="/workspace/checkpoints",
            tensorboard="/workspace/tensorboard_logs",
            tokenizer="/workspace/tokenizer_model",
            data="/workspace/data_dir",
            env_file="/workspace/megatron-lm/examples/gptoss/distributed_config.env",
        )

    @classmethod
    def outside(cls, request: StepRequest) -> Places:
        """The paths on the machine itself."""
        data = request.settings.data
        return cls(
            checkout=str(checkout(request)),
            checkpoints=str(request.run / "checkpoints"),
            tensorboard=str(request.run / "tensorboard"),
            tokenizer=data.tokenizer,
            data=str(expanded(data.path).absolute().parent),
            env_file=str(request.env_file),
        )


def checkout(request: StepRequest) -> Path:
    """The Megatron-LM checkout. Raises SettingsError when none was named."""
    text = request.settings.launch.megatron_lm
    if not text:
        raise SettingsError(
            f"the route {request.settings.launch.route} needs a Megatron-LM checkout",
            "git clone https://github.com/NVIDIA/Megatron-LM.git; --set launch.megatron_lm=DIR",
        )
    return expanded(text).absolute()


def argv(request: StepRequest, rendezvous: Words) -> Words:
    """What trains on one node. Raises SettingsError for what the route cannot do."""
    launch = request.settings.launch
    if request.device == "cpu":
        raise SettingsError(
            f"the route {launch.route} needs GPUs: Megatron-LM alone does not start on a CPU",
            "rehearse with --set launch.route=bridge",
        )
    if launch.route == "tutorial":
        if launch.launcher not in ("local", "container"):
            raise SettingsError(
                f"02_train.sh reads NODE_RANK from its own file and cannot be started by {launch.launcher}",
                "--set launch.route=megatron-lm or gptoss export-scripts for one file a node",
            )
        return tutorial_argv(request, Places.outside(request))
    return ("$PYTHON", "-m", "torch.distributed.run", *rendezvous, "pretrain_gpt.py", *flags(request))


def tutorial_argv(request: StepRequest, places: Places) -> Words:
    """The tutorial's step 2, with mock data or with one's own."""
    words: Words = ("bash", SCRIPT, "--checkpoint-path", places.checkpoints,
                    "--tensorboard-logs-path", places.tensorboard)  # fmt: skip
    data = request.settings.data
    if data.source == "prefix":
        if not data.tokenizer:
            raise SettingsError("02_train.sh falls back to mock data without a tokenizer", "--set data.tokenizer=DIR")
        words += ("--tokenizer", places.tokenizer, "--data", f"{places.data}/{Path(data.path).name}")
    elif data.source != "mock":
        raise SettingsError(
            f"02_train.sh cannot read data.source = {data.source}", "give mock, or the prefix of a .bin/.idx pair"
        )
    return (*words, "--distributed-config-file", places.env_file)


def flags(request: StepRequest) -> Words:
    """pretrain_gpt.py's options for the real gpt-oss."""
    model = models.find(request.settings)
    return (
        *architecture(model), *_parallel(request), *_training(request), *_data(request, model),
        *_checkpoints(request),
    )  # fmt: skip


def _words(text: str) -> Words:
    return tuple(text.split())


def architecture(model: Model) -> Words:
    """The options that say which model is trained; none of them may be left out or be another."""
    return (*_attention(model), *_experts(model))


def _attention(model: Model) -> Words:
    return _words(
        f"""
        --use-mcore-models --transformer-impl transformer_engine
        --num-layers {model.layers} --hidden-size {model.hidden} --ffn-hidden-size {model.ffn}
        --num-attention-heads {model.heads} --group-query-attention --num-query-groups {model.kv_heads}
        --kv-channels {model.head_dim} --max-position-embeddings {model.max_positions}
        --normalization RMSNorm --norm-epsilon 1e-5 --untie-embeddings-and-output-weights
        --hidden-dropout 0.0 --attention-dropout 0.0
        --position-embedding-type yarn --rotary-base {model.rope_theta:.0f} --rotary-percent 1.0
        --rotary-scaling-factor 32.0 --yarn-original-max-position-embeddings 4096
        --yarn-beta-fast 32.0 --yarn-beta-slow 1.0 --mscale 1.0 --mscale-all-dim 0.0
        --no-yarn-correction-range-round-to-int
        --quick-geglu --glu-linear-offset 1.0 --activation-func-clamp-value 7.0
        --softmax-type learnable --window-size {model.window - 1},0 --window-attn-skip-freq 2
        --no-rope-fusion --no-masked-softmax-fusion --no-bias-dropout-fusion --attention-backend auto
        """
    )


def _experts(model: Model) -> Words:
    return _words(
        f"""
        --num-experts {model.experts} --moe-ffn-hidden-size {model.ffn} --moe-router-topk {model.top_k}
        --moe-router-score-function softmax --moe-router-dtype fp32
        --moe-router-load-balancing-type none --moe-aux-loss-coeff 0.0
        --moe-grouped-gemm --moe-token-dispatcher-type alltoall --moe-permute-fusion
        """
    )


def _parallel(request: StepRequest) -> Words:
    layout = request.layout
    words = _words(
        f"""
        --tensor-model-parallel-size {layout.tp} --pipeline-model-parallel-size {layout.pp}
        --context-parallel-size {layout.cp} --expert-model-parallel-size {layout.ep}
        --expert-tensor-parallel-size 1
        --use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather
        """
    )
    if layout.tp > 1:
        words += ("--sequence-parallel",)
    if layout.cp > 1:
        words += ("--cp-comm-type", "a2a")
    if layout.vpp > 1:
        words += ("--num-virtual-stages-per-pipeline-rank", str(layout.vpp))
    return words


def _training(request: StepRequest) -> Words:
    training = request.settings.training
    words = _words(
        f"""
        --seq-length {training.sequence_length} --micro-batch-size {training.micro_batch}
        --global-batch-size {training.global_batch} --train-iters {training.iterations}
        --lr {training.learning_rate} --min-lr {training.minimum_learning_rate}
        --lr-decay-style {_SCHEDULES[training.schedule]} --lr-warmup-iters {training.warmup_iterations}
        --lr-decay-iters {schedule.decay_iterations(training)}
        --weight-decay {training.weight_decay} --adam-beta2 {training.adam_beta2}
        --clip-grad {training.gradient_clip} --seed {training.seed}
        --eval-interval {training.evaluation_interval} --eval-iters {training.evaluation_iterations}
        --log-interval {training.log_interval} --log-throughput
        """
    )
    if (falling := schedule.wsd_decay_iterations(training)) is not None:
        words += ("--lr-wsd-decay-iters", str(falling))  # asserted: optimizer_param_scheduler.py:164
    if training.precision == "bf16":
        words += ("--bf16",)
    if training.recompute == "moe":
        words += ("--recompute-granularity", "selective", "--recompute-modules", "moe_act", "layernorm")
    elif training.recompute == "full":
        words += ("--recompute-granularity", "full", "--recompute-method", "uniform", "--recompute-num-layers", "1")
    return words


def _data(request: StepRequest, model: Model) -> Words:
    data, run = request.settings.data, request.run
    # HuggingFaceTokenizer would pad its 200,019 tokens to a multiple of 128 x TP, never to gpt-oss's 201,088 rows.
    size: Words = ("--padded-vocab-size", str(model.vocab), "--make-vocab-size-divisible-by", "128")
    if data.source == "mock":
        return (*size, "--mock-data", "--tokenizer-type", "NullTokenizer", "--vocab-size", str(model.vocab - 1))
    tokenizer = data.tokenizer or request.settings.model.path or model.published or str(run / "data" / "tokenizer")
    words: Words = (*size, "--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", tokenizer)
    if data.source == "prefix":
        share = request.settings.data.validation_percent
        return (*words, "--data-path", data.path, "--split", f"{100 - share:g},{share:g},0")
    train, validation = str(run / "data" / "train"), str(run / "data" / "validation")
    return (*words, "--train-data-path", train, "--valid-data-path", validation, "--test-data-path", validation)


def _checkpoints(request: StepRequest) -> Words:
    settings, run = request.settings, request.run
    own = str(run / "checkpoints")
    words: Words = ("--save", own, "--load", own, "--save-interval", str(settings.training.checkpoint_interval),
                    "--ckpt-format", "torch_dist", "--exit-signal-handler",
                    # A missing bias or sink is then listed; the default ignores it silently.
                    "--dist-ckpt-strictness", "log_all")  # fmt: skip
    if settings.output.tensorboard:
        words += ("--tensorboard-dir", str(run / "tensorboard"))
    if settings.training.goal == "continue":
        # Read only while `--load` holds nothing yet, so a restart resumes (checkpointing.py, 0.19.2).
        words += ("--pretrained-checkpoint", settings.model.checkpoint or str(run / "converted"))
    return words
