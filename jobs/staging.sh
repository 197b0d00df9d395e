# shellcheck shell=bash disable=SC2034,SC2154
# The environment on every node's own disk; sourced by jobs/common.sh (say, warn, fail, on_every_node). docs/staging.md describes it.
#   stage_environment    FRONTIER_PACK to every node, unpacked, checked; `python` and PATH name the copy. Without a place for it
#                        or after a failure on the way the environment stays where it is; a full or broken disk ends the job with 2.
# The functions that run on the nodes know only what is exported; each tells one line: stage HOST WORD …

stage_limit_s=900 # of each phase: a node that hangs costs this much, not the job's time

stage_environment() {
  [ -n "$FRONTIER_PACK" ] || return 0
  [ -z "$FRONTIER_CONTAINER" ] || fail "FRONTIER_PACK and FRONTIER_CONTAINER are both set: an image is one file already; empty one of them"
  [ -f "$FRONTIER_PACK" ] || fail "FRONTIER_PACK=$FRONTIER_PACK: no such file: make it with jobs/pack_env.sh, or empty FRONTIER_PACK"
  export FRONTIER_PACK stage_folder=${FRONTIER_LOCAL:-$SITE_LOCAL} stage_sha stage_dest stage_archive stage_from stage_need_kib stage_library_path
  [ -n "$stage_folder" ] || { say "site $SITE names no node-local storage (FRONTIER_LOCAL=folder names one): the environment stays on the shared file system"; return 0; }
  local begin lines
  begin=$(date +%s.%N)
  read_pack
  warn_stale

  lines=$(every_node stage_look) || true
  [ "$(grep -c '^stage ' <<<"$lines")" = "$job_nodes" ] || { fall_back "$(grep -c '^stage ' <<<"$lines") of $job_nodes nodes answered when asked for their disks"; return 0; }
  judge_disks "$lines" || return 0

  local copied=reused words code=0 since
  if grep -q '^stage [^ ]* free' <<<"$lines"; then
    since=$(date +%s.%N)
    if [ "$launcher" = slurm ]; then
      copied=broadcast
      words=$(timeout -k 10 "$stage_limit_s" sbcast -pf "$FRONTIER_PACK" "$stage_archive" 2>&1) || code=$?
      [ "$code" != 124 ] || words="longer than $stage_limit_s s"
    else
      copied=copied
      words=$(every_node stage_copy) || code=$?
      all_well "$words" || { words=$(complaints "$words" "$code"); code=1; }
    fi
    [ "$code" = 0 ] || { fall_back "the broadcast to $stage_folder failed (exit $code): $(tail -n 1 <<<"$words")"; return 0; }
    copied="$copied $(seconds_since "$since") s"
    since=$(date +%s.%N)
    words=$(every_node stage_unpack) || code=$?
    all_well "$words" || { fall_back "$(complaints "$words" "$code")"; return 0; }
    copied="$copied, unpacked $(seconds_since "$since") s"
  fi
  FRONTIER_ENV_STAGE_S=$(seconds_since "$begin")
  export FRONTIER_ENV_STAGE_S PATH=$stage_dest/bin:$PATH LD_LIBRARY_PATH=$stage_library_path
  python=("$stage_dest/bin/python")
  say "environment on $job_nodes nodes: $copied, in all $FRONTIER_ENV_STAGE_S s: $stage_dest"
}

stage_shards() { # adds data.stage to the run's `words`, where every node has a disk with room on it
  local disk=${FRONTIER_LOCAL:-$SITE_LOCAL} lines full
  [ "$FRONTIER_STAGE_GIB" != 0 ] && [ -n "$disk" ] || return 0
  case " $FRONTIER_OVERRIDES " in *" data.stage="* | *" data.synthetic"*) return 0 ;; esac
  export stage_folder=$disk stage_dest=/nonexistent stage_need_kib=$((2 * 65536)) stage_library_path=${LD_LIBRARY_PATH:-}
  lines=$(every_node stage_look) || true
  [ "$(grep -c '^stage [^ ]* free' <<<"$lines")" = "$job_nodes" ] || {
    say "shards are read from where they are: no node-local storage at $disk on $(grep -v '^stage [^ ]* free' <<<"$lines" | awk '$1 == "stage" { print $2 }' | some)"
    return 0
  }
  full=$(awk -v need="$stage_need_kib" '$3 == "free" && $4 < need { printf "%s (%.0f MiB free)\n", $2, $4 / 1024 }' <<<"$lines")
  [ -z "$full" ] || fail "$disk is full on $(some <<<"$full"): no shard fits there: make room, set FRONTIER_LOCAL=another folder, or FRONTIER_STAGE_GIB=0"
  words+=(data.stage="$disk/frontier-shards" data.stage_gib="$FRONTIER_STAGE_GIB")
}

