#!/bin/bash
#SBATCH -J scaling_study
#SBATCH -A PROJECT                      # your allocation: export SBATCH_ACCOUNT, or sbatch -A; both win over this line
#SBATCH -N 8                            # the job measures the study's points that take so many nodes
#SBATCH -t 02:00:00                     # the longest that 1-91 nodes get; the job requeues itself until all points are measured
#SBATCH -p batch
#SBATCH -C nvme                         # each node's own disk, for the environment
#SBATCH --network=disable_rdzv_get      # FI_CXI_RDZV_PROTO=alt_read of the rccl plug-in needs it
#SBATCH --signal=B:USR1@300             # to this script five minutes before the end: the present point waits, exit 85, requeue
#SBATCH --requeue
#SBATCH -o %x-%j.out
#SBATCH --open-mode=append              # a requeued job writes on
#
# A scaling study inside one allocation: every point is `frontier pretrain` under srun; out of memory and timeouts are results; at its
# end RUN/report.html holds what has been measured. From the repository's root
#   sbatch jobs/scaling_study.sh
#   for n in 1 2 4 8 16 32; do sbatch -N $n jobs/scaling_study.sh; done        one folder, one report
# FRONTIER_STUDY      a shipped study (`frontier sweep --list`) or a YAML file (default: weak_scaling)
# FRONTIER_RUN        folder of the study (default: runs/studies/STUDY)
# FRONTIER_OVERRIDES  its values: steps=20 time_limit_s=300 data.shards=...
# FRONTIER_ONLY       its points (default: */*/NODES, those that fill this job; *: all that fit into it)
# FRONTIER_SWEEP      further words of `frontier sweep`: --retry failed
# A job for each number of nodes in one go: `frontier sweep STUDY --mode submitted --site NAME`. Outside Slurm: bash jobs/scaling_study.sh
# measures laptop_weak_scaling. Sources of every line: docs/sites.md.
set -euo pipefail
[ -f jobs/common.sh ] || cd "${FRONTIER_HOME:-$(dirname "$0")/..}" || exit 2
[ -f jobs/common.sh ] || { echo "job: no jobs/common.sh in $PWD: sbatch from the repository's root, or export FRONTIER_HOME" >&2; exit 2; }
source jobs/common.sh
source jobs/study.sh
job_begin
study=weak_scaling only="*/*/$nodes"
[ "$launcher" != none ] || study=laptop_weak_scaling only="*"
study=${FRONTIER_STUDY:-$study} only=${FRONTIER_ONLY:-$only}
out=${FRONTIER_RUN:-runs/studies/$(basename "$study" .yaml)}
run=$out/jobs/n$nodes
read -ra values <<<"ranks_per_node=$ranks_per_node $FRONTIER_OVERRIDES"
read -ra more <<<"${FRONTIER_SWEEP:-}"
job_study "$out" "$study" --only "$only" --set "${values[@]}" ${more[@]+"${more[@]}"}
