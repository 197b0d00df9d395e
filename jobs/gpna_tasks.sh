#!/bin/bash
#SBATCH -J gpna_tasks
#SBATCH -A PROJECT                      # your allocation: export SBATCH_ACCOUNT, or sbatch -A; both win over this line
#SBATCH -N 2                            # 2 nodes x 8 GCDs x 16 samples = the config's global batch of 256
#SBATCH -t 02:00:00                     # the longest that 1-91 nodes get; the job requeues itself until the run is done
#SBATCH -p batch
#SBATCH -C nvme                         # each node's own disk, for environment and shards
#SBATCH --network=disable_rdzv_get      # FI_CXI_RDZV_PROTO=alt_read of the rccl plug-in needs it
#SBATCH --signal=B:USR1@300             # to this script five minutes before the end: save, exit 85, requeue
#SBATCH --requeue
#SBATCH -o %x-%j.out
#SBATCH --open-mode=append              # a requeued job writes on
#
# GPNA fine-tuned on several tasks with one set of weights, from a pretrained backbone (train.start_from). From the repository's root
#   sbatch jobs/gpna_tasks.sh         resumes by itself
#   sbatch --dependency=afterok:$(sbatch --parsable jobs/gpna_pretrain.sh) jobs/gpna_tasks.sh      when pretraining is done, requeues and all
#   FRONTIER_OVERRIDES=train.start_from=null sbatch jobs/gpna_tasks.sh       from scratch
# Outside Slurm: bash jobs/gpna_tasks.sh. Other sites: `frontier submit jobs/configs/gpna_tasks.yaml --site NAME --nodes N`.
set -euo pipefail
[ -f jobs/common.sh ] || cd "${FRONTIER_HOME:-$(dirname "$0")/..}" || exit 2
[ -f jobs/common.sh ] || { echo "job: no jobs/common.sh in $PWD: sbatch from the repository's root, or export FRONTIER_HOME" >&2; exit 2; }
source jobs/common.sh
job_begin
job_pretrain jobs/configs/gpna_tasks.yaml runs/gpna_tasks
