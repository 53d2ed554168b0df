"""What Megatron needs to compute on a CPU. A no-op where CUDA exists; the workers know nothing of it.

Megatron-Core 0.19.2 and Megatron-Bridge 0.6.2 name the device "cuda" in hundreds of places and
import packages that only NVIDIA's containers hold. One mode turns the device into the CPU, one
table answers for torch.cuda, stubs stand in for absent packages, and each remaining fix is a
function that names the line which makes it necessary. tests/end_to_end leaves each one out and
sees a case fail.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import logging
import os
import queue
import sys
import warnings
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

STUBBED = ("transformer_engine", "modelopt", "megatron.energon", "nvidia_resiliency_ext")
"""Packages that Bridge imports at module level and that do nothing in these workers:

transformer_engine     megatron/bridge/peft/lora_layers.py:20
modelopt               megatron/bridge/training/train.py:65, eval.py:29, gpt_step.py:19
megatron.energon       megatron/bridge/data/energon (imported by training/config.py)
nvidia_resiliency_ext  megatron/bridge/training/pretrain.py:19
"""

_installed = False


def prepare_environment() -> None:
    """Set what torch reads while it is imported; what a person has set stays."""
    # Compiling the small fused kernels takes 5 s a rank and changes the initial weights.
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    # The ranks share the cores already.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Some forty warnings that Transformer Engine and Apex are absent, which is so on purpose.
    warnings.filterwarnings("ignore", message=".*(Transformer Engine|transformer-engine|Apex).*")
    # A traceback of an import that Bridge then does without.
    logging.getLogger("megatron.bridge.utils.import_utils").addFilter(lambda record: record.levelno >= logging.WARNING)


def install(without: Sequence[str] = ()) -> None:
    """Make Megatron run here, before anything of it is imported; `without` leaves fixes out by name."""
    global _installed
    import torch

    if _installed or torch.cuda.is_available():
        return
    _installed = True
    for name, fix in FIXES.items():
        if name not in without:
            fix()


def cuda_means_cpu() -> None:
    """Turn device="cuda" into the CPU in every torch call (megatron/core/parallel_state.py and 300 more).

    The type strings are compared with literals (core/optimizer/optimizer.py:1009, clip_grads.py:174).
    """
    import torch
    from torch.overrides import TorchFunctionMode

    here = torch.device("cpu")

    def is_cuda(value: object) -> bool:
        return str(value).startswith("cuda") if isinstance(value, (str, torch.device)) else False

    class CudaMeansCpu(TorchFunctionMode):
        def __torch_function__(self, function: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if function is torch.Tensor.cuda:
                return args[0]
            if function is torch.Tensor.type and len(args) == 1 and not kwargs:
                return function(*args).replace("torch.", "torch.cuda.", 1)
            if is_cuda(kwargs.get("device")):
                kwargs = {**kwargs, "device": here}
            return function(*args, **kwargs)

    CudaMeansCpu().__enter__()


def cuda_answers() -> None:
    """Let torch.cuda answer for a machine without GPUs (megatron/core/parallel_state.py, random.py, bridge/training).

    A distinct function for each name: torch._dynamo refuses one object under two names.
    """
    import torch

    cuda, stream = torch.cuda, _Stream()
    answers: dict[str, Callable[..., Any]] = {
        "current_device": lambda *a, **k: torch.device("cpu"),
        "device_count": lambda *a, **k: int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        "set_device": lambda *a, **k: None,
        "synchronize": lambda *a, **k: None,
        "current_stream": lambda *a, **k: stream,
        "stream": lambda *a, **k: contextlib.nullcontext(),
        "get_rng_state": lambda *a, **k: torch.get_rng_state(),
        "manual_seed": lambda seed, *a, **k: torch.manual_seed(seed),
    }
    for name, answer in answers.items():
        setattr(cuda, name, answer)
    cuda.Stream = _Stream


def absent_packages() -> None:
    """Stand in for `STUBBED`, and only where nothing else provides the name."""
    # These two ask first which packages exist; a stub must not make them believe in one.
    importlib.import_module("megatron.core.extensions.transformer_engine")
    importlib.import_module("transformers")

    sys.meta_path.append(_StubFinder())


def adapters_of_local_layers() -> None:
    """bridge/peft/utils.py:591 asks whether a layer is one of the stubbed Transformer Engine's, which are no types."""
    from megatron.bridge.peft import utils

    utils.HAVE_TE = False


def random_state() -> None:
    """core/tensor_parallel/random.py:118 indexes torch.cuda.default_generators, an empty tuple here."""
    import torch
    from megatron.core.tensor_parallel import random

    random._get_cuda_rng_state = lambda device="cuda", clone=False, graph_safe=False: torch.get_rng_state()
    random._set_cuda_rng_state = lambda state, device=-1, graph_safe=False: torch.set_rng_state(state)


def start_without_cuda() -> None:
    """bridge/training/initialize.py:91 asserts CUDA unless told otherwise, and setup.py:248 never tells."""
    import functools

    from megatron.bridge.training import initialize, setup

    setup.initialize_megatron = functools.partial(initialize.initialize_megatron, allow_no_cuda=True)


