#!/usr/bin/env bash
# Selection: the untrained start, the selector, and the selector without the LLM's own passage pick from the retrieved;
# so does another trained selector, where SHIPPED names one.
#
#   bash scripts/selector_engine.sh NaturalQA_test ...      -> $WORK/selected/{gainrag,rerank,gainrag_no_pseudo}/NAME.jsonl
source "$(dirname "${BASH_SOURCE[0]}")/paths.sh"

pick() { # method selector name extra-flags...
  say "$1: picking $K_DOCS of $N_DOCS passages for $3 with $2"
  select_passages "$K_DOCS" "$2" "$3" "$WORK/selected/$1/$3.jsonl" "${@:4}"
}

need_names "$WORK/retrieved" "$@"
for name in "$@"; do
  pick gainrag "$SELECTOR" "$name"
  pick gainrag_no_pseudo "$SELECTOR" "$name" --no_pseudo
  pick rerank "$SELECTOR_START" "$name" --no_pseudo
  if [ -n "$SHIPPED" ]; then pick shipped "$SHIPPED" "$name" --no_pseudo; fi
done
