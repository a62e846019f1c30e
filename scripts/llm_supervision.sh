#!/usr/bin/env bash
# Supervision: the gain of every candidate passage, the filter, and the selector's training groups of all sets named.
#
#   bash scripts/llm_supervision.sh HotpotQA_train20000 WebQuestions_train   -> $WORK/gains, $WORK/kept, $WORK/train.jsonl
source "$(dirname "${BASH_SOURCE[0]}")/paths.sh"

need_names "$WORK/retrieved" "$@"
twice="$(printf '%s\n' "$@" | sort | uniq -d)"
if [ -n "$twice" ]; then fail "named twice, which would double its training groups: ${twice//$'\n'/ }"; fi
# signal_of FLAG... : the perplexity that these flags go by
signal_of() { if [[ " $* " =~ " --signal"[\ =]([^\ ]+) ]]; then echo "${BASH_REMATCH[1]}"; else echo PPL_CD; fi; }
# The other way round, a filter by PPL_CD and groups by retrieved_ppl, is what the paper's public code does.
if [[ "$(signal_of "${FILTER_FLAGS[@]}") $(signal_of "${GROUP_FLAGS[@]}")" == "retrieved_ppl PPL_CD" ]]; then
  fail "FILTER_FLAGS has --signal retrieved_ppl, GROUP_FLAGS has not: what the filter goes by, the training groups must go by"
fi
if [[ " ${FILTER_FLAGS[*]} " == *" --no_pseudo "* && " ${GROUP_FLAGS[*]} " != *" --no_pseudo "* ]]; then
  fail "FILTER_FLAGS has --no_pseudo, GROUP_FLAGS has not: what the filter leaves out, the training groups must leave out"
fi
kept=()
for name in "$@"; do
  say "gains of $name by $LLM"
  compute_gains "$name" "$NUM_PASSAGES"
  say "keeping the questions of $name that the best passage answers"
  if [[ " ${SUPERVISION_FLAGS[*]} " == *" --predictions none "* && " ${FILTER_FLAGS[*]} " != *" --keep holds "* ]]; then
    python -m gainRAG.llm_supervision.filtering --data_path "$WORK/gains/$name.jsonl" \
      --output_path "$WORK/kept/$name.jsonl" --task "$(task_of "$name")" --lm_type "$LLM" "${LLM_FLAGS[@]}" \
      "${GENERATION_FLAGS[@]}" "${FILTER_FLAGS[@]}" "${OVERWRITE_FLAG[@]}"
  else
    python "$REPO/data/data_filter.py" --data_path "$WORK/gains/$name.jsonl" --output_path "$WORK/kept/$name.jsonl" \
      "${FILTER_FLAGS[@]}"
  fi
  kept+=("$WORK/kept/$name.jsonl")
done
say "training groups of: $*"
others=()
for file in "$WORK"/kept/*.jsonl; do
  name="$(basename "$file" .jsonl)"
  if [[ " $* " != *" $name "* && -e "$WORK/retrieved/$name.jsonl" ]]; then others+=("$name"); fi
done
if [ ${#others[@]} -gt 0 ]; then
  say "NOT among them: ${others[*]}. To train on all: bash scripts/llm_supervision.sh ${others[*]} $*, which computes nothing twice"
fi
python "$REPO/data/data2selector.py" --data_path "${kept[@]}" --output_path "$WORK/train.jsonl" "${GROUP_FLAGS[@]}"
