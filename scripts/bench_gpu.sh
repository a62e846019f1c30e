#!/usr/bin/env bash
# Measures gain, selection, training, embedding and exact search at the paper's sizes on one GPU in at most 9 minutes,
# and writes one JSON: device, versions, rates, ratios, and which goals are reached. Installs nothing and downloads
# nothing: it takes PYTHON (default: that of the activated environment, else of .venv, else python3) with torch, transformers,
# sentence-transformers and numpy. What needs more (faiss, FlagEmbedding) says "absent".
#
#   bash scripts/bench_gpu.sh                              -> results/bench_gpu.json
#   SIZE=tiny bash scripts/bench_gpu.sh /tmp/tiny.json     tries the script, also without a GPU
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/usage.sh"
if [[ "${1:-}" == -* ]]; then usage "$@"; fi
REPO="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
find_torch_python "$REPO"
output="$(realpath -m "${1:-$REPO/results/bench_gpu.json}")"
mkdir -p "$(dirname "$output")"
export PYTHONPATH="$REPO${PYTHONPATH:+:$PYTHONPATH}" CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES:-0}" HF_HUB_OFFLINE=1
size=()
if [ "${SIZE:-full}" = tiny ]; then size=(--tiny); fi
exec "$PYTHON" "$REPO/benchmarks/gpu.py" --output_path "$output" "${size[@]}"
