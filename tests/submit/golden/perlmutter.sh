#!/bin/bash
# frontier submit small.yaml --site perlmutter --nodes 8 --time 1:00:00 --account abc123 train.steps=40
#SBATCH -J small
#SBATCH -A abc123
#SBATCH -N 8
#SBATCH -t 01:00:00
#SBATCH -q regular
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH -o /HERE/runs/small/jobs/%x-%j.out
#SBATCH --open-mode=append
# TUT: GPU nodes
#SBATCH -C gpu
# TUT: every rank sees all four: device = local rank
#SBATCH --gpus-per-node=4
# shellcheck disable=SC2034,SC2054,SC2317
set -euo pipefail
cd /HERE
export USER=${USER:-$(id -un)}

# Settings: jobs/site.env tells what they mean.
FRONTIER_SITE=perlmutter
FRONTIER_VENV=/VENV
FRONTIER_CONTAINER=
FRONTIER_PACK=
FRONTIER_LOCAL=
FRONTIER_SHARDS=
FRONTIER_STAGE_GIB=200
FRONTIER_RUN=runs/small
FRONTIER_OVERRIDES=
FRONTIER_RANKS_PER_NODE=4
FRONTIER_NODES=
FRONTIER_DOCTOR=0
FRONTIER_REQUEUE=1

# NERSC Perlmutter, GPU nodes. Made from perlmutter.yaml by `python -m frontier.submit.shell --write`: change that file instead.
#   TUT: NERSC's deep-learning tutorial at SC25, submit_pm_dp.sh and export_DDP_vars.sh (NERSC/sc25-dl-tutorial 8c6ccde)
#   POL: docs.nersc.gov/jobs/policy (stored copy, read 2026-11)
#   ARCH: docs.nersc.gov/systems/perlmutter/architecture
SITE=perlmutter
SITE_ACCOUNT=1
SITE_DEVICE=cuda
SITE_RANKS_PER_NODE=4
SITE_LOCAL=
SITE_MODULES=()
SITE_STEP=(
  --cpus-per-task=32 # TUT: hardware threads: 64 cores x 2 for 4 ranks; said to srun, which does not take it from sbatch
)
SITE_WRAP=(
  shifter # TUT
  --image="${FRONTIER_CONTAINER:-}" # TUT: such as nersc/pytorch:25.06.01
  --module=gpu,nccl-plugin # TUT: the GPU's libraries and NCCL's plugin for Slingshot
)

site_environment() {
  # TUT: Slurm's default CPU affinities run the other way: local rank 0 is next to GPU 3
  export CUDA_VISIBLE_DEVICES=3,2,1,0
  # TUT
  export FI_MR_CACHE_MONITOR=${FI_MR_CACHE_MONITOR:-userfaultfd}
  # suite: 64 cores for 4 ranks (ARCH), one thread a core
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-16}
  # TUT
  export HDF5_USE_FILE_LOCKING=FALSE
  # suite: a pretraining job needs nothing from outside
  export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1} WANDB_MODE=${WANDB_MODE:-offline}
}

site_once_a_node() {
  :
}

# shellcheck source=jobs/common.sh
source /PACKAGE/jobs/common.sh
job_begin
job_pretrain small.yaml runs/small train.steps=40
