#!/usr/bin/env bash
# Selection: the untrained start, the selector, and the selector without the LLM's own passage pick from the retrieved;
# so does another trained selector, where SHIPPED names one.
#
#   bash scripts/selector_engine.sh NaturalQA_test ...      -> $WORK/selected/{gainrag,rerank,gainrag_no_pseudo}/NAME.jsonl
source "$(dirname "${BASH_SOURCE[0]}")/paths.sh"

select_passages() { # method selector name extra-flags...
  local method="$1" selector="$2" name="$3"
  shift 3
  say "$method: picking $K_DOCS of $N_DOCS passages for $name with $selector"
  python -m gainRAG.selector_engine.selector_gainRag --model_name_or_path "$selector" \
    --data_path "$WORK/retrieved/$name.jsonl" --output_path "$WORK/selected/$method/$name.jsonl" \
    --K_docs "$K_DOCS" --n_candidates "$N_DOCS" --lm_type "$LLM" "${LLM_FLAGS[@]}" "${SELECTION_FLAGS[@]}" \
    "${WORKER_FLAGS[@]}" "${LIMIT_FLAG[@]}" "${OVERWRITE_FLAG[@]}" "$@"
}

need_names "$WORK/retrieved" "$@"
for name in "$@"; do
  select_passages gainrag "$SELECTOR" "$name"
  select_passages gainrag_no_pseudo "$SELECTOR" "$name" --no_pseudo
  select_passages rerank "$SELECTOR_START" "$name" --no_pseudo
  if [ -n "$SHIPPED" ]; then select_passages shipped "$SHIPPED" "$name" --no_pseudo; fi
done
