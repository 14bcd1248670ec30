#!/usr/bin/env bash
# Load speed as a share of the copy bandwidth on a CUDA device, at 7B shapes, and speed of the scoring
# paths at 1B and 7B shapes; under 8 minutes. Writes results/gpu/DATE-DEVICE.json (or into $1). Needs a
# Python ($PYTHON, default python3) with a CUDA build of torch, numpy, safetensors and transformers;
# the ratio to lm-eval also needs lm_eval. Installs and downloads nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}

# The package of this checkout, without installing it.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/heterosis"
ln -s "$PWD/merge" "$work/heterosis/merge"
ln -s "$PWD/evals" "$work/heterosis/evals"
export PYTHONPATH="$work${PYTHONPATH:+:$PYTHONPATH}" TORCHINDUCTOR_CACHE_DIR="$work/inductor"

timeout 480 "$python" benchmarks/gpu.py --out "${1:-results/gpu}"
