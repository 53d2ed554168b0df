#!/usr/bin/env bash
# train of the run scripts; written by gptoss, runs without it
# shellcheck disable=SC1091,SC2030,SC2031 # it sources files of the run; each step is a subshell
set -euo pipefail
RUN_DIR="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")"/../.. && pwd -P)"
[ -n "${PYTHON:-}" ] || PYTHON=/opt/venv/bin/python
mkdir -p "$RUN_DIR"/attempts/03-train
set -a; source "$RUN_DIR"/distributed_config.env; set +a # GPUS_PER_NODE NUM_NODES MASTER_ADDR MASTER_PORT NODE_RANK
export GPTOSS_ATTEMPT="$RUN_DIR"/attempts/03-train
export PYTHONUNBUFFERED=1
export PYTHONSAFEPATH=1
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=1800
export GPTOSS_BY_HAND=1
export PYTHONPATH="$RUN_DIR"/source
export CUDA_DEVICE_MAX_CONNECTIONS=1
export NCCL_NVLS_ENABLE=0
export NVTE_BWD_LAYERNORM_SM_MARGIN=20
export NVTE_FWD_LAYERNORM_SM_MARGIN=20
export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
export TORCH_NCCL_AVOID_RECORD_STREAMS=1
export TORCH_NCCL_HIGH_PRIORITY=1
export CUDA_DEVICE_ORDER=PCI_BUS_ID
export CUDA_VISIBLE_DEVICES=0,1,2,3,4,5,6,7
cd "$RUN_DIR"
# The allocation knows better than the env file who takes part and where to meet.
set -a
source "$RUN_DIR"/attempts/03-train/job.env
set +a
export NODE_RANK="$SLURM_NODEID"
# gloo takes the address that this host's own name has: often 127.0.1.1, which no other node reaches.
if [ -z "${GLOO_SOCKET_IFNAME:-}" ] && command -v ip >/dev/null; then
  address="$(getent ahostsv4 "$MASTER_ADDR" | awk 'NR == 1 { print $1 }' || true)"
  if [ "$NODE_RANK" = 0 ]; then
    device="$(ip -o -4 addr show to "$address" 2>/dev/null | awk 'NR == 1 { print $2 }' || true)"
  else
    device="$(ip -o route get "$address" 2>/dev/null | sed -n 's/.* dev \([^ ]*\).*/\1/p' || true)"
  fi
  if [ -n "$device" ]; then export GLOO_SOCKET_IFNAME="$device"; fi
fi
exec "$PYTHON" \
  -m torch.distributed.run \
  --nproc-per-node "$GPUS_PER_NODE" \
  --nnodes "$NUM_NODES" \
  --node-rank "$NODE_RANK" \
  --master-addr "$MASTER_ADDR" \
  --master-port "$MASTER_PORT" \
  --rdzv-conf timeout=300 \
  -m engine.workers.train \
  "$RUN_DIR"
