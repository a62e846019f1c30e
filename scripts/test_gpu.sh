#!/usr/bin/env bash
# Runs tests/gpu, what only a GPU can show, and names every test that was skipped with the reason. Installs nothing: it
# takes PYTHON (default: that of the activated environment, else of .venv, else python3) with the packages of
# requirements.txt. Arguments go to pytest. GAINRAG_TEST_DEVICE=cpu tries the tests themselves where there is no GPU.
#
#   bash scripts/test_gpu.sh
#   bash scripts/test_gpu.sh -k deepspeed
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/usage.sh
find_torch_python "$PWD"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
exec "$PYTHON" -m pytest -rs tests/gpu "$@"
