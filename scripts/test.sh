#!/usr/bin/env bash
# Installs what the tests need into .venv (made if missing) and runs them, in two processes of one thread each.
# Arguments go to pytest.
#
#   bash scripts/test.sh
#   bash scripts/test.sh -n 0 tests/evaluation -k recall
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/install.sh" test
cd "$REPO"
export OMP_NUM_THREADS=1
exec python -m pytest -n 2 --dist loadfile "$@"
