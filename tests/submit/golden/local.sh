#!/bin/bash
# frontier submit small.yaml --site local --nodes 8 --time 1:00:00 --account abc123 train.steps=40
#SBATCH -J small
#SBATCH -A abc123
#SBATCH -N 8
#SBATCH -t 01:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH -o /HERE/runs/small/jobs/%x-%j.out
#SBATCH --open-mode=append
# shellcheck disable=SC2034,SC2054,SC2317
set -euo pipefail
cd /HERE
export USER=${USER:-$(id -un)}

# Settings: jobs/site.env tells what they mean.
FRONTIER_SITE=local
FRONTIER_VENV=/VENV
FRONTIER_CONTAINER=
FRONTIER_PACK=
FRONTIER_LOCAL=
FRONTIER_SHARDS=
FRONTIER_STAGE_GIB=200
FRONTIER_RUN=runs/small
FRONTIER_OVERRIDES=
FRONTIER_RANKS_PER_NODE=2
FRONTIER_NODES=
FRONTIER_DOCTOR=0
FRONTIER_REQUEUE=1

# Any other Slurm, or no scheduler at all. Made from local.yaml by `python -m frontier.submit.shell --write`: change that file instead.
SITE=local
SITE_ACCOUNT=0
SITE_DEVICE=auto
# suite: a rank for each device that Slurm gave
SITE_RANKS_PER_NODE=$(printenv SLURM_GPUS_ON_NODE) || true
# suite: or that CUDA_VISIBLE_DEVICES names; set and empty: none
[ -n "$SITE_RANKS_PER_NODE" ] || SITE_RANKS_PER_NODE=$([ -z "${CUDA_VISIBLE_DEVICES+set}" ] || tr , "\n" <<<"$CUDA_VISIBLE_DEVICES" | grep -c "^[^-]") || true
# suite: or that NVIDIA's or AMD's driver shows
[ -n "$SITE_RANKS_PER_NODE" ] || SITE_RANKS_PER_NODE=$({ nvidia-smi -L; grep -h "^simd_count [1-9]" /sys/class/kfd/kfd/topology/nodes/*/properties; } 2>/dev/null | grep -cE "^(GPU|simd_count)") || true
[ "${SITE_RANKS_PER_NODE:-0}" -gt 0 ] || SITE_RANKS_PER_NODE=2
SITE_LOCAL=
SITE_MODULES=()
SITE_STEP=()
SITE_WRAP=()

site_environment() {
  # suite: shards may lie on a network file system; they are opened read-only
  export HDF5_USE_FILE_LOCKING=FALSE
  # suite: the cores that a rank was given; without Slurm the ranks share this machine's
  if [ -n "${SLURM_JOB_ID:-}" ]; then export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}; fi
}

site_once_a_node() {
  :
}

# shellcheck source=jobs/common.sh
source /PACKAGE/jobs/common.sh
job_begin
job_pretrain small.yaml runs/small train.steps=40
