"""The environment of a worker's ranks."""

from __future__ import annotations

from engine.launch.command import StepRequest


def of_worker(request: StepRequest) -> dict[str, str]:
    """What a rank needs in its environment, whatever starts it."""
    env = {
        # Also the mark by which `signal.sh` finds every process of the attempt.
        "GPTOSS_ATTEMPT": str(request.attempt),
        "PYTHONUNBUFFERED": "1",
        # The run directory is the working directory and holds `data` and `model`:
        # it must not become an import path.
        "PYTHONSAFEPATH": "1",
        # torchrun kills the ranks 30 s after it passed a signal on, too soon for a large checkpoint
        # (torch 2.13, distributed/launcher/api.py:148; older ones do not read it).
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(request.settings.launch.grace_s),
    }
    if request.by_hand:
        env["GPTOSS_BY_HAND"] = "1"  # the worker tells the terminal what it does
    if request.source:
        env["PYTHONPATH"] = str(request.source)
    return env | (_gpu(request) if request.device == "gpu" else {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"})


def _gpu(request: StepRequest) -> dict[str, str]:
    """What Megatron-Bridge's H100 recipes for gpt-oss set."""
    layout = request.layout
    # Megatron asserts 1 with TP or CP before Blackwell (arguments.py:1413, 0.19.2); else 32 overlaps best.
    connections = "1" if layout.tp > 1 or layout.cp > 1 else "32"
    env = {
        "CUDA_DEVICE_MAX_CONNECTIONS": connections,
        "NCCL_NVLS_ENABLE": "0",
        "NVTE_BWD_LAYERNORM_SM_MARGIN": "20",
        "NVTE_FWD_LAYERNORM_SM_MARGIN": "20",
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
        "TORCH_NCCL_AVOID_RECORD_STREAMS": "1",
        "TORCH_NCCL_HIGH_PRIORITY": "1",
    }
    if request.gpus:
        env["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # NVML's order, which the plan counts in
        env["CUDA_VISIBLE_DEVICES"] = ",".join(str(index) for index in request.gpus)
    return env
