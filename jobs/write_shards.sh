#!/bin/bash
#SBATCH -J write_shards
#SBATCH -A PROJECT                      # your allocation: export SBATCH_ACCOUNT, or sbatch -A; both win over this line
#SBATCH -N 1                            # more nodes write more shards at a time; they talk through mpi4py
#SBATCH -t 02:00:00                     # the longest that 1-91 nodes get; the job requeues itself until the shards are whole
#SBATCH -p batch                        # no GPU is used: take a partition without where there is one (export SBATCH_PARTITION)
#SBATCH --signal=B:USR1@60              # to this script a minute before the end: whole shards stay, the others are written again
#SBATCH --requeue
#SBATCH -o %x-%j.out
#SBATCH --open-mode=append              # a requeued job writes on
#
# An archive of imagery into HDF5 shards, with all cores of a node, or of several. From the repository's root
#   FRONTIER_ARCHIVE=/lustre/.../MillionAID FRONTIER_SHARDS=shards/millionaid sbatch jobs/write_shards.sh
#   FRONTIER_ARCHIVE=... FRONTIER_SHARDS=... sbatch -N 4 jobs/write_shards.sh      the same bytes, sooner
# FRONTIER_ARCHIVE  what the reader reads; empty: 2400 generated scenes
# FRONTIER_READER   kind of archive (default: folder, a sub-folder a class); `frontier shards readers` lists them
# FRONTIER_SHARDS   folder to write (default: shards/millionaid)
# FRONTIER_WRITE    further words of `frontier shards write`: --image-size 224 --set NAME=VALUE --val-fraction 0.05
# FRONTIER_WORKERS  processes a node (default: 56, the cores of a Frontier node that jobs get; fewer where there are fewer)
# Several nodes: mpi4py of the site's MPI; on Frontier, with rocm and craype-accel-amd-gfx90a unloaded,
#   MPICC="cc -shared" pip install --no-cache-dir --no-binary=mpi4py mpi4py         (OLCF user documentation, pytorch_frontier.rst)
# Where srun does not serve that MPI by itself: export SLURM_MPI_TYPE=pmi2 (srun --mpi=list).
# Outside Slurm: bash jobs/write_shards.sh. Sources of every line: docs/sites.md.
set -euo pipefail
[ -f jobs/common.sh ] || cd "${FRONTIER_HOME:-$(dirname "$0")/..}" || exit 2
[ -f jobs/common.sh ] || { echo "job: no jobs/common.sh in $PWD: sbatch from the repository's root, or export FRONTIER_HOME" >&2; exit 2; }
source jobs/common.sh
FRONTIER_RANKS_PER_NODE=1 # one rank a node, with all cores
job_begin
out=${FRONTIER_SHARDS:-shards/millionaid}
run=${FRONTIER_RUN:-runs/write_shards/$(basename "$out")} # the record of requeues: the shards' folder holds shards alone
job_progress() { { find "$out" -name '*.h5.done' 2>/dev/null || true; } | wc -l; }
site_start
workers=${FRONTIER_WORKERS:-$(($(nproc) < 56 ? $(nproc) : 56))}
SITE_STEP=(-c "$workers") # no GPU, no binding
export MPICH_OFI_NIC_POLICY=BLOCK # with NUMA Cray's MPI aborts: a rank has the cores of all NUMA nodes (OLCF, pytorch_frontier.rst, MPICH mpi4py Errors)
words=(--scenes 2400)
[ -z "${FRONTIER_ARCHIVE:-}" ] || words=(--from "$FRONTIER_ARCHIVE" --reader "${FRONTIER_READER:-folder}")
read -ra more <<<"${FRONTIER_WRITE:-}"
code=0
job_step "$nodes" 1 shards write "${words[@]}" "$out" --workers "$workers" ${more[@]+"${more[@]}"} || code=$?
job_end "$code"
