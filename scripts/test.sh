#!/usr/bin/env bash
# Installs what the tests need into .venv (made if missing) and runs them. Arguments go to pytest.
#
#   bash scripts/test.sh
#   bash scripts/test.sh tests/evaluation -k recall
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/install.sh" test
cd "$REPO"
exec python -m pytest "$@"
