#!/usr/bin/env bash
# Check lmscale on one GPU, in about eight minutes and without a network. README.md says more.
#   benchmarks/gpu.sh [--out FOLDER] [--parts machine kernels engine speed] [--dry-run]
# PYTHON names the interpreter; default: the repository's .venv, else python3.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
if [ ! -x "$python" ] && ! command -v "$python" >/dev/null; then python=python3; fi
# The checkout itself, whether or not lmscale is installed.
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
# cuBLAS repeats its sums bit for bit only with a fixed workspace (CUDA's documentation of cuBLAS,
# "Results reproducibility"); the check of resuming compares bits.
export CUBLAS_WORKSPACE_CONFIG=${CUBLAS_WORKSPACE_CONFIG:-:4096:8}
export TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
cd "$root"
exec "$python" benchmarks/gpu_checks.py "$@"
