#!/bin/bash
#SBATCH -J scale_alibi_evaluate
#SBATCH -A PROJECT                      # your allocation: export SBATCH_ACCOUNT, or sbatch -A; both win over this line
#SBATCH -N 1                            # one process on one device; Frontier allots whole nodes
#SBATCH -t 02:00:00                     # the longest that 1-91 nodes get
#SBATCH -p batch
#SBATCH --requeue                       # after a lost node Slurm starts it anew
#SBATCH -o %x-%j.out
#SBATCH --open-mode=append
#
# A Scale-ALiBi run on tiles that it has not seen: retrieval across sensors and hidden patches, beside an untrained model: RUN/evaluation.json. From the
# repository's root
#   FRONTIER_RUN=runs/scale_alibi_base sbatch jobs/scale_alibi_evaluate.sh
#   sbatch --dependency=afterok:$(sbatch --parsable jobs/scale_alibi_pretrain.sh) jobs/scale_alibi_evaluate.sh      when the run is done, requeues and all
# FRONTIER_RUN       the run, or one of its checkpoints (default: runs/scale_alibi_base)
# FRONTIER_EVALUATE  further words of `frontier evaluate`: --limit 2000 --crop-scale 0.25,1 (default: --split test)
# Labelled shards: jobs/probe.sh with the same FRONTIER_RUN. Outside Slurm: bash jobs/scale_alibi_evaluate.sh. Sources of every line: docs/sites.md.
set -euo pipefail
[ -f jobs/common.sh ] || cd "${FRONTIER_HOME:-$(dirname "$0")/..}" || exit 2
[ -f jobs/common.sh ] || { echo "job: no jobs/common.sh in $PWD: sbatch from the repository's root, or export FRONTIER_HOME" >&2; exit 2; }
source jobs/common.sh
FRONTIER_RANKS_PER_NODE=1 # one process
job_begin
run=${FRONTIER_RUN:-runs/scale_alibi_base}
read -ra words <<<"${FRONTIER_EVALUATE:---split test}"
site_start
job_step 1 1 evaluate "$run" "${words[@]}"
