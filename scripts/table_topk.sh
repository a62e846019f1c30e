#!/usr/bin/env bash
# One to five passages in the prompt: one selection of five, five rounds of answers.
#
#   bash scripts/table_topk.sh                                 -> $WORK/table_topk.json, table_topk.md
: "${DATASETS:=HotpotQA_dev 2WikiMultiHopQA_dev NaturalQA_test}"
source "$(dirname "${BASH_SOURCE[0]}")/tables_common.sh"

LARGEST=$((N_DOCS < 5 ? N_DOCS : 5))

need_selector
need_retrieved
folders=()
for ((k = 1; k <= LARGEST; k++)); do folders+=("$RUN/answers_topk/top$k"); done
for name in "${NAMES[@]}"; do
  gainrag="$RUN/selected_top$LARGEST/gainrag/$name.jsonl" rerank="$RUN/selected_top$LARGEST/rerank/$name.jsonl"
  background="$RUN/selected/gainrag/$name.background.jsonl" # the main table's, where it was made
  if [ -e "$background" ]; then flags=(--background_path "$background"); else flags=(); fi
  pick "$LARGEST" "$SELECTOR" "$name" "$gainrag" ${flags[@]+"${flags[@]}"}
  pick "$LARGEST" "$SELECTOR_START" "$name" "$rerank" --no_pseudo
  for ((k = 1; k <= LARGEST; k++)); do
    WITH_STANDARD=1 answer "$k" "$name" "$RUN/answers_topk/top$k/$name" gainrag="$gainrag" rerank="$rerank"
  done
done
write_table topk table_topk "${folders[@]}"
