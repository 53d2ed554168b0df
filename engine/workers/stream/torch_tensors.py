"""The arrays of this package as torch's tensors and back, for what torch computes: adapters and logits."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from engine.workers.stream.values import BF16, Array

TORCH_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
OF_SAFETENSORS = {"BF16": torch.bfloat16, "F32": torch.float32}


def to_torch(values: Array) -> Tensor:
    """The same memory as a tensor."""
    if values.dtype == BF16:
        return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(values)


def to_numpy(tensor: Tensor) -> Array:
    """The same memory as an array, made contiguous."""
    tensor = tensor.contiguous()
    if tensor.dtype == torch.bfloat16:
        found: Array = tensor.view(torch.int16).numpy()
        return found.view(BF16)
    return tensor.numpy()
