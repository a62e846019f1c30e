#!/usr/bin/env bash
# Kills every stage with SIGKILL and SIGTERM, ten times each, at random moments, resumes it and compares the bytes with
# those of a run left alone (tests/chaos.py), kills workers of every stage that has some (tests/common/test_parallel.py;
# the tests as a whole do so for two of five stages) and the reproduction in all of its steps (tests/test_reproduce.py; the
# tests: in three), and runs what the tests leave out for its length, as a training on a full disk and DeepSpeed's stages 1
# and 2. Arguments go to pytest.
#
#   bash scripts/chaos.sh
#   CHAOS_KILLS=100 bash scripts/chaos.sh -k training
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/install.sh" test
cd "$REPO"
CHAOS_KILLS="${CHAOS_KILLS:-10}" exec python -m pytest tests/chaos.py \
  tests/common/test_parallel.py tests/test_reproduce.py tests/selector_finetune/test_finetune_runs.py "$@"
