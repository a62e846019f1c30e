#!/usr/bin/env bash
# The paper's figure 1: how often the LLM is wrong although the passage holds the answer, right although it does not.
# Without a trained selector it shows standard RAG alone, as the paper's figure does.
#
#   bash scripts/figure_gap.sh                                 -> $WORK/figure_gap.json, figure_gap.md, figure_gap.svg
source "$(dirname "${BASH_SOURCE[0]}")/tables_common.sh"

read -r -a sets <<<"$DATASETS"
need_retrieved "${sets[@]}"
if [ -n "$(compgen -G "$RUN/answers/*/gainrag.jsonl")" ]; then need_selector; fi # whose answers would be lost
if [[ "$SELECTOR" == /* && ! -f "$SELECTOR/config.json" ]]; then
  say "$SELECTOR: no trained selector there, so standard RAG alone"
  for name in "${NAMES[@]}"; do answer "$K_DOCS" "$name" "$RUN/answers/$name" standard_rag; done
else
  select_all
  answer_all
fi
python -m gainRAG.analysis.gap --work "$RUN" --datasets "${ALL_NAMES[@]}" --output_path "$TABLES/figure_gap.json"
say "$TABLES/figure_gap.json, $TABLES/figure_gap.md, $TABLES/figure_gap.svg"
