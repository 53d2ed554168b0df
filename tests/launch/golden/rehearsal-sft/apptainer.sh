#!/usr/bin/env bash
# The steps of the run scripts, as gptoss carries them out one by one.
# shellcheck disable=SC1091,SC2030,SC2031 # it sources files of the run; each step is a subshell
set -euo pipefail
RUN_DIR="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)"
# Set IMAGE to another image or to a .sif file. HF_TOKEN is taken from your environment.
# To stop with a checkpoint, from another terminal: bash attempts/NN-train/signal.sh stop
# Name steps to carry out these alone: apptainer.sh prepare convert train export verify
for word in "$@"; do
  case $word in prepare | convert | train | export | verify) ;;
    *) echo "apptainer.sh: there is no step '$word' here; there are: prepare convert train export verify" >&2; exit 2 ;;
  esac
done
wanted=("$@")
is_wanted() { [ "${#wanted[@]}" -eq 0 ] || [[ " ${wanted[*]} " == *" $1 "* ]]; }
step="the set-up" logs="$RUN_DIR"
on_end() { [ "$1" -eq 0 ] || echo "apptainer.sh: $step ended with exit code $1; its logs are in $logs" >&2; }
trap 'on_end "$?"' EXIT
[ -n "${IMAGE:-}" ] || IMAGE=docker://nvcr.io/nvidia/nemo:26.08
[ -n "${PYTHON:-}" ] || PYTHON=/opt/venv/bin/python
set -a; source "$RUN_DIR"/distributed_config.env; set +a # GPUS_PER_NODE NUM_NODES MASTER_ADDR MASTER_PORT NODE_RANK
export PYTHONUNBUFFERED=1
export PYTHONSAFEPATH=1
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=60
export GPTOSS_BY_HAND=1
export PYTHONPATH="$RUN_DIR"/source
export CUDA_VISIBLE_DEVICES=''
export OMP_NUM_THREADS=1
cd "$RUN_DIR"

# 1. Check or make the data, and the tiny model.
step=prepare logs="$RUN_DIR"/attempts/01-prepare
if is_wanted prepare; then (
  mkdir -p "$RUN_DIR"/attempts/01-prepare
  export GPTOSS_ATTEMPT="$RUN_DIR"/attempts/01-prepare
  apptainer \
    exec \
    --bind "$RUN_DIR":"$RUN_DIR" \
    --pwd "$RUN_DIR" \
    "$IMAGE" \
    "$PYTHON" \
    -m engine.workers.prepare \
    "$RUN_DIR"
); fi

# 2. Turn the Hugging Face weights into a Megatron checkpoint.
step=convert logs="$RUN_DIR"/attempts/02-convert
if is_wanted convert; then (
  mkdir -p "$RUN_DIR"/attempts/02-convert
  export GPTOSS_ATTEMPT="$RUN_DIR"/attempts/02-convert
  apptainer \
    exec \
    --bind "$RUN_DIR":"$RUN_DIR" \
    --pwd "$RUN_DIR" \
    "$IMAGE" \
    "$PYTHON" \
    -m torch.distributed.run \
    --nproc-per-node 1 \
    --nnodes 1 \
    --master-addr localhost \
    --master-port "$MASTER_PORT" \
    -m engine.workers.convert \
    "$RUN_DIR"
); fi

# 3. Train, saving checkpoints.
step=train logs="$RUN_DIR"/attempts/03-train
if is_wanted train; then (
  mkdir -p "$RUN_DIR"/attempts/03-train
  export GPTOSS_ATTEMPT="$RUN_DIR"/attempts/03-train
  apptainer \
    exec \
    --bind "$RUN_DIR":"$RUN_DIR" \
    --pwd "$RUN_DIR" \
    "$IMAGE" \
    "$PYTHON" \
    -m torch.distributed.run \
    --nproc-per-node "$GPUS_PER_NODE" \
    --nnodes "$NUM_NODES" \
    --node-rank "$NODE_RANK" \
    --master-addr "$MASTER_ADDR" \
    --master-port "$MASTER_PORT" \
    -m engine.workers.train \
    "$RUN_DIR"
); fi

# 4. Write the trained model as Hugging Face safetensors.
step=export logs="$RUN_DIR"/attempts/04-export
if is_wanted export; then (
  mkdir -p "$RUN_DIR"/attempts/04-export
  export GPTOSS_ATTEMPT="$RUN_DIR"/attempts/04-export
  apptainer \
    exec \
    --bind "$RUN_DIR":"$RUN_DIR" \
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

# 5. Compare the exported model with the trained one on the same tokens.
step=verify logs="$RUN_DIR"/attempts/05-verify
if is_wanted verify; then (
  mkdir -p "$RUN_DIR"/attempts/05-verify
  export GPTOSS_ATTEMPT="$RUN_DIR"/attempts/05-verify
  apptainer \
    exec \
    --bind "$RUN_DIR":"$RUN_DIR" \
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
