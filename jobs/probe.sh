#!/bin/bash
#SBATCH -J probe
#SBATCH -A PROJECT                      # your allocation: export SBATCH_ACCOUNT, or sbatch -A; both win over this line
#SBATCH -N 1                            # one process on one device; Frontier allots whole nodes
#SBATCH -t 02:00:00                     # the longest that 1-91 nodes get
#SBATCH -p batch
#SBATCH --requeue                       # after a lost node Slurm starts it anew
#SBATCH -o %x-%j.out
#SBATCH --open-mode=append
#
# All probes that the labels of the shards allow of a pretrained run, beside a random encoder: RUN/probe.json. From the repository's root
#   FRONTIER_RUN=runs/mae_vit_3b FRONTIER_SHARDS=shards/resisc45 sbatch jobs/probe.sh
#   sbatch --dependency=afterok:$(sbatch --parsable jobs/pretrain_3b.sh) jobs/probe.sh      when the run is done, requeues and all
# FRONTIER_RUN     the run, or one of its checkpoints (default: runs/mae_vit_3b)
# FRONTIER_SHARDS  labelled shards with the splits train and test (default: shards/millionaid)
# FRONTIER_PROBE   further words of `frontier probe`: --resize, --method knn, --batch 16 (15 B in float32 takes 55 of a GCD's 64 GiB)
# Outside Slurm: bash jobs/probe.sh. Sources of every line: docs/sites.md.
set -euo pipefail
[ -f jobs/common.sh ] || cd "${FRONTIER_HOME:-$(dirname "$0")/..}" || exit 2
[ -f jobs/common.sh ] || { echo "job: no jobs/common.sh in $PWD: sbatch from the repository's root, or export FRONTIER_HOME" >&2; exit 2; }
source jobs/common.sh
FRONTIER_RANKS_PER_NODE=1 # one process
job_begin
run=${FRONTIER_RUN:-runs/mae_vit_3b}
read -ra words <<<"${FRONTIER_PROBE:-}"
site_start
job_step 1 1 probe "$run" --data "${FRONTIER_SHARDS:-shards/millionaid}" ${words[@]+"${words[@]}"}
