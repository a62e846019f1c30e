#!/usr/bin/env bash
# The paper's figure 1: how often the LLM is wrong although the passage holds the answer, right although it does not.
#
#   bash scripts/figure_gap.sh                                 -> $WORK/figure_gap.json, figure_gap.md, figure_gap.svg
source "$(dirname "${BASH_SOURCE[0]}")/tables_common.sh"

need_selector
need_retrieved
run_stages
python -m gainRAG.analysis.gap --work "$RUN" --datasets "${ALL_NAMES[@]}" --output_path "$TABLES/figure_gap.json"
say "$TABLES/figure_gap.json, $TABLES/figure_gap.md, $TABLES/figure_gap.svg"
