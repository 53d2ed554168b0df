"""The sizes of the parallel axes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How the ranks of one job share the model. The expert-tensor size is always 1 for gpt-oss.

    Megatron refuses biased experts with another one (transformer_config.py:2279, 0.19.2).
    """

    tp: int = 1
    pp: int = 1
    cp: int = 1
    ep: int = 1
    dp: int = 1
    vpp: int = 1

    @property
    def world_size(self) -> int:
        return self.tp * self.pp * self.cp * self.dp

    def __str__(self) -> str:
        sizes = [f"TP{self.tp}", f"PP{self.pp}", f"EP{self.ep}", f"DP{self.dp}"]
        if self.cp > 1:
            sizes.insert(2, f"CP{self.cp}")
        if self.vpp > 1:
            sizes.append(f"VPP{self.vpp}")
        return " ".join(sizes)
