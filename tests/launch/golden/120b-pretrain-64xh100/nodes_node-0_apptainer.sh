#!/usr/bin/env bash
# The steps of the run scripts, as gptoss carries them out one by one.
# shellcheck disable=SC1091,SC2030,SC2031 # it sources files of the run; each step is a subshell
set -euo pipefail
RUN_DIR="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")"/../.. && pwd -P)"
# Set IMAGE to another image or to a .sif file. HF_TOKEN is taken from your environment.
# To stop with a checkpoint, from another terminal: bash attempts/NN-train/signal.sh stop
# Name steps to carry out these alone: apptainer.sh prepare train export verify
for word in "$@"; do
  case $word in prepare | train | export | verify) ;;
    *) echo "apptainer.sh: there is no step '$word' here; there are: prepare train export verify" >&2; exit 2 ;;
  esac
done
wanted=("$@")
is_wanted() { [ "${#wanted[@]}" -eq 0 ] || [[ " ${wanted[*]} " == *" $1 "* ]]; }
step="the set-up" logs="$RUN_DIR"
on_end() { [ "$1" -eq 0 ] || echo "apptainer.sh: $step ended with exit code $1; its logs are in $logs" >&2; }
trap 'on_end "$?"' EXIT
[ -n "${IMAGE:-}" ] || IMAGE=docker://nvcr.io/nvidia/nemo:26.08
[ -n "${PYTHON:-}" ] || PYTHON=/opt/venv/bin/python
mkdir -p /HOME/.cache/huggingface
set -a; source "$RUN_DIR"/nodes/node-0/distributed_config.env; set +a # GPUS_PER_NODE NUM_NODES MASTER_ADDR MASTER_PORT NODE_RANK
export PYTHONUNBUFFERED=1
export PYTHONSAFEPATH=1
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=1800
export GPTOSS_BY_HAND=1
export PYTHONPATH="$RUN_DIR"/source
export CUDA_DEVICE_MAX_CONNECTIONS=32
export NCCL_NVLS_ENABLE=0
export NVTE_BWD_LAYERNORM_SM_MARGIN=20
export NVTE_FWD_LAYERNORM_SM_MARGIN=20
export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
export TORCH_NCCL_AVOID_RECORD_STREAMS=1
export TORCH_NCCL_HIGH_PRIORITY=1
export CUDA_DEVICE_ORDER=PCI_BUS_ID
export CUDA_VISIBLE_DEVICES=0,1,2,3,4,5,6,7
export HF_HOME=/HOME/.cache/huggingface
cd "$RUN_DIR"

# 1. Check or make the data, and the tiny model.
step=prepare logs="$RUN_DIR"/attempts/01-prepare
if is_wanted prepare; then (
  mkdir -p "$RUN_DIR"/attempts/01-prepare
  export GPTOSS_ATTEMPT="$RUN_DIR"/attempts/01-prepare
  apptainer \
    exec \
    --nv \
    --bind "$RUN_DIR":"$RUN_DIR",/HOME/.cache/huggingface:/HOME/.cache/huggingface \
    --pwd "$RUN_DIR" \
    "$IMAGE" \
    "$PYTHON" \
    -m engine.workers.prepare \
    "$RUN_DIR"
); fi

# 2. Train, saving checkpoints.
step=train logs="$RUN_DIR"/attempts/02-train
if is_wanted train; then (
  mkdir -p "$RUN_DIR"/attempts/02-train
  export GPTOSS_ATTEMPT="$RUN_DIR"/attempts/02-train
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
  apptainer \
    exec \
    --nv \
    --bind "$RUN_DIR":"$RUN_DIR",/HOME/.cache/huggingface:/HOME/.cache/huggingface \
    --pwd "$RUN_DIR" \
    "$IMAGE" \
    "$PYTHON" \
    -m torch.distributed.run \
    --nproc-per-node "$GPUS_PER_NODE" \
    --nnodes "$NUM_NODES" \
    --node-rank "$NODE_RANK" \
    --master-addr "$MASTER_ADDR" \
    --master-port "$MASTER_PORT" \
    --rdzv-conf timeout=300 \
    -m engine.workers.train \
    "$RUN_DIR"
); fi

# 3. Write the trained model as Hugging Face safetensors.
step=export logs="$RUN_DIR"/attempts/03-export
if is_wanted export; then (
  mkdir -p "$RUN_DIR"/attempts/03-export
  export GPTOSS_ATTEMPT="$RUN_DIR"/attempts/03-export
  apptainer \
    exec \
    --nv \
    --bind "$RUN_DIR":"$RUN_DIR",/HOME/.cache/huggingface:/HOME/.cache/huggingface \
    --pwd "$RUN_DIR" \
    "$IMAGE" \
    "$PYTHON" \
    -m torch.distributed.run \
    --nproc-per-node 1 \
    --nnodes 1 \
    --master-addr localhost \
    --master-port "$MASTER_PORT" \
    -m engine.workers.export \
    "$RUN_DIR"
); fi

# 4. Compare the exported model with the trained one on the same tokens.
step=verify logs="$RUN_DIR"/attempts/04-verify
if is_wanted verify; then (
  mkdir -p "$RUN_DIR"/attempts/04-verify
  export GPTOSS_ATTEMPT="$RUN_DIR"/attempts/04-verify
  apptainer \
    exec \
    --nv \
    --bind "$RUN_DIR":"$RUN_DIR",/HOME/.cache/huggingface:/HOME/.cache/huggingface \
    --pwd "$RUN_DIR" \
    "$IMAGE" \
    "$PYTHON" \
    -m torch.distributed.run \
    --nproc-per-node 1 \
    --nnodes 1 \
    --master-addr localhost \
    --master-port "$MASTER_PORT" \
    -m engine.workers.verify \
    "$RUN_DIR"
); fi
