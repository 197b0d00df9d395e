#!/bin/bash
# frontier submit small.yaml --site lumi --nodes 8 --time 1:00:00 --account abc123 train.steps=40
#SBATCH -J small
#SBATCH -A abc123
#SBATCH -N 8
#SBATCH -t 01:00:00
#SBATCH -p standard-g
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH -o /HERE/runs/small/jobs/%x-%j.out
#SBATCH --open-mode=append
# AIG, run_ddp_srun_4.sh: every rank sees all GCDs of its node: device = local rank
#SBATCH --gpus-per-node=8
# AIG, run_ddp_srun_4.sh: 56 of 64 cores are free for jobs
#SBATCH --cpus-per-task=7
# AIG, run_ddp_srun_4.sh
#SBATCH --mem-per-gpu=60G
# shellcheck disable=SC2034,SC2054,SC2317
set -euo pipefail
cd /HERE
export USER=${USER:-$(id -un)}

# Settings: jobs/site.env tells what they mean.
FRONTIER_SITE=lumi
FRONTIER_VENV=/VENV
FRONTIER_CONTAINER=
FRONTIER_PACK=
FRONTIER_LOCAL=
FRONTIER_SHARDS=
FRONTIER_STAGE_GIB=200
FRONTIER_RUN=runs/small
FRONTIER_OVERRIDES=
FRONTIER_RANKS_PER_NODE=8
FRONTIER_NODES=
FRONTIER_DOCTOR=0
FRONTIER_REQUEUE=1

# LUMI-G. Made from lumi.yaml by `python -m frontier.submit.shell --write`: change that file instead.
#   AIG: LUMI AI guide (Lumi-supercomputer/LUMI-AI-Guide a7e3387, 2026-05), 05-multi-gpu-and-node
#   QUICK: LUMI AI guide, 01-quickstart/run.sh (010eece)
#   STORE: LUMI AI guide (a7e3387), 04-data-storage
#   LUG: LUMI user guide, docs/runjobs/scheduled-jobs (Lumi-supercomputer/lumi-userguide 27f3bb3)
#   WORK: LUMI AI workshop, bonus_material/GPT_neo_IMDB_multinode/run_no_torchrun.sh (Lumi-supercomputer/Getting_Started_with_AI_workshop cfc45b7)
#   LAIF: public job scripts on LUMI of 2026 ('module load Local-LAIF lumi-aif-singularity-bindings', containers of 2026-05 to 2026-08)
#   NERSC: NERSC's deep-learning tutorial at SC25, submit_pm_dp.sh (NERSC/sc25-dl-tutorial 8c6ccde)
SITE=lumi
SITE_ACCOUNT=1
SITE_DEVICE=cuda
SITE_RANKS_PER_NODE=8
SITE_LOCAL=
SITE_MODULES=(
  Local-LAIF # LAIF: makes the modules of /appl/local/laifs/modules visible (AIG: 'module use' of that folder)
  lumi-aif-singularity-bindings # AIG, run_ddp_srun_4.sh: binds file systems, Slingshot's libraries and Slurm's folders into the container
)
SITE_STEP=(
  --cpu-bind=mask_cpu=0x00fe000000000000,0xfe00000000000000,0x0000000000fe0000,0x00000000fe000000,0x00000000000000fe,0x000000000000fe00,0x000000fe00000000,0x0000fe0000000000 # AIG, run_ddp_srun_4.sh: local rank i on the seven free cores of the L3 region of GCD i; --gpu-bind=closest is not used here. Whole nodes only
)
SITE_WRAP=(
  singularity run # AIG, run_ddp_srun_4.sh
  "${FRONTIER_CONTAINER:-}" # AIG, run_ddp_srun_4.sh: such as /appl/local/laifs/containers/lumi-multitorch-latest.sif (LAIF), with this package installed into it
)

site_environment() {
  # WORK: the Slingshot NICs (hsn0 to hsn3, by their prefix), not TCP over something slow
  export NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-hsn}
  # QUICK: off the shared file systems; one a job
  export MIOPEN_USER_DB_PATH=/tmp/$USER-miopen-$JOB_ID MIOPEN_CUSTOM_CACHE_DIR=/tmp/$USER-miopen-$JOB_ID
  # suite: the seven cores of a rank's mask
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-7}
  # suite; as in NERSC: shards on Lustre are opened by all ranks, read-only
  export HDF5_USE_FILE_LOCKING=FALSE
  # suite: a pretraining job needs nothing from outside
  export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1} WANDB_MODE=${WANDB_MODE:-offline}
}

site_once_a_node() {
  # QUICK: every node has its own /tmp
  mkdir -p "$MIOPEN_USER_DB_PATH"
}

# shellcheck source=jobs/common.sh
source /PACKAGE/jobs/common.sh
job_begin
job_pretrain small.yaml runs/small train.steps=40
