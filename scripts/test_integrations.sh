#!/usr/bin/env bash
# Runs the snippets of docs/integrations.md inside the tools that they are for, in .venv-integrations (made if missing).
# TORCH_INDEX_URL names another index for PyTorch, as for install.sh. VLLM_PYTHON names a Python that has vLLM and pytest
# to run its snippet as well; SELECTOR a trained selector in place of a tiny random one. Arguments go to pytest.
#
#   bash scripts/test_integrations.sh
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
VENV=.venv-integrations
[ -x "$VENV/bin/python" ] || "${PYTHON:-python3}" -m venv "$VENV"
if [ -n "${TORCH_INDEX_URL:-}" ]; then "$VENV/bin/pip" install -q --no-deps --index-url "$TORCH_INDEX_URL" torch==2.13.0; fi
"$VENV/bin/pip" install -q -r requirements-integrations.txt
"$VENV/bin/pip" install -q --no-deps flashrag-dev==0.3.0.dev20260919
export PYTHONPATH=$PWD HF_HUB_OFFLINE=1 INTEGRATIONS=1
"$VENV/bin/python" -m pytest -p no:cacheprovider tests/integrations -rs "$@"
if [ -n "${VLLM_PYTHON:-}" ]; then "$VLLM_PYTHON" -m pytest -p no:cacheprovider tests/integrations -k vLLM "$@"; fi
