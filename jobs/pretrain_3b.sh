#!/bin/bash
#SBATCH -J pretrain_3b
#SBATCH -A PROJECT                      # your allocation; or: sbatch -A abc123 jobs/pretrain_3b.sh
#SBATCH -N 8                            # 8 nodes x 8 GCDs x 32 images = the config's global batch of 2048
#SBATCH -t 02:00:00                     # the longest that 1-91 nodes get on Frontier
#SBATCH -p batch
#SBATCH -C nvme
#SBATCH --network=disable_rdzv_get      # FI_CXI_RDZV_PROTO=alt_read needs it
#SBATCH --signal=USR1@300               # to every rank, five minutes before the end: save and exit 85
#SBATCH -o %x-%j.out
#SBATCH --open-mode=append
#
# Pretraining of the 3 B model on Frontier (OLCF), and the same path on any machine:
#   sbatch -A abc123 jobs/pretrain_3b.sh     from the repository's root, after editing jobs/site.env
#   bash jobs/pretrain_3b.sh                 outside Slurm: this machine's ranks; without GPUs a small preset
# The run resumes by itself: submit the same line again to go on. Settings follow OLCF's page on PyTorch (July 2026).
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"
source jobs/site.env
config=jobs/configs/mae_vit_3b.yaml
overrides=()
[ -n "$FRONTIER_SHARDS" ] && overrides+=("data.shards=$FRONTIER_SHARDS")
[ -n "$FRONTIER_RUN" ] && overrides+=("run.dir=$FRONTIER_RUN")
read -ra more <<<"$FRONTIER_OVERRIDES"

if [ -n "${SLURM_JOB_ID:-}" ]; then
  if command -v module >/dev/null; then
    module load PrgEnv-gnu/8.7.0 cpe/26.03 miniforge3/23.11.0-0 rocm/7.1.1 rccl-net-plugin craype-accel-amd-gfx90a
    export LD_LIBRARY_PATH=${CRAY_LD_LIBRARY_PATH:-}:${LD_LIBRARY_PATH:-}
  fi
  source "$FRONTIER_VENV/bin/activate"
  MASTER_ADDR=$(hostname -i | awk '{print $1}')
  export MASTER_ADDR MASTER_PORT=3442
  export NCCL_SOCKET_IFNAME=hsn0,hsn1,hsn2,hsn3             # where it hangs, OLCF advises hsn0 alone
  export MIOPEN_USER_DB_PATH=/tmp/$USER-miopen-$SLURM_JOB_ID  # node-local: MIOpen's database must not lie on Lustre or NFS
  export MIOPEN_CUSTOM_CACHE_DIR=$MIOPEN_USER_DB_PATH
  export HDF5_USE_FILE_LOCKING=FALSE OMP_NUM_THREADS=7
  srun -N "$SLURM_NNODES" --ntasks-per-node=1 mkdir -p "$MIOPEN_USER_DB_PATH"
  # One task a GCD, each seeing one device; 7 cores each: the first core of every L3 is kept for the system.
  code=0
  srun -N "$SLURM_NNODES" --ntasks-per-node=8 -c7 --gpus-per-task=1 --gpu-bind=closest \
    python3 -W ignore -u -m frontier pretrain "$config" "${overrides[@]}" "${more[@]}" || code=$?
  [ "$code" = 85 ] && echo "checkpointed before the end of the job: submit again to go on"
  exit "$code"
fi

source "$FRONTIER_VENV/bin/activate"
devices=$(python -c 'import torch; print(torch.accelerator.device_count())')
if [ "$devices" -gt 0 ]; then
  ranks=$devices
  echo "outside Slurm: the 3 B model on this machine's $ranks devices"
else
  ranks=${FRONTIER_RANKS:-2}
  shards=${FRONTIER_SHARDS:-shards/scenes}
  echo "outside Slurm and without a GPU: the same path with preset vit_debug on $ranks CPU ranks and the data in $shards"
  [ -f "$shards/manifest.json" ] || frontier shards write --scenes 2400 --sensors rgb --seed 0 "$shards"
  overrides+=("data.shards=$shards" data.image_size=null model.preset=vit_debug
    parallel.strategy="hybrid_$ranks" parallel.precision=fp32 train.epochs=null train.steps=20
    train.global_batch=64 train.micro_batch=16)
fi
exec frontier pretrain "$config" --ranks "$ranks" "${overrides[@]}" "${more[@]}"
