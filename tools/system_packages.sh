#!/usr/bin/env bash
# What the tests need beyond Python: installed on a Debian machine where we are root, named elsewhere.
set -euo pipefail

can_install() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; }
install() {
  echo "installing Debian packages: $*"
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

# torch.compile builds its CPU kernels with it: without it tests fail.
if ! command -v g++ >/dev/null; then
  can_install || { echo "missing: g++: install it (Debian: apt-get install g++) and run again" >&2; exit 2; }
  install g++
fi

# tests/slurm runs jobs on a real Slurm of its own (15 MB installed): without it those tests are skipped and say so.
slurm=(slurmctld slurmd slurm-client munge)
for program in slurmctld slurmd srun munged; do
  if ! PATH="$PATH:/usr/sbin" command -v $program >/dev/null; then
    if ! can_install || ! install "${slurm[@]}"; then
      echo "no Slurm: tests/slurm will be skipped (Debian, as root: apt-get install ${slurm[*]})" >&2
    fi
    break
  fi
done

# The tests read the job scripts with it: without it those tests are skipped and say so.
if ! command -v shellcheck >/dev/null; then
  if ! can_install || ! install shellcheck; then
    echo "no shellcheck: the job scripts are not linted (Debian, as root: apt-get install shellcheck)" >&2
  fi
fi

# What real ranks ask of a file system, against what a dry run counts.
if ! command -v strace >/dev/null; then
  if ! can_install || ! install strace; then
    echo "no strace: operations on files will not be traced (Debian, as root: apt-get install strace)" >&2
  fi
fi

# A clock that is wrong on one node only, for frontier doctor.
if ! compgen -G '/usr/lib/*/faketime/libfaketime.so.1' >/dev/null; then
  if ! can_install || ! install faketime; then
    echo "no libfaketime: tests of wrong clocks will be skipped (Debian, as root: apt-get install faketime)" >&2
  fi
fi

# The `module` command of supercomputers, for the Frontier job script.
if [ ! -e /usr/share/lmod/lmod/init/bash ]; then
  if ! can_install || ! install lmod; then
    echo "no Lmod: the tests of Frontier's modules will be skipped (Debian, as root: apt-get install lmod)" >&2
  fi
fi
