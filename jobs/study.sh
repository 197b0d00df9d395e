# shellcheck shell=bash disable=SC2154,SC2317
# What scaling_study.sh and the jobs of `frontier sweep --mode submitted` share, after jobs/common.sh and job_begin: one process of
# `frontier sweep` in this shell, which starts the ranks of each point with the site's srun words.

job_study() { # OUT WORDS…: `frontier sweep WORDS --mode measured --out OUT`; `run` is where requeues are recorded
  local out=$1 code=0
  shift
  [ "$launcher" != pbs ] || fail "points are started by srun, and this is PBS: measure under Slurm or on one machine, or predict (--mode predicted)"
  check_devices
  job_progress() { # points that have their result
    { grep -lE '"status": "(done|oom|timeout|failed)"' "$out"/points/*/status.json 2>/dev/null || true; } | wc -l
  }
  site_start
  export FRONTIER_STEP_WORDS="${SITE_STEP[*]+"${SITE_STEP[*]@Q}"}" FRONTIER_PYTHON_WORDS="${python[*]@Q}"
  [ -z "$excluded" ] || FRONTIER_STEP_WORDS+=" --exclude=$excluded"
  if [ -n "$FRONTIER_CONTAINER" ]; then # the ranks run in it; srun is not in there
    [ -x "$FRONTIER_VENV/bin/python" ] ||
      fail "FRONTIER_VENV=$FRONTIER_VENV has no bin/python: a study in a container needs an environment outside it too, for the process that calls srun"
    python=("$FRONTIER_VENV/bin/python")
  fi
  launch() { # this one process is not under srun
    shift 2
    exec "$@"
  }
  job_step 1 1 sweep "$@" --mode measured --out "$out" || code=$?
  [ "$code" != 75 ] || exit 75 # points failed: results like others, and the next start would find the same ones
  job_end "$code"
}
