#!/bin/bash -l
# frontier submit small.yaml --site aurora --nodes 8 --time 1:00:00 --account abc123 train.steps=40
#PBS -N small
#PBS -A abc123
#PBS -q prod
#PBS -l select=8
#PBS -l walltime=01:00:00
#PBS -j oe
#PBS -k doe
#PBS -o /HERE/runs/small/jobs/
# RUN, Submitting a job: each chunk of select on a node of its own
#PBS -l place=scatter
# RUN, Submitting a job; PT: a job names the file systems it needs; DAOS: daos_user
#PBS -l filesystems=home:flare
# shellcheck disable=SC2034,SC2054,SC2317
set -euo pipefail
cd /HERE
export USER=${USER:-$(id -un)}
# PBS sends no signal before the end: the trainer stops by the clock.
FRONTIER_JOB_END=$(($(date +%s) + 3600))
export FRONTIER_JOB_END
again='qsub /HERE/runs/small/jobs/small.sh'

# Settings: jobs/site.env tells what they mean.
FRONTIER_SITE=aurora
FRONTIER_VENV=/VENV
FRONTIER_CONTAINER=
FRONTIER_PACK=
FRONTIER_LOCAL=
FRONTIER_SHARDS=
FRONTIER_STAGE_GIB=200
FRONTIER_RUN=runs/small
FRONTIER_OVERRIDES=
FRONTIER_RANKS_PER_NODE=12
FRONTIER_NODES=
FRONTIER_DOCTOR=0
FRONTIER_REQUEUE=1

# ALCF Aurora. Made from aurora.yaml by `python -m frontier.submit.shell --write`: change that file instead.
#   RUN: ALCF user guides, docs/aurora/running-jobs-aurora.md (argonne-lcf/user-guides 0037d9f)
#   PT: ALCF user guides, docs/aurora/data-science/frameworks/pytorch.md (argonne-lcf/user-guides 7d04a3f, 2026-08)
#   CCL: ALCF user guides, docs/aurora/data-science/frameworks/oneCCL.md (argonne-lcf/user-guides f550acf, of oneCCL 2021.14)
#   PY: ALCF user guides, docs/aurora/data-science/python.md (argonne-lcf/user-guides f03ed85)
#   SYS: ALCF user guides, docs/aurora, machine overview (argonne-lcf/user-guides 250861b)
#   NERSC: NERSC's deep-learning tutorial at SC25, submit_pm_dp.sh (NERSC/sc25-dl-tutorial 8c6ccde)
SITE=aurora
SITE_ACCOUNT=1
SITE_DEVICE=xpu
SITE_RANKS_PER_NODE=12
SITE_LOCAL=
SITE_MODULES=(
  frameworks # PY; PT: PyTorch for XPU, oneCCL, MPI: 2025.3.1 with torch 2.10 in 2026-08, updated every quarter. FRONTIER_VENV: python3 -m venv --system-site-packages made under it
)
SITE_STEP=(
  --cpu-bind=list:4-7:8-11:12-15:16-19:20-23:24-27:56-59:60-63:64-67:68-71:72-75:76-79 # PT, Setting the CPU Affinity, option 2: four cores for each of the 12 ranks, on the socket of its tile; cores 0 and 52 belong to the system since 2025-03 (RUN)
)
SITE_WRAP=()

site_environment() {
  # PT, pytorch_ddp.py: this script runs on the job's first node, where rank 0 will be; its name on Slingshot
  MASTER_ADDR=${MASTER_ADDR:-$(hostname -s).hsn.cm.aurora.alcf.anl.gov} MASTER_PORT=${MASTER_PORT:-2345}
  # PT, pytorch_ddp.py
  export MASTER_ADDR MASTER_PORT
  # PT; CCL, oneCCL environment variables: oneCCL finds the ranks through mpiexec's PMIx and talks by MPI
  export CCL_PROCESS_LAUNCHER=pmix CCL_ATL_TRANSPORT=mpi CCL_KVS_MODE=mpi
  # CCL, oneCCL environment variables: ALCF: against hangs and crashes at large scale, experimental
  export CCL_KVS_CONNECTION_TIMEOUT=600 CCL_KVS_USE_MPI_RANKS=1
  # CCL, oneCCL environment variables: ALCF: against hangs and crashes at large scale, experimental
  export CCL_ZE_CACHE_OPEN_IPC_HANDLES_THRESHOLD=1024
  # CCL, oneCCL environment variables: ALCF's best broadcast at large scale
  export CCL_BCAST=double_tree
  # CCL, oneCCL environment variables: ALCF's best all_reduce at large scale
  export CCL_ALLREDUCE_SCALEOUT="direct:0-1048576;rabenseifner:1048577-max"
  # PT; CCL: on earlier pages (CCL): disabled
  export FI_MR_CACHE_MONITOR=${FI_MR_CACHE_MONITOR:-userfaultfd}
  # PT, Setting the CPU Affinity: with four cores a rank oneCCL takes its own from the last 24
  unset CCL_WORKER_AFFINITY
  # suite: the four cores of a rank's binding
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}
  # suite; as in NERSC: shards on Lustre are opened by all ranks, read-only
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
