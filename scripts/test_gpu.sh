#!/usr/bin/env bash
# Runs tests/gpu, what only a GPU can show, and names every test that was skipped with the reason. Installs nothing: it
# takes PYTHON (default: the repository's .venv if there, else python3) with pytest and the packages of requirements.txt.
# Arguments go to pytest. GAINRAG_TEST_DEVICE=cpu tries the tests themselves where there is no GPU.
#
#   bash scripts/test_gpu.sh
#   bash scripts/test_gpu.sh -k deepspeed
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ -z "${PYTHON:-}" ]; then
  PYTHON="$PWD/.venv/bin/python"
  if [ ! -x "$PYTHON" ]; then PYTHON=python3; fi
fi
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
exec "$PYTHON" -m pytest -rs tests/gpu "$@"
