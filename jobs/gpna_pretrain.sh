#!/bin/bash
#SBATCH -J gpna_pretrain
#SBATCH -A PROJECT                      # your allocation: export SBATCH_ACCOUNT, or sbatch -A; both win over this line
#SBATCH -N 8                            # 8 nodes x 8 GCDs x 32 samples = the config's global batch of 2048
#SBATCH -t 02:00:00                     # the longest that 1-91 nodes get; the job requeues itself until the run is done
#SBATCH -p batch
#SBATCH -C nvme                         # each node's own disk, for environment and shards
#SBATCH --network=disable_rdzv_get      # FI_CXI_RDZV_PROTO=alt_read of the rccl plug-in needs it
#SBATCH --signal=B:USR1@300             # to this script five minutes before the end: save, exit 85, requeue
#SBATCH --requeue
#SBATCH -o %x-%j.out
#SBATCH --open-mode=append              # a requeued job writes on
#
# GPNA on several sources at once, self-supervised: the 1 B backbone on OLCF's Frontier. Edit jobs/site.env, then from the repository's root
#   sbatch jobs/gpna_pretrain.sh      resumes by itself; the same line goes on with a run that was stopped
#   bash jobs/gpna_pretrain.sh        outside Slurm: this machine's ranks, without GPUs jobs/configs/gpna_debug.yaml
# Folders of the sources: the config's, or FRONTIER_OVERRIDES='data.sources.NAME.shards=FOLDER …'. Then: jobs/gpna_tasks.sh
# Other sites: `frontier submit jobs/configs/gpna_pretrain_1b.yaml --site NAME --nodes N`. Sources of every line: docs/sites.md.
set -euo pipefail
[ -f jobs/common.sh ] || cd "${FRONTIER_HOME:-$(dirname "$0")/..}" || exit 2
[ -f jobs/common.sh ] || { echo "job: no jobs/common.sh in $PWD: sbatch from the repository's root, or export FRONTIER_HOME" >&2; exit 2; }
source jobs/common.sh
job_begin
job_pretrain jobs/configs/gpna_pretrain_1b.yaml runs/gpna_pretrain_1b
