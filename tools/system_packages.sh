#!/usr/bin/env bash
# What the tests need beyond Python: installed on a Debian machine where we are root, named elsewhere.
set -euo pipefail
need=()
command -v g++ >/dev/null || need+=(g++)          # torch.compile builds its CPU kernels with it
[ ${#need[@]} -eq 0 ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  echo "installing Debian packages: ${need[*]}"
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${need[@]}" >/dev/null
else
  echo "missing: ${need[*]}: install them (Debian: apt-get install ${need[*]}) and run again" >&2
  exit 2
fi
