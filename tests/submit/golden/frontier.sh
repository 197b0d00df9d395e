#!/bin/bash
# frontier submit small.yaml --site frontier --nodes 8 --time 1:00:00 --account abc123 train.steps=40
#SBATCH -J small
#SBATCH -A abc123
#SBATCH -N 8
#SBATCH -t 01:00:00
#SBATCH -p batch
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH -o /HERE/runs/small/jobs/%x-%j.out
#SBATCH --open-mode=append
# FUG, Common Slurm Options; SBCAST: each node's NVMe, for the environment and the shards
#SBATCH -C nvme
# PT, Alternative Rendezvous Protocol: goes with FI_CXI_RDZV_PROTO=alt_read, which rccl-net-plugin sets: faster RCCL at large scale
#SBATCH --network=disable_rdzv_get
# shellcheck disable=SC2034,SC2054,SC2317
set -euo pipefail
cd /HERE
export USER=${USER:-$(id -un)}

# Settings: jobs/site.env tells what they mean.
FRONTIER_SITE=frontier
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

# OLCF Frontier. Made from frontier.yaml by `python -m frontier.submit.shell --write`: change that file instead.
#   PT: OLCF user documentation, software/analytics/pytorch_frontier.rst (olcf/olcf-user-docs 2745903, 2026-07-22)
#   FUG: OLCF user documentation, systems/frontier_user_guide.rst (olcf/olcf-user-docs 2745903, 2026-07-22)
#   SBCAST: OLCF user documentation, software/python/sbcast_conda.rst (olcf/olcf-user-docs 2745903, 2026-07-22)
#   ORION: OLCF user documentation, data/index.rst (olcf/olcf-user-docs 2745903, 2026-07-22)
#   NERSC: NERSC's deep-learning tutorial at SC25, submit_pm_dp.sh (NERSC/sc25-dl-tutorial 8c6ccde)
SITE=frontier
SITE_ACCOUNT=1
SITE_DEVICE=cuda
SITE_RANKS_PER_NODE=8
# SBCAST; FUG, Common Slurm Options: the NVMe of -C nvme: 2 x 1.92 TB, 5.5 GB/s read
SITE_LOCAL=/mnt/bb/$USER
SITE_MODULES=(
  PrgEnv-gnu/8.7.0 # PT, batch script
  cpe/26.03 # PT, batch script
  miniforge3/23.11.0-0 # PT, batch script: Python and conda
  rocm/7.1.1 # PT, batch script: the ROCm of the recommended wheel: torch 2.10.0 for rocm7.1
  rccl-net-plugin # PT, RCCL Network Plugin: after rocm; without it RCCL falls back to TCP sockets, which do not scale
  craype-accel-amd-gfx90a # PT, batch script
)
SITE_STEP=(
  -c7 # FUG, Low-noise Mode Layout; PT, batch script: 56 cores for 8 ranks: -S 8 keeps the first core of each L3 region for the system
  --gpus-per-task=1 # PT, batch script: every rank sees one GCD, as device 0
  --gpu-bind=closest # PT, batch script: the GCD that hangs on the rank's L3 region: rank 0 gets GCD 4; consecutive pairs of ranks share a module
)
SITE_WRAP=()

site_environment() {
  # The modules have set, so that nothing here repeats it:
  #   NCCL_NET_PLUGIN (PT, RCCL Network Plugin: rccl-net-plugin, to librccl-net.so)
  #   NCCL_CROSS_NIC=1 NCCL_NET_GDR_LEVEL=PHB (PT, RCCL Environment Variables: rccl-net-plugin)
  #   HSA_FORCE_FINE_GRAIN_PCIE=1 (PT, RCCL Environment Variables: rccl-net-plugin)
  #   FI_MR_CACHE_MONITOR=kdreg2 (PT, RCCL Environment Variables: rccl-net-plugin; userfaultfd is safe too, memhooks can deadlock)
  #   FI_CXI_DISABLE_HOST_REGISTER=1 FI_CXI_DEFAULT_CQ_SIZE=131072 FI_CXI_DEFAULT_TX_SIZE=2048 (PT, RCCL Environment Variables: rccl-net-plugin)
  #   FI_CXI_RDZV_PROTO=alt_read (PT, Alternative Rendezvous Protocol: rccl-net-plugin; needs --network=disable_rdzv_get)
  #   FI_CXI_RDZV_EAGER_SIZE=0 FI_CXI_RDZV_THRESHOLD=0 FI_CXI_RDZV_GET_MIN=0 FI_CXI_RX_MATCH_MODE=hybrid (PT, RCCL Environment Variables: rccl-net-plugin; see what it sets by 'module show rccl-net-plugin')
  # PT, batch script: cpe/26.03 is not the default CPE
  export LD_LIBRARY_PATH=${CRAY_LD_LIBRARY_PATH:+$CRAY_LD_LIBRARY_PATH:}${LD_LIBRARY_PATH:-}
  # PT, Master Address and Sockets: this script runs on the job's first node, where rank 0 will be; of several addresses the first
  MASTER_ADDR=${MASTER_ADDR:-$(hostname -i | cut -d" " -f1)} MASTER_PORT=${MASTER_PORT:-3442}
  # PT, Master Address and Sockets
  export MASTER_ADDR MASTER_PORT
  # PT, Master Address and Sockets: the Slingshot NICs; where it hangs, hsn0 alone
  export NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-hsn0,hsn1,hsn2,hsn3}
  # PT, Manual RCCL Network Plugin Configuration: RCCL ends with an error where the plugin is missing, instead of using TCP; a job of one node has no network to configure
  if [ "${SLURM_JOB_NUM_NODES:-1}" -gt 1 ]; then export NCCL_NET=${NCCL_NET:-OFI}; else export NCCL_NET=${NCCL_NET:-Socket}; fi
  # PT, batch script: MIOpen's database in a home folder gives disk I/O errors; on each node's own /tmp, one a job, so no other job's is deleted
  export MIOPEN_USER_DB_PATH=/tmp/$USER-miopen-$JOB_ID MIOPEN_CUSTOM_CACHE_DIR=/tmp/$USER-miopen-$JOB_ID
  # suite: the seven cores that -c7 gives a rank
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-7}
  # suite; as in NERSC: shards on Lustre are opened by all ranks, read-only
  export HDF5_USE_FILE_LOCKING=FALSE
  # suite; PT, Proxy Settings: compute nodes are closed off from the internet, so nothing waits for it
  export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1} WANDB_MODE=${WANDB_MODE:-offline}
}

site_once_a_node() {
  # PT, batch script: there mkdir runs on the first node alone; every node has its own /tmp
  mkdir -p "$MIOPEN_USER_DB_PATH"
}

# shellcheck source=jobs/common.sh
source /PACKAGE/jobs/common.sh
job_begin
job_pretrain small.yaml runs/small train.steps=40
