#!/usr/bin/env bash
# Share of the measured copy bandwidth that a load reaches on a CUDA device, at 7B shapes, and speed of
# the scorer's paths at 1B and 7B shapes; under 8 minutes. Writes results/gpu/DATE-DEVICE.json (or into
# $1). Needs a Python with a CUDA build of torch ($PYTHON, default python3) with numpy, safetensors and
# transformers, for the ratio to lm-eval also lm_eval; nothing is installed or fetched.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}

# The package as it stands in this checkout, without installing it.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/heterosis"
ln -s "$PWD/merge" "$work/heterosis/merge"
ln -s "$PWD/evals" "$work/heterosis/evals"
export PYTHONPATH="$work${PYTHONPATH:+:$PYTHONPATH}" TORCHINDUCTOR_CACHE_DIR="$work/inductor"

timeout 480 "$python" benchmarks/gpu.py --out "${1:-results/gpu}"
