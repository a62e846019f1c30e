#!/usr/bin/env bash
# The report of a run, of all question sets that were answered: one HTML page, and its figures for a paper.
#
#   bash scripts/report.sh                                 -> $WORK/report.html, $WORK/figures/*.{pdf,png}
source "$(dirname "${BASH_SOURCE[0]}")/paths.sh"

need_nothing "$@"
run="$WORK"
if [ -d "$WORK/first$LIMIT/answers" ]; then run="$WORK/first$LIMIT"; fi # of a trial of the tables
tables="$TABLES"
if [ "$TABLES" = "$WORK${LIMIT:+/first$LIMIT}" ]; then tables="$run"; fi # no folder of their own
python -m gainRAG.analysis.report --work "$run" --tables "$tables" --selector "$SELECTOR" --output "$run/report.html" \
  --figures "$run/figures"
say "$run/report.html, $run/figures"
