#!/usr/bin/env bash
# One to five passages in the prompt: the best five by the scores that are there, five rounds of answers.
#
#   bash scripts/table_topk.sh                             -> $WORK/table_topk.json, table_topk.md, for TABLE_DATASETS
source "$(dirname "${BASH_SOURCE[0]}")/tables_common.sh"

LARGEST=$((N_DOCS < 5 ? N_DOCS : 5))

need_selector
read -r -a sets <<<"$TABLE_DATASETS"
need_retrieved "${sets[@]}"
select_all
folders=()
for ((k = 1; k <= LARGEST; k++)); do folders+=("$RUN/answers_topk/top$k"); done
for name in "${NAMES[@]}"; do
  gainrag="$RUN/selected_top$LARGEST/gainrag/$name.jsonl" rerank="$RUN/selected_top$LARGEST/rerank/$name.jsonl"
  pick trained "$name" "$gainrag" --K_docs "$LARGEST"
  pick start "$name" "$rerank" --K_docs "$LARGEST" --no_pseudo
  for ((k = 1; k <= LARGEST; k++)); do
    answer "$k" "$name" "$RUN/answers_topk/top$k/$name" "standard_rag rerank gainrag" gainrag="$gainrag" rerank="$rerank"
  done
done
write_table topk table_topk "${folders[@]}"