read_pack() { # what its .info says, else what can be known without it
  local info=$FRONTIER_PACK.info suffix=.tar.gz
  [[ $FRONTIER_PACK != *.zst ]] || suffix=.tar.zst
  local kib unpacked library
  kib=$((($(stat -L -c %s "$FRONTIER_PACK") + 1023) / 1024))
  stage_sha=$(pack_info sha256)
  unpacked=$(pack_info unpacked_kib)
  if [ -z "$stage_sha" ] || [ -z "$unpacked" ]; then
    warn "$info: missing or incomplete (jobs/pack_env.sh writes it): taken to grow to four times its size"
    stage_sha=$(sha256sum <"$FRONTIER_PACK" | cut -d ' ' -f 1)
    unpacked=$((4 * kib))
  fi
  library=$(pack_info library)
  stage_from=$(pack_info from)
  stage_need_kib=$((kib + unpacked))
  stage_dest=$stage_folder/frontier-env-${stage_sha:0:16}
  stage_archive=$stage_dest.$JOB_ID$suffix # a name of its own: another job may be sending the same one
  stage_library_path=${library:+$stage_dest/$library${LD_LIBRARY_PATH:+:}}${LD_LIBRARY_PATH:-}
}

pack_info() { # KEY
  sed -n "s/^$1=//p" "$FRONTIER_PACK.info" 2>/dev/null || true
}

installed() { # ENV: time and name of each installed package; another list is another environment
  find "$1"/lib/python3*/site-packages "$1"/conda-meta -maxdepth 1 \( -name '*.dist-info' -o -name '*.egg-info' -o -name '*.pth' -o -name '*.json' \) \
    -printf '%T@ %f\n' 2>/dev/null | sort || true
}

warn_stale() {
  local packed list changed
  packed=$(pack_info packages)
  list=$(installed "$FRONTIER_VENV")
  [ -n "$packed" ] && [ -n "$list" ] || return 0
  [ "$packed" != "$(sha256sum <<<"$list" | cut -d ' ' -f 1)" ] || return 0
  changed=$(tail -n 1 <<<"$list")
  warn "$FRONTIER_PACK was packed $(pack_info packed) from $(pack_info from), and $FRONTIER_VENV is not the same (newest package $(date -u -d "@${changed%% *}" +%FT%TZ)): the job runs what was packed; jobs/pack_env.sh packs anew"
}

every_node() { # FUNCTION, bounded
  launcher=$launcher job_nodes=$job_nodes excluded=$excluded timeout -k 10 "$stage_limit_s" \
    bash -c "$(declare -f on_every_node); stage_step() { $(declare -f complete_copy "$1"); $1; }; on_every_node stage_step" </dev/null
}

all_well() { # LINES: every node said ok
  [ "$(grep -c '^stage [^ ]* ok' <<<"$1")" = "$job_nodes" ]
}

complaints() { # LINES EXIT
  local bad
  bad=$(sed -n 's/^stage \([^ ]*\) bad /\1: /p' <<<"$1")
  [ -n "$bad" ] || bad="$(grep -c '^stage ' <<<"$1") of $job_nodes nodes answered within $stage_limit_s s (exit $2)"
  some <<<"$bad"
}

some() { # of many lines the first three
  awk 'NR <= 3 { printf "%s%s", (NR > 1 ? "; " : ""), $0 } END { if (NR > 3) printf "; and %d more", NR - 3 }'
}

hosts_that_said() { # WORD LINES
  sed -n "s/^stage \([^ ]*\) $1.*/\1/p" <<<"$2"
}

judge_disks() { # LINES of stage_look; 1: there is no place for it
  local without full
  without=$(hosts_that_said readonly "$1")
  [ -z "$without" ] || fail "$stage_folder cannot be written on $(some <<<"$without"): leave the node out (sbatch -x), set FRONTIER_LOCAL=another folder, or empty FRONTIER_PACK"
  without=$(hosts_that_said shared "$1")
  [ -z "$without" ] || fail "$stage_folder is on a shared file system, not a node's own disk: set FRONTIER_LOCAL=another folder, or empty FRONTIER_PACK"
  without=$(hosts_that_said none "$1")
  if [ -n "$without" ]; then
    [ "$(wc -l <<<"$without")" -lt "$job_nodes" ] || without="any of $job_nodes nodes"
    say "no node-local storage at $stage_folder on $(some <<<"$without"): the environment stays on the shared file system"
    return 1
  fi
  full=$(awk -v need="$stage_need_kib" '$3 == "free" && $4 < need { printf "%s (%.0f MiB)\n", $2, $4 / 1024 }' <<<"$1")
  [ -z "$full" ] || fail "$stage_folder is too full on $(some <<<"$full"): the environment takes $((stage_need_kib / 1024 + 1)) MiB, archive and unpacked: make room, set FRONTIER_LOCAL=another folder, or empty FRONTIER_PACK"
}

fall_back() { # WHY
  warn "environment not staged: $1; it is read from $FRONTIER_VENV"
  every_node stage_remove >/dev/null 2>&1 || true
}

seconds_since() {
  awk -v begin="$1" -v now="$(date +%s.%N)" 'BEGIN { printf "%.1f", now - begin }'
}

# On the nodes.

