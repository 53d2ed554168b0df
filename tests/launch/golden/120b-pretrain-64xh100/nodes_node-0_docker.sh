#!/usr/bin/env bash
# The steps of the run scripts, as gptoss carries them out one by one.
# shellcheck disable=SC1091,SC2030,SC2031 # it sources files of the run; each step is a subshell
set -euo pipefail
RUN_DIR="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")"/../.. && pwd -P)"
# Set IMAGE and CONTAINER_RUNTIME to change what is started. HF_TOKEN is taken from your environment.
# To stop with a checkpoint, from another terminal: docker exec NAME bash .../signal.sh stop
# Name steps to carry out these alone: docker.sh prepare train export verify
for word in "$@"; do
  case $word in prepare | train | export | verify) ;;
    *) echo "docker.sh: there is no step '$word' here; there are: prepare train export verify" >&2; exit 2 ;;
  esac
done
wanted=("$@")
is_wanted() { [ "${#wanted[@]}" -eq 0 ] || [[ " ${wanted[*]} " == *" $1 "* ]]; }
step="the set-up" logs="$RUN_DIR"
on_end() { [ "$1" -eq 0 ] || echo "docker.sh: $step ended with exit code $1; its logs are in $logs" >&2; }
trap 'on_end "$?"' EXIT
[ -n "${CONTAINER_RUNTIME:-}" ] || CONTAINER_RUNTIME=docker
[ -n "${IMAGE:-}" ] || IMAGE=nvcr.io/nvidia/nemo:26.08
[ -n "${PYTHON:-}" ] || PYTHON=/opt/venv/bin/python
mkdir -p /HOME/.cache/huggingface
set -a; source "$RUN_DIR"/nodes/node-0/distributed_config.env; set +a # GPUS_PER_NODE NUM_NODES MASTER_ADDR MASTER_PORT NODE_RANK
cd "$RUN_DIR"

# 1. Check or make the data, and the tiny model.
step=prepare logs="$RUN_DIR"/attempts/01-prepare
if is_wanted prepare; then (
  mkdir -p "$RUN_DIR"/attempts/01-prepare
  "$CONTAINER_RUNTIME" \
    run \
    --rm \
    --name gptoss-scripts-01-prepare \
    --detach-keys ctrl-@,ctrl-@ \
    --ipc=host \
    --network=host \
    --ulimit memlock=-1 \
    --ulimit stack=67108864 \
    --init \
    --gpus all \
    --user 1000:1000 \
    --env GPTOSS_ATTEMPT="$RUN_DIR"/attempts/01-prepare \
    --env PYTHONUNBUFFERED=1 \
    --env PYTHONSAFEPATH=1 \
    --env TORCH_ELASTIC_SHUTDOWN_TIMEOUT=1800 \
    --env GPTOSS_BY_HAND=1 \
    --env PYTHONPATH="$RUN_DIR"/source \
    --env CUDA_DEVICE_MAX_CONNECTIONS=32 \
    --env NCCL_NVLS_ENABLE=0 \
    --env NVTE_BWD_LAYERNORM_SM_MARGIN=20 \
    --env NVTE_FWD_LAYERNORM_SM_MARGIN=20 \
    --env PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True \
    --env TORCH_NCCL_AVOID_RECORD_STREAMS=1 \
    --env TORCH_NCCL_HIGH_PRIORITY=1 \
    --env CUDA_DEVICE_ORDER=PCI_BUS_ID \
    --env CUDA_VISIBLE_DEVICES=0,1,2,3,4,5,6,7 \
    --env HF_TOKEN \
    --env HF_HUB_OFFLINE \
    --env HTTPS_PROXY \
    --env HTTP_PROXY \
    --env NO_PROXY \
    --env NCCL_DEBUG \
    --env GLOO_SOCKET_IFNAME \
    --env NCCL_SOCKET_IFNAME \
    --env HOME=/tmp \
    --env USER=gptoss \
    --env HF_HOME=/HOME/.cache/huggingface \
    --mount type=bind,source="$RUN_DIR",target="$RUN_DIR" \
    --mount type=bind,source=/HOME/.cache/huggingface,target=/HOME/.cache/huggingface \
    --workdir "$RUN_DIR" \
    "$IMAGE" \
    "$PYTHON" \
    -m engine.workers.prepare \
    "$RUN_DIR"
); fi

