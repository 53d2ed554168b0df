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
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=60
export GPTOSS_BY_HAND=1
export PYTHONPATH="$RUN_DIR"/source
export CUDA_VISIBLE_DEVICES=''
export OMP_NUM_THREADS=1
cd "$RUN_DIR"
# The allocation knows better than the env file who takes part and where to meet.
set -a
source "$RUN_DIR"/attempts/03-train/job.env
set +a
export NODE_RANK="$SLURM_NODEID"
exec "$PYTHON" \
  -m torch.distributed.run \
  --nproc-per-node "$GPUS_PER_NODE" \
  --nnodes "$NUM_NODES" \
  --node-rank "$NODE_RANK" \
  --master-addr "$MASTER_ADDR" \
  --master-port "$MASTER_PORT" \
  -m engine.workers.train \
  "$RUN_DIR"
