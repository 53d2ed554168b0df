"""How evenly the routers spread the tokens over the experts: counted in the forward pass, over all ranks.

gpt-oss trains without an auxiliary loss, so Megatron itself reports no balance.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Balance:
    """The tokens of one expert over the mean of its layer, each in the layer where it is worst; 1 is even."""

    most: float
    least: float


class ExpertCounts:
    """Counts the tokens of every expert of the training since the last `take`."""

    def __init__(self, chunks: Iterable[Any]) -> None:
        """`chunks`: the parts of the model on this rank, as Megatron's list of them."""
        import torch
        from megatron.core.transformer.moe.router import TopKRouter

        self._counts: Any = None
        for chunk in chunks:
            for module in chunk.modules():
                if isinstance(module, TopKRouter):
                    module.register_forward_hook(self._count)
                    if self._counts is None:
                        # Every rank has a row for every layer: with pipeline stages it fills its own.
                        shape = (module.config.num_layers, module.config.num_moe_experts)
                        self._counts = torch.zeros(shape, dtype=torch.int64, device=module.weight.device)

    def take(self) -> Balance | None:
        """The balance over all ranks; every rank must call it at the same iteration. None for a dense model.

        Ranks that see the same tokens (tensor parallel without sequence parallel) count them all
        alike, and recomputation counts twice: shares stay what they are.
        """
        import torch

        if self._counts is None:
            return None
        counts = self._counts.clone()
        self._counts.zero_()
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(counts)
        counts = counts[counts.sum(dim=1) > 0].double()
        if not len(counts):
            return None
        shares = counts / counts.mean(dim=1, keepdim=True)
        return Balance(most=float(shares.max()), least=float(shares.min()))

    def _count(self, router: Any, _inputs: Any, outputs: Any) -> None:
        if not router.training:
            return  # an evaluation
        # (tokens, experts): True where a token goes to an expert.
        self._counts[router.layer_number - 1] += outputs[1].detach().sum(dim=0)
