"""How far two models are apart on the same tokens, and how far they may be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

TOLERANCE = {"fp32": 2e-4, "bf16": 0.5}
"""Largest difference allowed, as a share of the largest logit, by the format that is computed in.

fp32: the same sums in another order; 4e-7 was measured on the tiny model. bf16: a token whose
experts are nearly tied may choose others, which moved single logits by 0.2.
"""
MAX_KL = {"fp32": 1e-6, "bf16": 1e-2}
"""Largest mean divergence of the predictions allowed at any length, in nats."""
_ROWS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two sets of logits on tokens of one length."""

    tokens: int
    largest: float
    """Largest logit of the reference, by its amount."""
    difference: float
    """Largest difference."""
    kl: float
    """Mean Kullback-Leibler divergence of the predictions, nats."""
    agreement: float
    """Share of the positions at which both predict the same token."""

    def allowed(self, precision: str) -> float:
        """Largest difference allowed."""
        return TOLERANCE[precision] * self.largest

    def is_within(self, precision: str) -> bool:
        """Written so that NaN, which is not above anything, is not within either."""
        return self.difference <= self.allowed(precision) and self.kl <= MAX_KL[precision]

    def sentence(self, precision: str) -> str:
        """What differs, and by how much it may."""
        return (
            f"logits of {self.tokens} tokens differ by up to {self.difference:.3g}, allowed are "
            f"{self.allowed(precision):.3g} (KL {self.kl:.3g}, allowed is {MAX_KL[precision]:g}; "
            f"{self.agreement:.1%} of the predictions agree)"
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def prompts(vocab: int, window: int, seed: int = 0) -> list[Tensor]:
    """The same random tokens each time: within the sliding window, just beyond it, and far beyond."""
    random = torch.Generator().manual_seed(seed)
    lengths = (max(8, window // 2), window + 8, 4 * window)
    return [torch.randint(0, vocab, (1, length), generator=random) for length in lengths]


def compare(reference: Sequence[Tensor], found: Sequence[Tensor]) -> list[Comparison]:
    """One comparison for each pair of [1, tokens, vocabulary]."""
    return [_compare(a[0].float(), b[0].float()) for a, b in zip(reference, found, strict=True)]


def _compare(expected: Tensor, found: Tensor) -> Comparison:
    tokens, kl, same = len(expected), 0.0, 0
    largest = difference = torch.zeros(())
    # In doubles a few rows at a time: the vocabulary has 201,088 entries.
    for rows in (slice(start, start + _ROWS) for start in range(0, tokens, _ROWS)):
        sure, other = expected[rows].double().log_softmax(-1), found[rows].double().log_softmax(-1)
        kl += float((sure.exp() * (sure - other)).sum())
        largest = torch.maximum(largest, expected[rows].abs().max())
        difference = torch.maximum(difference, (expected[rows] - found[rows]).abs().max())
        same += int((expected[rows].argmax(-1) == found[rows].argmax(-1)).sum())
    return Comparison(
        tokens=tokens,
        largest=float(largest),
        difference=float(difference),
        kl=kl / tokens,
        agreement=same / tokens,
    )
