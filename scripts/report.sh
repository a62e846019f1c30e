#!/usr/bin/env bash
# The report of a run: one HTML page, and its figures for a paper. First the scores of all candidates whose gain is known,
# by the untrained start and by the trained selector, so that the page can show them side by side.
#
#   bash scripts/report.sh NaturalQA_test ...              -> $WORK/report.html, $WORK/figures/*.{pdf,png}
source "$(dirname "${BASH_SOURCE[0]}")/paths.sh"

score() { # start|trained selector name
  say "scores of all candidates of $3 by $2 (for the report only)"
  select_passages "$((N_DOCS + 1))" "$2" "$3" "$WORK/scored/$1/$3.jsonl" \
    --background_path "$WORK/selected/gainrag/$3.background.jsonl" >/dev/null
}

need_names "$WORK/retrieved" "$@"
for name in "$@"; do
  if [[ -e "$WORK/gains/$name.jsonl" && -e "$WORK/selected/gainrag/$name.background.jsonl" ]]; then
    score start "$SELECTOR_START" "$name"
    score trained "$SELECTOR" "$name"
  fi
done
python -m gainRAG.analysis.report --work "$WORK" --selector "$SELECTOR" --output "$WORK/report.html" \
  --figures "$WORK/figures"
say "$WORK/report.html, $WORK/figures"
