#!/usr/bin/env bash
# Selection: the selector and its untrained start score every candidate once, the retrieved passages and the one that the
# LLM writes. From the scores follow the picks: the selector's, those without the LLM's own passage, and the start's;
# another trained selector's as well, where SHIPPED names one.
#
#   bash scripts/selector_engine.sh NaturalQA_test ...      -> $WORK/selected/{gainrag,rerank,gainrag_no_pseudo}/NAME.jsonl
source "$(dirname "${BASH_SOURCE[0]}")/paths.sh"

pick() { # method which name extra-flags...
  pick_best "$2" "$3" "$WORK/selected/$1/$3.jsonl" --K_docs "$K_DOCS" "${@:4}"
}

need_names "$WORK/retrieved" "$@"
need_selector
for name in "$@"; do
  score_candidates trained "$SELECTOR" "$name"
  find_pseudo "$WORK" "$name"
  score_candidates start "$SELECTOR_START" "$name" "${PSEUDO[@]}"
  pick gainrag trained "$name"
  pick gainrag_no_pseudo trained "$name" --no_pseudo
  pick rerank start "$name" --no_pseudo
  if [ -n "$SHIPPED" ]; then
    score_candidates shipped "$SHIPPED" "$name" "${PSEUDO[@]}"
    pick shipped shipped "$name" --no_pseudo
  fi
done
