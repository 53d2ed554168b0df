"""What is counted of the tokens that Megatron's own router sends to its experts."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("megatron.core")

from engine.workers.experts import ExpertCounts  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:megatron")
LAYERS, EXPERTS, TOP = 3, 4, 2


@pytest.fixture(scope="module")
def chunk() -> Any:
    """Routers of the last two of three layers, as the second pipeline stage holds them."""
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.core.transformer.moe.router import TopKRouter
    from megatron.core.transformer.transformer_config import TransformerConfig

    config = TransformerConfig(
        num_layers=LAYERS, hidden_size=8, num_attention_heads=2, num_moe_experts=EXPERTS, moe_ffn_hidden_size=8,
        moe_router_topk=TOP,
        moe_router_load_balancing_type="none", use_cpu_initialization=True, perform_initialization=False,
        moe_aux_loss_coeff=0.0,
    )  # fmt: skip
    groups = ProcessGroupCollection()
    groups.tp = groups.cp = groups.tp_cp = groups.tp_dp_cp = None
    routers = [TopKRouter(config, pg_collection=groups) for _ in range(2)]
    for number, router in enumerate(routers, 2):
        router.set_layer_number(number)
        torch.nn.init.zeros_(router.weight)
    return torch.nn.ModuleList(routers)


@pytest.fixture
def route(chunk: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sends tokens to the experts that are named."""

    def send(layer: int, tokens: list[tuple[int, int]]) -> None:
        router = chunk[layer - 2]
        logits = torch.zeros(len(tokens), 1, EXPERTS)
        for place, experts in enumerate(tokens):
            logits[place, 0, list(experts)] = 5.0
        monkeypatch.setattr(router, "gating", lambda _: logits)
        router(torch.zeros(len(tokens), 1, 8))

    return send


def test_tokens_are_counted_by_layer_and_once(chunk: Any, route: Any) -> None:
    counts = ExpertCounts([chunk])
    route(2, [(0, 1), (2, 3)])
    route(3, [(0, 1), (0, 1), (0, 2), (0, 3)])
    balance = counts.take()
    # Layer 3: 4, 2, 1, 1 tokens; the mean is 2.
    assert balance is not None and (balance.most, balance.least) == (2.0, 0.5)
    assert counts.take() is None


def test_other_ranks_count_too(chunk: Any, route: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = ExpertCounts([chunk])
    route(2, [(0, 1)])
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    other = torch.tensor([[0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]])
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda mine: mine.add_(other))
    balance = counts.take()
    assert balance is not None and (balance.most, balance.least) == (1.0, 1.0)


def test_evaluations_do_not_count(chunk: Any, route: Any) -> None:
    counts = ExpertCounts([chunk])
    chunk.eval()
    route(2, [(0, 1)])
    chunk.train()
    assert counts.take() is None


def test_a_dense_model_has_no_balance() -> None:
    assert ExpertCounts([torch.nn.Linear(2, 2)]).take() is None
