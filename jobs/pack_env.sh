#!/bin/bash
# jobs/pack_env.sh [--with-base] [ENV] [OUT]: an environment as one file, for FRONTIER_PACK; docs/staging.md.
#   ENV          a virtual or conda environment; default: FRONTIER_VENV, else .venv here
#   OUT          NAME.tar.gz or NAME.tar.zst; default: FRONTIER_PACK, else frontier_env.tar.gz beside ENV. OUT.info describes it
#   --with-base  also the interpreter that a virtual environment was made from, with its standard library
set -euo pipefail
# shellcheck source=jobs/staging.sh
source "$(dirname "${BASH_SOURCE[0]}")/staging.sh"

say() { printf 'pack: %s\n' "$*"; }
fail() {
  printf 'pack: %s\n' "$*" >&2
  exit 2
}

main() {
  local with_base=0 env out begin
  [ "${1:-}" != --with-base ] || { with_base=1; shift; }
  if [ $# -gt 2 ] || [[ ${1:-} = -* ]]; then fail "usage: jobs/pack_env.sh [--with-base] [ENV] [OUT.tar.gz]"; fi
  env=${1:-${FRONTIER_VENV:-.venv}}
  [ -x "$env/bin/python" ] || fail "$env: no bin/python there: name a virtual or conda environment, or run 'make setup'"
  env=$(cd "$env" && pwd -P)
  out=${2:-${FRONTIER_PACK:-$(dirname "$env")/frontier_env.tar.gz}}
  [ -w "$(dirname "$out")" ] || fail "$out: its folder is not there or cannot be written: name another"
  out=$(cd "$(dirname "$out")" && pwd -P)/$(basename "$out")
  [[ $out != "$env"/* ]] || fail "$out: lies inside the environment: name a place outside it"
  choose_compressor "$out"
  work=$(mktemp -d "$out.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  part=$work/$(basename "$out")
  describe "$env"

  begin=$SECONDS
  if [ "$kind" = conda ]; then
    pack_conda "$env"
  else
    pack_venv "$env" "$with_base"
  fi
  # The listing reads the archive to its end. Blocks of 4 KiB: what a file takes on the disk that it will lie on.
  tar -tvf "$part" >"$work/list" || fail "$part: the archive cannot be read back: is the disk full?"
  cat >"$work/info" <<INFO
sha256=$(sha256sum <"$part" | cut -d ' ' -f 1)
unpacked_kib=$(awk '{ blocks += 1 + int(($3 + 4095) / 4096) } END { printf "%d", 4 * blocks }' "$work/list")
kind=$kind
python=$version
from=$env
packed=$(date -u +%FT%TZ)
packages=$(installed "$env" | sha256sum | cut -d ' ' -f 1)
library=$library
INFO
  rm -f "$out.info" # never beside an archive that it does not describe
  mv "$part" "$out"
  mv "$work/info" "$out.info"
  say "$out: $(($(stat -c %s "$out") >> 20)) MiB, unpacked $(($(pack_unpacked "$out") >> 10)) MiB, Python $version ($kind), $((SECONDS - begin)) s"
  say "FRONTIER_PACK=$out in jobs/site.env; pack again when the environment changes (a job warns)"
}

pack_unpacked() { sed -n 's/^unpacked_kib=//p' "$1.info"; }

choose_compressor() { # OUT
  case $1 in
    *.tar.zst) command -v zstd >/dev/null || fail "$1: no zstd here: name it .tar.gz"; compressor='zstd -q -T0' ;;
    *.tar.gz) compressor=gzip; ! command -v pigz >/dev/null || compressor=pigz ;;
    *) fail "$1: name it .tar.gz or .tar.zst" ;;
  esac
}

describe() { # ENV: kind, version, base, program, libpython; a line for all that it reads from elsewhere
  local words
  kind=venv library=
  [ ! -d "$1/conda-meta" ] || kind=conda
  words=$("$1/bin/python" -I - "$1" <<'PYTHON'
import json, os, sys, sysconfig
from importlib import metadata
from pathlib import Path

env = Path(sys.argv[1])
base = Path(sys.base_prefix).resolve()
print(base)
print(os.path.realpath(sys._base_executable))
print(sysconfig.get_config_var("INSTSONAME") if sysconfig.get_config_var("Py_ENABLE_SHARED") else "")
config = env / "pyvenv.cfg"
shares = config.is_file() and any(line.split("=")[1].strip() == "true" for line in config.read_text().splitlines() if line.startswith("include-system-site-packages"))
print("shares" if shares else "")
print(sys.version.split()[0])
for site in sorted(env.glob("lib/python3*/site-packages")):
    for found in metadata.distributions(path=[str(site)]):
        origin = json.loads(found.read_text("direct_url.json") or "{}")
        if origin.get("dir_info", {}).get("editable"):
            print(f"{found.metadata['Name']} is installed in editable mode: its code stays at {origin['url'].removeprefix('file://')}, read from there (pip install without -e packs it)")
    for file in sorted(site.glob("*.pth")):
        for line in file.read_text().splitlines():
            folder = Path(os.path.join(site, line.strip()))
            if line.strip() and not line.startswith(("#", "import ", "import\t")) and folder.is_dir() and not folder.resolve().is_relative_to(env):
                print(f"{file.name} adds {folder}: not in the pack, read from there")
PYTHON
  ) || fail "$1/bin/python does not run: $(tail -n 1 <<<"$words")"
  { read -r base; read -r program; read -r libpython; read -r shares; read -r version; } <<<"$words"
  tail -n +6 <<<"$words" | while read -r words; do say "$words"; done
}

pack_conda() { # ENV
  local tool=$1/bin/conda-pack words
  [ -x "$tool" ] || tool=$(command -v conda-pack) || fail "$1 is a conda environment, which tar alone cannot move: conda install -p $1 -c conda-forge conda-pack"
  words=$("$tool" -q -p "$1" -o "$part" --n-threads -1 --ignore-editable-packages 2>&1) || fail "conda-pack: $(tail -n 3 <<<"$words" | tr '\n' ' ')"
}

pack_venv() { # ENV WITH_BASE
  local short=${version%.*} words
  local -a members=() spare=()
  if [ "$2" = 1 ]; then
    [ "$base" != /usr ] || fail "--with-base: the base is /usr, the node's own system: leave it out"
    [ -z "$shares" ] || fail "--with-base: $1 also uses the packages of $base (include-system-site-packages): make it without, or pack without the base"
    [ "$program" = "$base/bin/python$short" ] || fail "--with-base: $program is not $base/bin/python$short: pack without the base"
    mkdir "$work/bin"
    ln -s "python$short" "$work/bin/python"
    ln -s "python$short" "$work/bin/python3"
    members=(-C "$base" "bin/python$short" "lib/python$short" "include/python$short")
    [ -z "$libpython" ] || members+=("lib/$libpython")
    # conda's modules find their libraries by a path relative to themselves
    [ ! -d "$base/conda-meta" ] || { while read -r words; do members+=("$words"); done < <(cd "$base" && find lib -maxdepth 1 -name '*.so*'); }
    members+=(-C "$work" bin/python bin/python3)
    # The environment's members begin with ./, the base's do not. The result has no pyvenv.cfg: it is a base itself.
    spare=(--anchored "--exclude=lib/python$short/"{site-packages,test,'config-*'} --exclude=./pyvenv.cfg --exclude=./bin/python --exclude=./bin/python3 "--exclude=./bin/python$short")
    kind=venv+base
    # LD_LIBRARY_PATH goes before the RUNPATH that names the old place.
    [ -z "$libpython" ] || library=lib
  else
    [ -z "$shares" ] || say "include-system-site-packages: the packages of $base stay there"
    [ "$base" = /usr ] || say "its interpreter and standard library stay at $base, read from there: --with-base packs them"
  fi
  words=$(tar -cf "$part" --use-compress-program="$compressor" ${spare[@]+"${spare[@]}"} ${members[@]+"${members[@]}"} -C "$1" . 2>&1) ||
    fail "tar: $(tail -n 1 <<<"$words"): is there room, and does nothing change $1 meanwhile?"
  [ "$2" = 0 ] || check_base "$1"
}

check_base() { # ENV: the copy imports what the base imports, and maps no file of it
  local loads there copy=$work/copy
  loads='
import importlib, os, sys
found = []
for name in sorted({name.split(".")[0] for path in sys.path if path.endswith("lib-dynload") for name in os.listdir(path)}):
    try:
        importlib.import_module(name)
        found.append(name)
    except ImportError:
        pass
import ssl, sqlite3, ctypes, json, multiprocessing
print(*found)
print(*sorted({line.split()[-1] for line in open("/proc/self/maps") if line.split()[-1].startswith(sys.argv[1] + "/")}))'
  mkdir "$copy"
  tar -xf "$part" -C "$copy" --exclude='./lib/python3*/site-packages/*'
  there=$("$1/bin/python" -I -c "$loads" "$base" 2>&1) || true
  loads=$(LD_LIBRARY_PATH=$copy/lib "$copy/bin/python" -I -c "$loads" "$base" 2>&1) || fail "--with-base: the copy does not run: $(tail -n 1 <<<"$loads"): pack without the base"
  there=${there%%$'\n'*}
  [ "$loads" = "$there" ] || fail "--with-base: the copy is not on its own: $(diff <(tr ' ' '\n' <<<"$there") <(tr ' ' '\n' <<<"$loads") | grep '^[<>]' | head -n 3 | tr '\n' ' '): pack without the base"
  rm -rf "$copy"
}

main "$@"
