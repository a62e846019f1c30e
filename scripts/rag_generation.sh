#!/usr/bin/env bash
# Generation: every method answers the same questions; a table a question set. GAINS=1 adds the gain of every pick and
# the "best by gain" row, for which all candidates are scored against the gold answers first.
#
#   bash scripts/rag_generation.sh NaturalQA_test ...              -> $WORK/answers/NAME/{results.json,results.md}
source "$(dirname "${BASH_SOURCE[0]}")/paths.sh"

need_names "$WORK/retrieved" "$@"
need_names "$WORK/selected/gainrag" "$@"
for name in "$@"; do
  task="$(task_of "$name")"
  gains=()
  if [ -n "$GAINS" ]; then
    say "gains of all candidates of $name (for the table only)"
    find_pseudo "$WORK" "$name"
    compute_gains "$name" "$N_DOCS" --predictions none "${PSEUDO[@]}"
    gains=(--gains_path "$WORK/gains/$name.jsonl")
  fi
  shipped=()
  if [ -n "$SHIPPED" ]; then shipped=(shipped="$WORK/selected/shipped/$name.jsonl"); fi
  say "answers to $name by $LLM"
  python -m gainRAG.rag_workflow.run_baselines --data_path "$WORK/retrieved/$name.jsonl" --task "$task" --lm_type "$LLM" \
    --output_dir "$WORK/answers/$name" --K_docs "$K_DOCS" "${gains[@]}" "${LLM_FLAGS[@]}" "${GENERATION_FLAGS[@]}" \
    "${LIMIT_FLAG[@]}" "${OVERWRITE_FLAG[@]}" \
    --selections gainrag="$WORK/selected/gainrag/$name.jsonl" rerank="$WORK/selected/rerank/$name.jsonl" \
    gainrag_no_pseudo="$WORK/selected/gainrag_no_pseudo/$name.jsonl" "${shipped[@]}"
done
