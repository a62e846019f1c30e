#!/usr/bin/env bash
# The report of a run, of all question sets that were answered: one HTML page, and its figures for a paper.
#
#   bash scripts/report.sh                                 -> $WORK/report.html, $WORK/figures/*.{pdf,png}
source "$(dirname "${BASH_SOURCE[0]}")/paths.sh"

need_nothing "$@"
python -m gainRAG.analysis.report --work "$WORK" --selector "$SELECTOR" --output "$WORK/report.html" \
  --figures "$WORK/figures"
say "$WORK/report.html, $WORK/figures"