complete_copy() { # FOLDER: it was unpacked to the end, and nothing has been removed since (cleaners of /tmp do)
  local files
  read -r _ files 2>/dev/null <"$1/.frontier-pack" || return 1
  [ "$(find "$1" -type f ! -name '*.pyc' ! -name .frontier-pack | wc -l)" -ge "$files" ]
}

stage_look() { # none, readonly, shared, has, or free KIB
  local host parent probe other
  host=$(hostname)
  parent=$(dirname "$stage_folder")
  # A scheduler makes /mnt/bb/$USER or we do; a disk that is not there is not to become a folder of the node's memory.
  [ -d "$stage_folder" ] || { [ -d "$parent" ] && [ "$parent" != / ] && mkdir "$stage_folder" 2>/dev/null; }
  [ -d "$stage_folder" ] || { echo "stage $host none"; return; }
  case $(stat -f -c %T "$stage_folder") in
    nfs* | lustre | gpfs | panfs | ceph | afs) echo "stage $host shared"; return ;;
  esac
  probe=$(mktemp "$stage_folder/.frontier-XXXXXX" 2>/dev/null) || { echo "stage $host readonly"; return; }
  rm -f "$probe"
  if complete_copy "$stage_dest" && LD_LIBRARY_PATH=$stage_library_path timeout 60 "$stage_dest/bin/python" -c 'import sys' 2>/dev/null; then
    touch "$stage_dest/.frontier-pack"
    echo "stage $host has"
    return
  fi
  free() { df -Pk "$stage_folder" | awk 'NR == 2 { print $4 }'; }
  if [ "$(free)" -lt "$stage_need_kib" ]; then # what earlier jobs left, unless one that runs beside us uses it
    find "$stage_folder" -maxdepth 1 -name 'frontier-env-*.tar.*' -mmin +60 -delete
    for other in "$stage_folder"/frontier-env-????????????????; do
      [ -d "$other" ] || continue
      (
        flock -n 9 || exit 0 # being unpacked
        [ -z "$(find "$other/.frontier-pack" -mmin -10 2>/dev/null)" ] || exit 0
        ! grep -qsF "$other/" /proc/[0-9]*/maps || exit 0
        rm -rf "$other"
      ) 9>"$other.lock"
    done
  fi
  echo "stage $host free $(free)"
}

stage_copy() { # where there is no sbcast
  local host words
  host=$(hostname)
  words=$(timeout 600 cp "$FRONTIER_PACK" "$stage_archive" 2>&1) || { echo "stage $host bad copy: ${words:-longer than 600 s}"; return; }
  echo "stage $host ok"
}

stage_unpack() {
  local host words sum
  local -a unpack=(tar --no-same-owner)
  host=$(hostname)
  bad() {
    echo "stage $host bad $*"
    exit 0
  }
  exec 9>"$stage_dest.lock"
  flock -w 600 9 || bad "another job has been unpacking the same for 600 s"
  if ! complete_copy "$stage_dest"; then
    sum=$(sha256sum <"$stage_archive") || bad "the archive did not arrive"
    [ "${sum%% *}" = "$stage_sha" ] || bad "the archive that arrived is not the one that was packed (sha256): pack again with jobs/pack_env.sh"
    rm -rf "$stage_dest"
    mkdir "$stage_dest" || bad "mkdir $stage_dest fails"
    case $stage_archive in
      *.zst) unpack+=(--zstd) ;;
      *) ! command -v pigz >/dev/null || unpack+=(--use-compress-program=pigz) ;;
    esac
    words=$("${unpack[@]}" -xf "$stage_archive" -C "$stage_dest" 2>&1) || bad "tar: $(tail -n 1 <<<"$words")"
    if [ -f "$stage_dest/bin/conda-unpack" ]; then
      words=$("$stage_dest/bin/python" "$stage_dest/bin/conda-unpack" 2>&1) || bad "conda-unpack: $(tail -n 1 <<<"$words")"
    elif [ -n "$stage_from" ]; then # scripts that name their interpreter
      # shellcheck disable=SC2001
      find "$stage_dest/bin" -maxdepth 1 -type f -exec grep -lIZF "$stage_from/" {} + |
        xargs -0 -r sed -i "s|$(sed 's/[][\.*^$|]/\\&/g' <<<"$stage_from")/|$stage_dest/|g"
    fi
    words=$(LD_LIBRARY_PATH=$stage_library_path timeout 120 "$stage_dest/bin/python" -c 'import sys' 2>&1) || bad "its python does not start: $(tail -n 1 <<<"$words")"
    echo "$stage_sha $(find "$stage_dest" -type f ! -name '*.pyc' | wc -l)" >"$stage_dest/.frontier-pack" || bad "no marker written"
  fi
  rm -f "$stage_archive"
  echo "stage $host ok"
}

stage_remove() { # what a failure left; a complete copy stays
  rm -rf "$stage_archive"
  exec 9>"$stage_dest.lock"
  flock -w 60 9 || return 0
  complete_copy "$stage_dest" || rm -rf "$stage_dest"
}
