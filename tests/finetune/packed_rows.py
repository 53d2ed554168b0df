"""Builds Bridge's data set for GPUs from a prepared run, without a GPU, and says what a training would see.

python packed_rows.py RUN  ->  one JSON object: for each row the chats in it, as the evaluation's record unpacks them.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def main() -> None:
    from engine.workers import cpu

    cpu.prepare_environment()
    cpu.install()
    from megatron.bridge.data.builders.gpt_sft import GPTSFTDatasetBuilder
    from megatron.bridge.training.tokenizers.config import TokenizerConfig
    from megatron.bridge.training.tokenizers.tokenizer import build_tokenizer

    from engine.settings_file import load
    from engine.workers import finetune_data
    from engine.workers.evaluation import _unpacked

    os.chdir(sys.argv[1])
    config = finetune_data.config(load(Path("settings.toml")), "gpu")
    config.finalize()
    tokenizer = build_tokenizer(
        TokenizerConfig(tokenizer_type="HuggingFaceTokenizer", tokenizer_model="data/tokenizer")
    )
    train, validation, _ = GPTSFTDatasetBuilder(config, tokenizer).build()
    rows = []
    for index in range(len(train)):
        batch = train.collate_fn([train[index]])
        arrays = tuple(batch[name].numpy() for name in ("tokens", "labels", "loss_mask"))
        chats = _unpacked(arrays, batch["cu_seqlens_q"].flatten().tolist())
        rows.append(
            {
                "shape": list(arrays[0].shape),
                "counted": int(arrays[2].sum()),
                "chats": [[one[0].tolist() for one in chat] for chat in chats],
            }
        )
    print(json.dumps({"rows": rows, "validation": len(validation)}))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    main()
