"""The rehearsal's model and tokenizer: every trait of gpt-oss, 0.4 million parameters.

Sinks, alternating sliding window, YaRN, grouped queries, biased experts, top-k router,
clamped SwiGLU, untied embeddings: what converts and trains here exercises the same code
as the released models.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

END_OF_TEXT, PADDING = "<|endoftext|>", "<|pad|>"
VOCABULARY_SIZE = 512

SIZES = {
    "num_hidden_layers": 4,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "sliding_window": 16,
}
ROPE = {
    "rope_type": "yarn",
    "rope_theta": 150000.0,
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
"""The released models' values; Bridge knows no others (gpt_oss_bridge.py:95-101)."""

_WEIGHT_STD = 0.05
"""Small enough that the first loss is near that of guessing, ln(512) = 6.24."""
_SINK_STD = 0.5


def train_tokenizer(
    texts: Iterable[str], directory: Path, control_tokens: Sequence[str] = (), eos: str = END_OF_TEXT
) -> None:
    """Learn a small byte-level BPE from `texts` and save it as a Hugging Face tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[END_OF_TEXT, PADDING, *control_tokens],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos, pad_token=PADDING).save_pretrained(directory)


def make_model(directory: Path, tokenizer: Any, precision: str, seed: int, head_std: float = _WEIGHT_STD) -> None:
    """Save a random gpt-oss of the rehearsal's size to `directory`; same seed, same weights.

    `head_std` is the spread of the output layer's weights.
    """
    import torch
    from transformers import GptOssConfig, GptOssForCausalLM

    layers = SIZES["num_hidden_layers"]
    config = GptOssConfig(
        **SIZES,
        # A foreign tokenizer may be larger; 128 keeps the rows divisible by every tensor-parallel size.
        vocab_size=max(VOCABULARY_SIZE, -(-len(tokenizer) // 128) * 128),
        max_position_embeddings=131072,
        rope_parameters=ROPE,
        layer_types=["sliding_attention", "full_attention"] * (layers // 2),
        tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="bfloat16" if precision == "bf16" else "float32",
    )
    model = GptOssForCausalLM(config)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.fill_(1.0)
            else:
                parameter.normal_(0.0, _spread(name, head_std), generator=random)
    model.to(config.dtype).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def _spread(name: str, head_std: float) -> float:
    if name.startswith("lm_head"):
        return head_std
    return _SINK_STD if name.endswith("sinks") else _WEIGHT_STD
