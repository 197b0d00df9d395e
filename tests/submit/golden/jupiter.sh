#!/bin/bash
# frontier submit small.yaml --site jupiter --nodes 8 --time 1:00:00 --account abc123 train.steps=40
#SBATCH -J small
#SBATCH -A abc123
#SBATCH -N 8
#SBATCH -t 01:00:00
#SBATCH -p booster
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH -o /HERE/runs/small/jobs/%x-%j.out
#SBATCH --open-mode=append
# JWB; COURSE: four superchips a node
#SBATCH --gres=gpu:4
# shellcheck disable=SC2034,SC2054,SC2317
set -euo pipefail
cd /HERE
export USER=${USER:-$(id -un)}

# Settings: jobs/site.env tells what they mean.
FRONTIER_SITE=jupiter
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

# JSC JUPITER Booster. Made from jupiter.yaml by `python -m frontier.submit.shell --write`: change that file instead.
#   JUP: apps.fz-juelich.de/jsc/hps/jupiter/batchsystem.html and configuration.html (read 2026-11, of the batch system page only the beginning)
#   PUB: a public job script for JUPITER ('#SBATCH --partition=booster  # JUPITER Booster Partition'), found 2026-11
#   JWB: job script for JUWELS Booster (gist of mehdidc, 59ae)
#   COURSE: JSC's course of 2023 (account training2324, JUWELS Booster): 'Very important to make the GPUs visible'
#   ITW: interTwin-eu/itwinai, src/itwinai/slurm/system-base-scripts/juwels.sh
#   NERSC: NERSC's deep-learning tutorial at SC25, submit_pm_dp.sh (NERSC/sc25-dl-tutorial 8c6ccde)
SITE=jupiter
SITE_ACCOUNT=1
SITE_DEVICE=cuda
SITE_RANKS_PER_NODE=4
SITE_LOCAL=
SITE_MODULES=()
SITE_STEP=(
  --cpus-per-task=72 # JUP, configuration; JWB: one superchip's cores a rank; said to srun, which does not take it from sbatch (JWB: SRUN_CPUS_PER_TASK)
)
SITE_WRAP=()

site_environment() {
  # JWB; ITW
  local host; host=$(scontrol show hostnames "${SLURM_JOB_NODELIST:-}" 2>/dev/null | sed -n 1p) || host=
  # JWB; ITW: the suffix i is a node's name on InfiniBand on JSC's machines; no page says so of JUPITER, so only where that name resolves
  if [ -n "$host" ] && getent hosts "${host}i" >/dev/null; then export MASTER_ADDR=${MASTER_ADDR:-${host}i}; fi
  # COURSE; JWB: every rank sees all four: device = local rank
  export CUDA_VISIBLE_DEVICES=0,1,2,3
  # suite: the cores of a superchip (JUP)
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-72}
  # suite; as in NERSC: shards on a parallel file system are opened by all ranks, read-only
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
