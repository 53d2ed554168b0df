"""The local launcher: torchrun on this machine's GPUs or CPU."""

from __future__ import annotations

import socket

from engine.launch.command import Command, StepRequest


def command(request: StepRequest) -> Command:
    """The step as a torchrun command that reads the env file for its sizes."""
    module = f"engine.workers.{request.step}"
    if request.step == "prepare":
        argv: tuple[str, ...] = (request.python, "-m", module, str(request.run))
    else:
        argv = (
            request.python,
            "-m",
            "torch.distributed.run",
            *_rendezvous(request),
            "-m",
            module,
            str(request.run),
        )
    return Command(
        argv=argv,
        env=_environment(request),
        cwd=request.run,
        env_file=request.run / "distributed_config.env",
        title=f"{request.step} of the run {request.run.name}; written by gptoss, runs without it",
    )


def free_port(wanted: int = 0) -> int:
    """`wanted` when nobody listens there, else a free port of the kernel's choice."""
    for port in (wanted, 0):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise AssertionError("the kernel always has a free port")


def _rendezvous(request: StepRequest) -> tuple[str, ...]:
    if not request.uses_all_ranks:
        # One process on one node; its own rendezvous must not meet that of other nodes.
        return (
            "--nproc-per-node",
            "1",
            "--nnodes",
            "1",
            "--master-addr",
            "localhost",
            "--master-port",
            "$MASTER_PORT",
        )
    return (
        "--nproc-per-node", "$GPUS_PER_NODE", "--nnodes", "$NUM_NODES", "--node-rank", "$NODE_RANK",
        "--master-addr", "$MASTER_ADDR", "--master-port", "$MASTER_PORT",
    )  # fmt: skip


def _environment(request: StepRequest) -> dict[str, str]:
    env = {
        "GPTOSS_ATTEMPT": str(request.attempt),
        "PYTHONUNBUFFERED": "1",
        # The run directory is the working directory and holds `data` and `model`:
        # it must not become an import path.
        "PYTHONSAFEPATH": "1",
    }
    if request.source:
        env["PYTHONPATH"] = str(request.source)
    return env | (_gpu_environment(request) if request.device == "gpu" else _cpu_environment())


def _cpu_environment() -> dict[str, str]:
    return {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


def _gpu_environment(request: StepRequest) -> dict[str, str]:
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
