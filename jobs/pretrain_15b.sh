#!/bin/bash
#SBATCH -J pretrain_15b
#SBATCH -A PROJECT                      # your allocation: export SBATCH_ACCOUNT, or sbatch -A; both win over this line
#SBATCH -N 16                           # 16 nodes x 8 GCDs x 32 images = the config's global batch of 4096
#SBATCH -t 02:00:00                     # the longest that 1-91 nodes get; the job requeues itself until the run is done
#SBATCH -p batch
#SBATCH -C nvme                         # each node's own disk, for environment and shards
#SBATCH --network=disable_rdzv_get      # FI_CXI_RDZV_PROTO=alt_read of the rccl plug-in needs it
#SBATCH --signal=B:USR1@300             # to this script five minutes before the end: save, exit 85, requeue
#SBATCH --requeue
#SBATCH -o %x-%j.out
#SBATCH --open-mode=append              # a requeued job writes on
#
# Pretraining of the 15 B model on OLCF's Frontier. Why 16 nodes and shard_grad_op: the config's first lines. Edit jobs/site.env, then from
# the repository's root
#   sbatch jobs/pretrain_15b.sh       resumes by itself; the same line goes on with a run that was stopped, on any number of nodes
# Other sites: `frontier submit jobs/configs/mae_vit_15b.yaml --site NAME --nodes N`. Sources of every line: docs/sites.md.
set -euo pipefail
[ -f jobs/common.sh ] || cd "${FRONTIER_HOME:-$(dirname "$0")/..}" || exit 2
[ -f jobs/common.sh ] || { echo "job: no jobs/common.sh in $PWD: sbatch from the repository's root, or export FRONTIER_HOME" >&2; exit 2; }
source jobs/common.sh
job_begin
job_pretrain jobs/configs/mae_vit_15b.yaml runs/mae_vit_15b
