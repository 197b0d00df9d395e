#!/usr/bin/env bash
# Everything that wants a GPU, in one call of about ten minutes: the tests marked `gpu`, predicted against measured, attention with
# ground distances, and the training-step benchmark.
# usage: bash benchmarks/gpu.sh [OUT]     needs a torch that sees the device; the table goes to OUT (benchmarks/results/)
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-benchmarks/results}
python=${PYTHON:-$( [ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
mkdir -p "$out"
"$python" - <<'PY'
import sys, torch
if not torch.cuda.is_available():
    sys.exit("benchmarks/gpu.sh: torch sees no GPU here")
print(torch.cuda.get_device_name(0), "torch", torch.__version__)
PY
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
"$python" -m pytest -m gpu -q tests/gpu
timeout 200 "$python" benchmarks/prediction.py --out "$out"
timeout 120 "$python" benchmarks/scale_alibi_attention.py --device cuda --out "$out"
timeout 330 "$python" benchmarks/training_step.py --device cuda --out "$out"
