# shellcheck shell=bash
# What the job scripts share (docs/jobs.md). A script sources this file, then calls
#   job_begin                            settings (site.env), the site's modules and environment, checks that take no time
#   job_pretrain CONFIG RUN [key=value]  `frontier pretrain` on all ranks: stages, passes signals on, requeues; ends the script
#   job_step NODES PER_NODE VERB WORDS   one `frontier VERB`; returns its exit code
#   job_end CODE                         requeues where that pays, and ends the script
# Exit codes: 0 done, 2 the input is wrong, 75 a passing failure, 85 checkpointed. Runs under `set -euo pipefail`.

jobs_folder=$(CDPATH="" cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=jobs/staging.sh
source "$jobs_folder/staging.sh"

say() { printf 'job: %s\n' "$*"; }
warn() { printf 'job: %s\n' "$*" >&2; }
fail() { # what, where, the mend
  warn "$*"
  exit 2
}

job_begin() {
  export USER=${USER:-$(id -un)}
  unset SLURM_EXPORT_ENV # of `sbatch --export=…`: srun would keep this script's variables from the ranks
  scratch=$(mktemp -d) || fail "no temporary file can be made in ${TMPDIR:-/tmp} of $(hostname): its disk may be full; set TMPDIR"
  trap 'rm -rf "$scratch"' EXIT
  step_errors=$scratch/step # what srun and the ranks of the last step said
  : >"$step_errors"
  job_identity
  [ "$launcher" = none ] || unset MASTER_ADDR # one of the submitting shell names another job's node
  if ! declare -F site_environment >/dev/null; then # a script made by `frontier submit` brings settings and site along
    # shellcheck source=jobs/site.env
    source "$jobs_folder/site.env"
    [ "$launcher" != none ] || FRONTIER_SITE=local # no scheduler: this machine, whatever jobs would use
    local site=$jobs_folder/sites/$FRONTIER_SITE.sh
    [[ $FRONTIER_SITE != */* ]] || site=$FRONTIER_SITE # one of your own
    [ -f "$site" ] ||
      fail "FRONTIER_SITE=$FRONTIER_SITE: there is no such site, but $(cd "$jobs_folder/sites" && printf '%s ' *.sh | sed 's/\.sh//g'): set it in jobs/site.env"
    # shellcheck source=jobs/sites/frontier.sh
    source "$site"
  fi
  ranks_per_node=${FRONTIER_RANKS_PER_NODE:-$SITE_RANKS_PER_NODE}
  nodes=${FRONTIER_NODES:-$job_nodes}
  excluded= # nodes of this job that its steps leave out, with commas
  blamed=()   # nodes that the requeued job is not to get
  unreachable=() # those that srun found no daemon on
  asked=
  trap 'pass_on USR1' USR1
  trap 'pass_on TERM' TERM
  check_request
  load_modules
  site_environment
  find_python
  job_deadline
  say "$JOB_ID at $SITE, start $((restarts + 1)), $nodes of $job_nodes nodes x $ranks_per_node ranks: ${SLURM_JOB_NODELIST:-$(hostname)}"
}

job_identity() { # JOB_ID in the scheduler's form, restarts, job_nodes, launcher
  JOB_ID=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}}
  JOB_ID=${JOB_ID:-${SLURM_JOB_ID:-${PBS_JOBID:-$$}}}
  restarts=${SLURM_RESTART_COUNT:-${FRONTIER_RESTARTS:-0}}
  job_nodes=${SLURM_JOB_NUM_NODES:-1}
  launcher=none
  [ -z "${SLURM_JOB_ID:-}" ] || launcher=slurm
  if [ -n "${PBS_JOBID:-}" ]; then
    launcher=pbs
    job_nodes=$(sort -u "$PBS_NODEFILE" | wc -l)
  fi
  export JOB_ID FRONTIER_RESTARTS=$restarts
}

check_request() {
  [ "$SITE_ACCOUNT" = 0 ] || [ "${SLURM_JOB_ACCOUNT:-given}" != project ] ||
    fail "no account: export SBATCH_ACCOUNT=your_project (jobs/site.env), or sbatch -A your_project"
  local name
  for name in FRONTIER_NODES FRONTIER_RANKS_PER_NODE; do
    [[ ${!name:-1} =~ ^[1-9][0-9]*$ ]] || fail "$name=${!name}: give a whole number above 0, or leave it empty"
  done
  for name in FRONTIER_DOCTOR FRONTIER_REQUEUE; do
    [[ ${!name} =~ ^[01]$ ]] || fail "$name=${!name}: give 1 or 0"
  done
  [[ $FRONTIER_STAGE_GIB =~ ^[0-9]+([.][0-9]+)?$ ]] || fail "FRONTIER_STAGE_GIB=$FRONTIER_STAGE_GIB: give a number of GiB; 0: none"
  [ "$nodes" -le "$job_nodes" ] || fail "FRONTIER_NODES=$nodes, and the job has $job_nodes: sbatch -N $nodes"
}

check_devices() {
  if [ "$launcher" = slurm ] && [ "$SITE_DEVICE" != cpu ] && [ "$SITE_DEVICE" != auto ]; then
    [ "$ranks_per_node" -le "${SLURM_GPUS_ON_NODE:-0}" ] ||
      fail "$ranks_per_node ranks and ${SLURM_GPUS_ON_NODE:-0} GPUs a node: ask for more (sbatch --gpus-per-node=$ranks_per_node), or FRONTIER_RANKS_PER_NODE=${SLURM_GPUS_ON_NODE:-0}"
  fi
}

check_shards() {
  [ -z "$FRONTIER_SHARDS" ] || ! grep -q '^ *sources:' "$config" 2>/dev/null ||
    fail "FRONTIER_SHARDS=$FRONTIER_SHARDS: $config has several sources: name their folders by FRONTIER_OVERRIDES='data.sources.NAME.shards=FOLDER'"
  [ -z "$FRONTIER_SHARDS" ] || [ -f "$FRONTIER_SHARDS/manifest.json" ] ||
    fail "FRONTIER_SHARDS=$FRONTIER_SHARDS has no manifest.json: write the shards first (jobs/write_shards.sh), or name another folder"
}

check_run() {
  local words
  words=$({ mkdir -p "$run" && echo >"$run/.written" && rm "$run/.written"; } 2>&1) ||
    fail "the run folder $run cannot be written (${words##*: }): mend that, or name another (FRONTIER_RUN)"
}

load_modules() {
  [ ${#SITE_MODULES[@]} -gt 0 ] || return 0
  type module >/dev/null 2>&1 ||
    fail "no 'module' command on $(hostname), and site $SITE loads ${SITE_MODULES[*]}: FRONTIER_SITE=local is for a machine without modules"
  local name code words=$scratch/module
  for name in "${SITE_MODULES[@]}"; do
    set +eu # Lmod's functions read variables that may not be set
    module load "$name" >"$words" 2>&1
    code=$?
    set -eu
    [ "$code" = 0 ] ||
      fail "module load $name fails on $(hostname) ($(tr -s '[:space:]' ' ' <"$words" | cut -c1-160)): see 'module avail ${name%%/*}', then correct the site's modules (docs/sites.md)"
  done
}

find_python() { # the words that run Python on a node
  if [ -n "$FRONTIER_CONTAINER" ]; then
    [ ${#SITE_WRAP[@]} -gt 0 ] || fail "FRONTIER_CONTAINER=$FRONTIER_CONTAINER: site $SITE runs no containers: empty it and set FRONTIER_VENV"
    python=("${SITE_WRAP[@]}" python3)
    return
  fi
  [ -x "$FRONTIER_VENV/bin/python" ] ||
    fail "FRONTIER_VENV=$FRONTIER_VENV has no bin/python: name your environment in jobs/site.env; docs/sites.md tells how one is made for $SITE, 'make setup' for this machine alone"
  python=("$FRONTIER_VENV/bin/python")
  export PATH=$FRONTIER_VENV/bin:$PATH
}

job_deadline() { # FRONTIER_JOB_END: when the scheduler ends the job, seconds since 1970
  local end=${SLURM_JOB_END_TIME:-}
  if [ "$launcher" = slurm ] && [ -z "$end" ]; then
    end=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%e 2>/dev/null) && end=$(date -d "$end" +%s 2>/dev/null) || end=
  fi
  [ -z "$end" ] || export FRONTIER_JOB_END=$end
}

join() { # WORDS…: with commas
  local IFS=,
  printf '%s' "$*"
}

launch() { # NODES PER_NODE COMMAND…: this (sub)shell becomes the site's launcher
  local n=$1 per_node=$2
  shift 2
  case $launcher in
    slurm) # a rank that leaves with 85 first must not have the others killed; a lost one ends the step after a minute
      exec srun -N "$n" -n $((n * per_node)) --ntasks-per-node="$per_node" --kill-on-bad-exit=0 --wait=60 \
        ${excluded:+--exclude="$excluded"} ${SITE_STEP[@]+"${SITE_STEP[@]}"} "$@"
      ;;
    pbs) exec mpiexec -n $((n * per_node)) --ppn "$per_node" ${SITE_STEP[@]+"${SITE_STEP[@]}"} "$@" ;;
    none)
      [ "$per_node" = 1 ] || set -- "$@" --ranks "$per_node"
      exec "$@"
      ;;
  esac
}

on_every_node() { # FUNCTION: run it once a node
  case $launcher in
    slurm) srun -N "$job_nodes" -n "$job_nodes" --ntasks-per-node=1 ${excluded:+--exclude="$excluded"} --cpu-bind=none bash -c "$(declare -f "$1"); $1" ;;
    pbs) mpiexec -n "$job_nodes" --ppn 1 bash -c "$(declare -f "$1"); $1" ;;
    none) "$1" ;;
  esac
}

step=
pass_on() { # a signal to this shell goes to the ranks, through their launcher
  asked=$1
  if [ -n "$step" ] && kill -s "$1" "$step" 2>/dev/null; then
    say "SIG$1 passed on to the ranks"
  fi
}

job_step() { # NODES PER_NODE VERB WORDS…
  local n=$1 per_node=$2 code=0
  shift 2
  FRONTIER_STEP_BEGAN=$(date +%s.%N)
  export FRONTIER_STEP_BEGAN
  (launch "$n" "$per_node" "${python[@]}" -W ignore -u -m frontier "$@" 2> >(trap '' TERM USR1; exec tee "$step_errors" >&2)) &
  step=$!
  [ -z "$asked" ] || kill -s "$asked" "$step" 2>/dev/null || true # it came while the step was being started
  while :; do # a trapped signal ends wait early
    wait "$step" || true
    kill -0 "$step" 2>/dev/null || break
  done
  wait "$step" || code=$?
  step=
  sleep 0.5 # tee is a moment behind
  return "$code"
}

job_pretrain() { # CONFIG RUN key=value…; RUN is the folder where FRONTIER_RUN names none
  local config=$1 code=0 more=()
  run=${FRONTIER_RUN:-$2}
  shift 2
  check_devices
  check_shards
  read -rd '' -a more <<<"$FRONTIER_OVERRIDES" || true # several lines, too
  local words=("$@")
  if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then # an array trains one model a task, each with its seed
    run=$run/task_$SLURM_ARRAY_TASK_ID
    words+=(run.seed="$SLURM_ARRAY_TASK_ID")
  fi
  words+=(run.dir="$run")
  [ ! -e "$run/STOP" ] || fail "$run/STOP asks this run to stay stopped: remove the file to go on"
  check_run
  [ "$SITE_DEVICE" = auto ] || words+=(run.device="$SITE_DEVICE")
  [ -z "$FRONTIER_SHARDS" ] || words+=(data.shards="$FRONTIER_SHARDS")
  site_start
  stage_shards
  [ "$launcher" != none ] || on_this_machine
  job_step "$nodes" "$ranks_per_node" pretrain "$config" "${words[@]}" ${more[@]+"${more[@]}"} || code=$?
  job_end "$code"
}

site_start() { # what comes before the ranks
  local code=0
  began=$(job_progress)
  on_every_node site_once_a_node 2> >(trap '' TERM USR1; exec tee "$step_errors" >&2) || code=$?
  if [ "$code" != 0 ]; then
    sleep 0.5 # tee is a moment behind
    warn "what site $SITE does once a node has failed (exit $code)"
    job_end "$code"
  fi
  job_doctor
  stage_environment
}

on_this_machine() { # without a scheduler: this machine's devices; without any the same path at a small size
  local devices
  devices=$("${python[@]}" -c 'import torch; print(torch.accelerator.device_count())')
  ranks_per_node=${FRONTIER_RANKS_PER_NODE:-$devices}
  [ "$ranks_per_node" = 0 ] || return 0
  ranks_per_node=2
  if grep -q '^ *family: gpna' "$config"; then # its sources are not those of this machine: the small run on generated ones
    config=$jobs_folder/configs/gpna_debug.yaml
    say "no scheduler and no GPU: the same path with $config, 20 steps on 2 CPU ranks"
    [ -f shards/gpna_scenes/manifest.json ] || "${python[@]}" -m frontier shards write --scenes 640 --sensors s2,s1 --targets --seed 0 --workers 2 shards/gpna_scenes
    [ -f shards/gpna_fields/manifest.json ] || "${python[@]}" -m frontier shards write --fields 640 --size 32 --test-fraction 0.2 --seed 0 shards/gpna_fields
    words+=(train.epochs=null train.steps=20)
    return 0
  fi
  if grep -q '^ *family: scale_alibi' "$config"; then
    config=$jobs_folder/configs/scale_alibi_debug.yaml
    FRONTIER_SHARDS=${FRONTIER_SHARDS:-shards/triplets}
    say "no scheduler and no GPU: the same path with $config, 20 steps on 2 CPU ranks and the data in $FRONTIER_SHARDS"
    [ -f "$FRONTIER_SHARDS/manifest.json" ] || "${python[@]}" -m frontier shards write --scenes 400 --sensors s2,s1,naip_5m --seed 0 "$FRONTIER_SHARDS"
    words+=(data.shards="$FRONTIER_SHARDS" train.epochs=null train.steps=20)
    return 0
  fi
  FRONTIER_SHARDS=${FRONTIER_SHARDS:-shards/scenes}
  say "no scheduler and no GPU: the same path with preset vit_debug on $ranks_per_node CPU ranks and the data in $FRONTIER_SHARDS"
  [ -f "$FRONTIER_SHARDS/manifest.json" ] || "${python[@]}" -m frontier shards write --scenes 2400 --sensors rgb --seed 0 "$FRONTIER_SHARDS"
  words+=(data.shards="$FRONTIER_SHARDS" data.image_size=null model.preset=vit_debug parallel.strategy="hybrid_$ranks_per_node"
    parallel.precision=fp32 train.epochs=null train.samples=null train.steps=20 train.global_batch=64 train.micro_batch=16)
}

job_doctor() { # with FRONTIER_DOCTOR=1: leaves bad nodes out where there are spares, else asks for others
  [ "$FRONTIER_DOCTOR" = 1 ] || return 0
  local code=0 bad=() disk=${FRONTIER_LOCAL:-$SITE_LOCAL}
  check_run
  rm -f "$run/bad_nodes"
  job_step "$job_nodes" "$ranks_per_node" doctor --quick --bad-nodes "$run/bad_nodes" ${disk:+--local "$disk"} || code=$?
  [ "$code" != 2 ] || exit 2
  [ -z "$asked" ] || job_end "$code" # it did not get to its end
  [ ! -f "$run/bad_nodes" ] || mapfile -t bad < <(cut -d' ' -f1 "$run/bad_nodes")
  if [ ${#bad[@]} = 0 ]; then
    [ "$code" -lt 128 ] || job_end "$code"
    [ "$code" = 0 ] || fail "the doctor's ERROR above is of no single node: mend it, or go on without the check (FRONTIER_DOCTOR=0)"
    return 0
  fi
  say "bad nodes: $(tr '\n' ';' <"$run/bad_nodes")"
  job_nodes=$((job_nodes - ${#bad[@]}))
  if [ "$job_nodes" -lt "$nodes" ]; then
    blamed=("${bad[@]}")
    say "$nodes nodes are needed, $job_nodes are good (FRONTIER_NODES below the job's number keeps spares)"
    job_end 75
  fi
  excluded=$(join "${bad[@]}")
  unset MASTER_ADDR # the first node may be among them; without it the ranks meet at the first of their step
  say "goes on without $excluded"
}

job_progress() { # a number that grows while the job gets on; -1: nothing yet. Here: the newest checkpoint's step
  local newest
  newest=$(find "$run/checkpoints" -maxdepth 1 -name 'step_[0-9]*' 2>/dev/null | sed 's/.*step_0*//; s/^$/0/' | sort -n | tail -1)
  printf '%s' "${newest:--1}"
}

job_end() { # CODE
  local code=$1 now last stalls=0 allowed=0 why="a rank was lost" already refusal
  refusal=$(sed -n 's/.*Unable to create step.*: //p' "$step_errors" | tail -n 1)
  mapfile -t unreachable < <(sed -n 's/^srun: error: Task launch for .* failed on node \([^:]*\): .*/\1/p' "$step_errors" | sort -u)
  if [[ $refusal =~ (not available \(down|[Tt]imed out|contact slurm|temporarily) ]] || grep -q '^srun: error: Application launch failed' "$step_errors"; then
    code=75
    why="srun could not start the ranks on ${unreachable[*]:-the nodes}"
  elif [ -n "$refusal" ]; then
    fail "srun cannot start $ranks_per_node ranks a node ($refusal): set FRONTIER_RANKS_PER_NODE, or ask for more"
  fi
  [[ ! $(first_error) =~ ': Exited with exit code 2'$ ]] || code=2 # srun returns the highest code: 75 of those that lost this rank
  case $code in
    85) why="stopped after a checkpoint" ;;
    75 | 1[34]?) # a rank lost the others, or a signal ended it
      allowed=1
      blame
      ;;
    *) exit "$code" ;;
  esac
  [ -z "$asked" ] || [ "$code" = 85 ] || why="ended by SIG$asked before a checkpoint"
  now=$(job_progress)
  if [ "$now" -le "$began" ]; then # `stalls` counts starts of this job in a row that brought nothing
    last=$(grep -F "\"job\": \"$JOB_ID\"" "$run/requeues.jsonl" 2>/dev/null | tail -n 1) || last=
    if [[ $last =~ \"stalls\":\ ([0-9]{1,6}), ]]; then stalls=${BASH_REMATCH[1]}; fi
    stalls=$((10#$stalls + 1))
  fi
  why="$why (exit $code, step $now)"
  already=$(decided)
  if [ -n "$already" ]; then
    say "$why; $already"
  elif [ -e "$run/STOP" ]; then
    say "$why; not requeued: $run/STOP is there. Remove it and submit again to go on"
  elif [ "$FRONTIER_REQUEUE" != 1 ]; then
    say "$why; not requeued: FRONTIER_REQUEUE=$FRONTIER_REQUEUE. Submit again to go on"
  elif [ "$stalls" -gt "$allowed" ]; then
    warn "$why; not requeued: no newer checkpoint since this start. Look above for the cause; give it more time (-t) if it ran out of it"
  elif [ "$launcher" != slurm ]; then
    say "$why; ${again:-submit again} to go on"
  else
    requeue "$code" "$now" "$stalls" "$why"
  fi
  exit "$code"
}

first_error() { # of the ranks, in srun's words; what srun ended because of it, or because it was asked to, comes later
  grep -E '^srun: error: [^:]+: tasks? [0-9,-]+: ' "$step_errors" | grep -vE ': Exited with exit code (75|85)$' | head -n 1 || true
}

blame() { # the nodes that no rank starts on, else the one of the first rank that a signal ended
  local line
  [ -z "$asked" ] || return 0
  blamed+=(${unreachable[@]+"${unreachable[@]}"})
  [ ${#unreachable[@]} = 0 ] || return 0
  line=$(first_error)
  [[ $line =~ ': '(Killed|Segmentation fault|Aborted|Bus error|Illegal instruction|Floating point) ]] || return 0
  line=${line#srun: error: }
  mapfile -t blamed < <(scontrol show hostnames "${line%%:*}")
}

decided() { # what Slurm has done with the job: `scontrol requeue` would bring a cancelled one back
  local found
  [ "$launcher" = slurm ] || return 0
  found=$(scontrol show job "$SLURM_JOB_ID" 2>/dev/null) || return 0
  [[ ! $found =~ JobState=RUNNING|Reason=TimeLimit ]] || return 0
  if [[ $found =~ Restarts=([0-9]+) ]] && [ "${BASH_REMATCH[1]}" -gt "$restarts" ]; then
    echo "requeued by Slurm"
  else
    echo "the job was cancelled; not requeued. Submit again to go on"
  fi
}

requeue() { # CODE STEP STALLS WHY
  local words all=() size others=() record=$run/requeues.jsonl
  trap '' TERM USR1 # Slurm ends this script once it has requeued the job
  left_out
  size=$(stat -c %s "$record" 2>/dev/null) || size=0
  { mkdir -p "$run" && printf '{"time": %s, "job": "%s", "restart": %s, "code": %s, "step": %s, "stalls": %s, "excluded": "%s"}\n' \
    "$(date +%s)" "$JOB_ID" "$restarts" "$1" "$2" "$3" "$(join ${all[@]+"${all[@]}"})" >>"$record"; } 2>/dev/null || {
    truncate -cs "$size" "$record" 2>/dev/null || true
    warn "$4; not requeued: $record cannot be written. Make room and submit again to go on"
    return
  }
  words=$(scontrol requeue "$JOB_ID" 2>&1) || {
    truncate -cs "$size" "$record"
    case $words in
      *"pending execution"*) say "$4; requeued by Slurm" ;;
      *) warn "$4; not requeued: $words. Submit again to go on" ;;
    esac
    return
  }
  if [ ${#all[@]} -gt 0 ]; then
    printf '%s\n' "${all[@]}" >"$run/excluded_nodes" || true
    mapfile -t others < <(nodes_of %x | grep -vxF "$(printf '%s\n' "${all[@]}")") # those of the user's own sbatch -x
    for _ in {1..20}; do # refused until Slurm has put the job back
      words=$(scontrol update jobid="$JOB_ID" ExcNodeList="$(join "${all[@]}" ${others[@]+"${others[@]}"})" 2>&1) && break
      words="not left out: $words: "
      sleep 0.3
    done
  fi
  say "$4; requeued${all[*]:+, ${words:-without }${all[*]}}"
}

nodes_of() { # FORMAT of squeue: %n or %x, the nodes that the job is to have or not to have, one a line
  local list
  list=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format="$1" 2>/dev/null) || return 0
  [ -z "$list" ] || scontrol show hostnames "$list"
}

left_out() { # `all`: the nodes that the requeued job is not to get, old and new, as far as there are enough others
  local others
  mapfile -t all < <({ cat "$run/excluded_nodes" 2>/dev/null || true; printf '%s\n' ${blamed[@]+"${blamed[@]}"}; } | sort -u |
    grep -xF "$(sinfo --noheader --Node --partition="$SLURM_JOB_PARTITION" --format=%N 2>/dev/null)" | # those that are still there
    grep -vxF "$(nodes_of %n | grep . || echo /)" | grep .) # but not the user's own sbatch -w: the job could not start again
  [ ${#all[@]} -gt 0 ] || return 0
  others=$(sinfo --noheader --Node --partition="$SLURM_JOB_PARTITION" --states=idle,alloc,mix,comp --format=%N 2>/dev/null | sort -u |
    grep -cvxF "$(printf '%s\n' "${all[@]}"; nodes_of %x)") || others=0
  if [ "$others" -lt "$SLURM_JOB_NUM_NODES" ]; then
    warn "not left out: ${all[*]}: partition $SLURM_JOB_PARTITION has $others other nodes in use, and the job needs $SLURM_JOB_NUM_NODES"
    all=()
  fi
}
