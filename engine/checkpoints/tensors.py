"""Every tensor of a gpt-oss model, by its Hugging Face and by its Megatron name, with its shape.

The Megatron names are those under which Transformer Engine layers are saved: a checkpoint with
them loads on GPUs and, through `engine.workers.profile`, on a CPU.
"""

from __future__ import annotations

from collections.abc import Mapping

from engine.models import Model

type Shape = tuple[int, ...]
type Shapes = Mapping[str, Shape]

GATE_UP, DOWN = "mlp.experts.gate_up_proj", "mlp.experts.down_proj"
"""The experts' weights; Hugging Face keeps a layer's experts in one tensor each."""

FC1, FC2 = "decoder.layers.mlp.experts.experts.linear_fc1", "decoder.layers.mlp.experts.experts.linear_fc2"
QKV = "decoder.layers.self_attention.linear_qkv"
OUTPUT = "decoder.layers.self_attention.linear_proj"
ROUTER = "decoder.layers.mlp.router"
ADAPTER = ".adapter."
"""What the names of LoRA's tensors have between the matrix and the side."""

EXTRA_STATES = (OUTPUT, QKV)
EXPERT_EXTRA_STATES = (FC1, FC2)
"""Layers that keep an (empty) `_extra_state` object beside their weights."""

MXFP4_BLOCK = 32
"""Values that share one scale; 16 bytes hold them."""

RENAMED_GLOBAL: Mapping[str, str] = {
    "model.embed_tokens.weight": "embedding.word_embeddings.weight",
    "model.norm.weight": "decoder.final_layernorm.weight",
    "lm_head.weight": "output_layer.weight",
}
RENAMED_IN_LAYER: Mapping[str, str] = {
    "input_layernorm.weight": f"{QKV}.layer_norm_weight",
    "post_attention_layernorm.weight": "decoder.layers.pre_mlp_layernorm.weight",
    "self_attn.sinks": "decoder.layers.self_attention.core_attention.softmax_offset",
    "self_attn.o_proj.weight": f"{OUTPUT}.weight",
    "self_attn.o_proj.bias": f"{OUTPUT}.bias",
    "mlp.router.weight": f"{ROUTER}.weight",
    "mlp.router.bias": f"{ROUTER}.bias",
}
"""Tensors that differ in nothing but the name; Megatron stacks those of all layers into one."""


def hugging_face_layer(model: Model) -> dict[str, Shape]:
    """One layer's tensors, by the name after `model.layers.N.`, as transformers saves them."""
    hidden, ffn, experts = model.hidden, model.ffn, model.experts
    return {
        "input_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (model.query_width, hidden),
        "self_attn.q_proj.bias": (model.query_width,),
        "self_attn.k_proj.weight": (model.kv_width, hidden),
        "self_attn.k_proj.bias": (model.kv_width,),
        "self_attn.v_proj.weight": (model.kv_width, hidden),
        "self_attn.v_proj.bias": (model.kv_width,),
        "self_attn.o_proj.weight": (hidden, model.query_width),
        "self_attn.o_proj.bias": (hidden,),
        "self_attn.sinks": (model.heads,),
        "post_attention_layernorm.weight": (hidden,),
        "mlp.router.weight": (experts, hidden),
        "mlp.router.bias": (experts,),
        GATE_UP: (experts, hidden, 2 * ffn),
        f"{GATE_UP}_bias": (experts, 2 * ffn),
        DOWN: (experts, ffn, hidden),
        f"{DOWN}_bias": (experts, hidden),
    }


def hugging_face(model: Model) -> dict[str, Shape]:
    """Every tensor as transformers saves it in BF16, in the order of the computation."""
    shapes: dict[str, Shape] = {"model.embed_tokens.weight": (model.vocab, model.hidden)}
    for layer in range(model.layers):
        shapes |= {layer_name(layer, name): shape for name, shape in hugging_face_layer(model).items()}
    return shapes | {"model.norm.weight": (model.hidden,), "lm_head.weight": (model.vocab, model.hidden)}


def layer_name(layer: int, name: str) -> str:
    return f"model.layers.{layer}.{name}"


def megatron(model: Model) -> dict[str, Shape]:
    """Every tensor of the Megatron checkpoint, all layers stacked."""
    layer, found = hugging_face_layer(model), hugging_face(model)
    layers, experts = model.layers, model.experts
    shapes = {new: found[old] for old, new in RENAMED_GLOBAL.items()}
    shapes |= {new: (layers, *layer[old]) for old, new in RENAMED_IN_LAYER.items()}
    qkv = model.query_width + 2 * model.kv_width
    return shapes | {
        f"{QKV}.weight": (layers, qkv, model.hidden),
        f"{QKV}.bias": (layers, qkv),
        f"{FC1}.weight": (layers, experts, 2 * model.ffn, model.hidden),
        f"{FC1}.bias": (layers, experts, 2 * model.ffn),
        f"{FC2}.weight": (layers, experts, model.hidden, model.ffn),
        f"{FC2}.bias": (layers, experts, model.hidden),
    }


def megatron_adapters(model: Model, rank: int) -> dict[str, dict[str, Shape]]:
    """LoRA: the shapes of `linear_in` and `linear_out` beside each of Megatron's matrices that may have an adapter."""
    layers, experts, hidden, ffn = model.layers, model.experts, model.hidden, model.ffn
    qkv = model.query_width + 2 * model.kv_width
    return {
        QKV: {"linear_in": (layers, rank, hidden), "linear_out": (layers, qkv, rank)},
        OUTPUT: {"linear_in": (layers, rank, model.query_width), "linear_out": (layers, hidden, rank)},
        ROUTER: {"linear_in": (layers, rank, hidden), "linear_out": (layers, experts, rank)},
        FC1: {"linear_in": (layers, experts, rank, hidden), "linear_out": (layers, experts, 2 * ffn, rank)},
        FC2: {"linear_in": (layers, experts, rank, ffn), "linear_out": (layers, experts, hidden, rank)},
    }


def adapter_key(module: str, side: str) -> str:
    """Under which name a checkpoint holds one side of an adapter."""
    return f"{module}{ADAPTER}{side}.weight"


def mxfp4(name: str, model: Model) -> dict[str, Shape]:
    """The two tensors that stand for the experts' weight `name` in an MXFP4 checkpoint: [expert, out, in]."""
    rows, columns = (2 * model.ffn, model.hidden) if name.endswith(GATE_UP) else (model.hidden, model.ffn)
    blocks = columns // MXFP4_BLOCK
    return {
        f"{name}_blocks": (model.experts, rows, blocks, MXFP4_BLOCK // 2),
        f"{name}_scales": (model.experts, rows, blocks),
    }


def is_expert_weight(name: str) -> bool:
    return name.endswith((GATE_UP, DOWN))