# 2. Train, saving checkpoints.
step=train logs="$RUN_DIR"/attempts/02-train
if is_wanted train; then (
  mkdir -p "$RUN_DIR"/attempts/02-train
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
  "$CONTAINER_RUNTIME" \
    run \
    --rm \
    --name gptoss-scripts-02-train \
    --detach-keys ctrl-@,ctrl-@ \
    --ipc=host \
    --network=host \
    --ulimit memlock=-1 \
    --ulimit stack=67108864 \
    --init \
    --gpus all \
    --user 1000:1000 \
    --env GPTOSS_ATTEMPT="$RUN_DIR"/attempts/02-train \
    --env PYTHONUNBUFFERED=1 \
    --env PYTHONSAFEPATH=1 \
    --env TORCH_ELASTIC_SHUTDOWN_TIMEOUT=1800 \
    --env GPTOSS_BY_HAND=1 \
    --env PYTHONPATH="$RUN_DIR"/source \
    --env CUDA_DEVICE_MAX_CONNECTIONS=32 \
    --env NCCL_NVLS_ENABLE=0 \
    --env NVTE_BWD_LAYERNORM_SM_MARGIN=20 \
    --env NVTE_FWD_LAYERNORM_SM_MARGIN=20 \
    --env PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True \
    --env TORCH_NCCL_AVOID_RECORD_STREAMS=1 \
    --env TORCH_NCCL_HIGH_PRIORITY=1 \
    --env CUDA_DEVICE_ORDER=PCI_BUS_ID \
    --env CUDA_VISIBLE_DEVICES=0,1,2,3,4,5,6,7 \
    --env HF_TOKEN \
    --env HF_HUB_OFFLINE \
    --env HTTPS_PROXY \
    --env HTTP_PROXY \
    --env NO_PROXY \
    --env NCCL_DEBUG \
    --env GLOO_SOCKET_IFNAME \
    --env NCCL_SOCKET_IFNAME \
    --env HOME=/tmp \
    --env USER=gptoss \
    --env HF_HOME=/HOME/.cache/huggingface \
    --mount type=bind,source="$RUN_DIR",target="$RUN_DIR" \
    --mount type=bind,source=/HOME/.cache/huggingface,target=/HOME/.cache/huggingface \
    --workdir "$RUN_DIR" \
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
  "$CONTAINER_RUNTIME" \
    run \
    --rm \
    --name gptoss-scripts-03-export \
    --detach-keys ctrl-@,ctrl-@ \
    --ipc=host \
    --network=host \
    --ulimit memlock=-1 \
    --ulimit stack=67108864 \
    --init \
    --gpus all \
    --user 1000:1000 \
    --env GPTOSS_ATTEMPT="$RUN_DIR"/attempts/03-export \
    --env PYTHONUNBUFFERED=1 \
    --env PYTHONSAFEPATH=1 \
    --env TORCH_ELASTIC_SHUTDOWN_TIMEOUT=1800 \
    --env GPTOSS_BY_HAND=1 \
    --env PYTHONPATH="$RUN_DIR"/source \
    --env CUDA_DEVICE_MAX_CONNECTIONS=32 \
    --env NCCL_NVLS_ENABLE=0 \
    --env NVTE_BWD_LAYERNORM_SM_MARGIN=20 \
    --env NVTE_FWD_LAYERNORM_SM_MARGIN=20 \
    --env PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True \
    --env TORCH_NCCL_AVOID_RECORD_STREAMS=1 \
    --env TORCH_NCCL_HIGH_PRIORITY=1 \
    --env CUDA_DEVICE_ORDER=PCI_BUS_ID \
    --env CUDA_VISIBLE_DEVICES=0,1,2,3,4,5,6,7 \
    --env HF_TOKEN \
    --env HF_HUB_OFFLINE \
    --env HTTPS_PROXY \
    --env HTTP_PROXY \
    --env NO_PROXY \
    --env NCCL_DEBUG \
    --env GLOO_SOCKET_IFNAME \
    --env NCCL_SOCKET_IFNAME \
    --env HOME=/tmp \
    --env USER=gptoss \
    --env HF_HOME=/HOME/.cache/huggingface \
    --mount type=bind,source="$RUN_DIR",target="$RUN_DIR" \
    --mount type=bind,source=/HOME/.cache/huggingface,target=/HOME/.cache/huggingface \
    --workdir "$RUN_DIR" \
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
  "$CONTAINER_RUNTIME" \
    run \
    --rm \
    --name gptoss-scripts-04-verify \
    --detach-keys ctrl-@,ctrl-@ \
    --ipc=host \
    --network=host \
    --ulimit memlock=-1 \
    --ulimit stack=67108864 \
    --init \
    --gpus all \
    --user 1000:1000 \
    --env GPTOSS_ATTEMPT="$RUN_DIR"/attempts/04-verify \
    --env PYTHONUNBUFFERED=1 \
    --env PYTHONSAFEPATH=1 \
    --env TORCH_ELASTIC_SHUTDOWN_TIMEOUT=1800 \
    --env GPTOSS_BY_HAND=1 \
    --env PYTHONPATH="$RUN_DIR"/source \
    --env CUDA_DEVICE_MAX_CONNECTIONS=32 \
    --env NCCL_NVLS_ENABLE=0 \
    --env NVTE_BWD_LAYERNORM_SM_MARGIN=20 \
    --env NVTE_FWD_LAYERNORM_SM_MARGIN=20 \
    --env PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True \
    --env TORCH_NCCL_AVOID_RECORD_STREAMS=1 \
    --env TORCH_NCCL_HIGH_PRIORITY=1 \
    --env CUDA_DEVICE_ORDER=PCI_BUS_ID \
    --env CUDA_VISIBLE_DEVICES=0,1,2,3,4,5,6,7 \
    --env HF_TOKEN \
    --env HF_HUB_OFFLINE \
    --env HTTPS_PROXY \
    --env HTTP_PROXY \
    --env NO_PROXY \
    --env NCCL_DEBUG \
    --env GLOO_SOCKET_IFNAME \
    --env NCCL_SOCKET_IFNAME \
    --env HOME=/tmp \
    --env USER=gptoss \
    --env HF_HOME=/HOME/.cache/huggingface \
    --mount type=bind,source="$RUN_DIR",target="$RUN_DIR" \
    --mount type=bind,source=/HOME/.cache/huggingface,target=/HOME/.cache/huggingface \
    --workdir "$RUN_DIR" \
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