def compiled_helpers() -> None:
    """bridge/training/initialize.py:125 runs `make`; the wheel holds the compiled helpers and no Makefile."""
    from megatron.bridge.training import initialize

    initialize.compile_helpers = lambda: None


def expert_bias_gradient() -> None:
    """core/transformer/mlp.py:354 adds to a view in place, which autograd refuses at EP = ETP = 1.

    Not a CPU matter but one of the local profile: RowParallelLinear returns its input through an
    identity over one rank (core/tensor_parallel/layers.py:1479). `explicit_expert_comm` skips the
    identity as it does with EP > 1.
    """
    from megatron.core.tensor_parallel import layers

    original = layers.RowParallelLinear.__init__

    def initialise(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if self.is_expert:
            self.explicit_expert_comm = True

    layers.RowParallelLinear.__init__ = initialise


def expert_bias_counted_once() -> None:
    """core/tensor_parallel/layers.py:1413 marks the experts' output bias as sequence parallel at TP > 1.

    Its gradient is then summed over the tensor-parallel ranks twice: with the other expert gradients,
    and as one of a sequence-parallel region (core/distributed/finalize_model_grads.py:452). The
    grouped experts of Transformer Engine carry no such mark.
    """
    from megatron.core.tensor_parallel import layers

    original = layers.RowParallelLinear.__init__

    def initialise(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if self.is_expert and self.bias is not None:
            self.bias.sequence_parallel = False

    layers.RowParallelLinear.__init__ = initialise


def token_counts_on_cpu() -> None:
    """core/transformer/moe/moe_utils.py:1184 makes numpy splits `if tensor.is_cuda`; all_to_all needs them so."""
    import torch
    from megatron.core.transformer.moe import token_dispatcher

    original = token_dispatcher.maybe_move_tensor_to_cpu

    def move(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
        if as_numpy and torch.is_tensor(tensor):
            return tensor.numpy()
        return original(tensor, as_numpy=as_numpy, record_stream=record_stream)

    token_dispatcher.maybe_move_tensor_to_cpu = move


def norm_with_sequence_parallel() -> None:
    """core/transformer/torch_norm.py:50 refuses sequence parallelism, moe_layer.py:629 demands it with TP > 1.

    The mark on the weights makes finalize_model_grads sum their gradients over the tensor-parallel ranks.
    """
    from megatron.core.transformer import torch_norm

    original = torch_norm.WrappedTorchNorm.__new__

    def new(cls: Any, config: Any, hidden_size: int, eps: float = 1e-5, **kwargs: Any) -> Any:
        asked, config.sequence_parallel = config.sequence_parallel, False
        try:
            norm = original(cls, config, hidden_size, eps)
        finally:
            config.sequence_parallel = asked
        for parameter in norm.parameters():
            parameter.sequence_parallel = asked
        return norm

    torch_norm.WrappedTorchNorm.__new__ = new


def results_in_process() -> None:
    """core/dist_checkpointing/strategies/filesystem_async.py:64 starts a process that imports torch anew (7-27 s).

    It carries the results of writers that run as threads of this very process: a queue does.
    """
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    results: queue.Queue[Any] = queue.Queue()
    filesystem_async.get_write_results_queue = lambda mp_mode="spawn": results


FIXES: dict[str, Callable[[], None]] = {
    fix.__name__: fix
    for fix in (
        cuda_means_cpu,
        cuda_answers,
        absent_packages,
        adapters_of_local_layers,
        random_state,
        start_without_cuda,
        compiled_helpers,
        expert_bias_gradient,
        expert_bias_counted_once,
        token_counts_on_cpu,
        norm_with_sequence_parallel,
        results_in_process,
    )
}
"""In the order in which they must be installed."""


class _Stream:
    """A stream of a device that finishes everything at once; also the event recorded on it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def wait_stream(self, other: Any) -> None: ...

    def wait_event(self, event: Any) -> None: ...

    def synchronize(self) -> None: ...

    def record_event(self) -> Any:
        return self


class _AnythingMeta(type):
    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything


class _Anything(metaclass=_AnythingMeta):
    """Whatever is imported from a stub: a class to inherit from, a function to call; returns None."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __class_getitem__(cls, item: Any) -> Any:
        return cls

    def __init_subclass__(cls, **kwargs: Any) -> None: ...

    def __call__(self, *args: Any, **kwargs: Any) -> None: ...


class _Stub(ModuleType):
    __version__ = "0.0.0"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything


class _StubFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Last on sys.meta_path, so that it is asked only for what nothing else provides."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if any(name == stubbed or name.startswith(stubbed + ".") for stubbed in STUBBED):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = _Stub(spec.name)
        module.__path__ = []
        return module

    def exec_module(self, module: ModuleType) -> None:
        if module.__name__ == "modelopt.torch.distill.plugins.megatron":
            # train.py:65 asks it for a function to adjust tensor shapes; core/pipeline_parallel/
            # schedules.py:730 asserts that there is none without pipelining.
            module.get_tensor_shapes_adjust_fn_for_distillation = (  # type: ignore[attr-defined]
                lambda *args, **kwargs: None
            )
