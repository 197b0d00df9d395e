#!/bin/bash
#SBATCH -J scale_alibi_pretrain
#SBATCH -A PROJECT                      # your allocation: export SBATCH_ACCOUNT, or sbatch -A; both win over this line
#SBATCH -N 16                           # 16 nodes x 8 GCDs x 56 samples = the config's global batch of 7168
#SBATCH -t 02:00:00                     # the longest that 1-91 nodes get; the job requeues itself until the run is done
#SBATCH -p batch
#SBATCH -C nvme                         # each node's own disk, for environment and shards
#SBATCH --network=disable_rdzv_get      # FI_CXI_RDZV_PROTO=alt_read of the rccl plug-in needs it
#SBATCH --signal=B:USR1@300             # to this script five minutes before the end: save, exit 85, requeue
#SBATCH --requeue
#SBATCH -o %x-%j.out
#SBATCH --open-mode=append              # a requeued job writes on
#
# Scale-ALiBi on aligned tiles of Sentinel-1, Sentinel-2 and NAIP: the paper's model on OLCF's Frontier. Edit jobs/site.env, then from the repository's root
#   sbatch jobs/scale_alibi_pretrain.sh     resumes by itself; the same line goes on with a run that was stopped
#   bash jobs/scale_alibi_pretrain.sh       outside Slurm: this machine's ranks, without GPUs jobs/configs/scale_alibi_debug.yaml
# Then: jobs/scale_alibi_evaluate.sh. Other sites and sizes: `frontier submit jobs/configs/scale_alibi_large.yaml --site NAME --nodes N`.
# Sources of every line: docs/sites.md.
set -euo pipefail
[ -f jobs/common.sh ] || cd "${FRONTIER_HOME:-$(dirname "$0")/..}" || exit 2
[ -f jobs/common.sh ] || { echo "job: no jobs/common.sh in $PWD: sbatch from the repository's root, or export FRONTIER_HOME" >&2; exit 2; }
source jobs/common.sh
job_begin
job_pretrain jobs/configs/scale_alibi_base.yaml runs/scale_alibi_base
