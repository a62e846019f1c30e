#!/usr/bin/env bash
# Supervision: the gain of every candidate passage, the filter, and the selector's training groups of all sets.
#
#   bash scripts/llm_supervision.sh HotpotQA_train WebQuestions_train   -> $WORK/gains, $WORK/kept, $WORK/train.jsonl
source "$(dirname "${BASH_SOURCE[0]}")/paths.sh"

kept=()
for name in "$@"; do
  say "gains of $name by $LLM"
  # shellcheck disable=SC2046,SC2086
  python -m gainRAG.llm_supervision.construct_hf --data_path "$WORK/retrieved/$name.jsonl" \
    --output_path "$WORK/gains/$name.jsonl" --task "$(task_of "$name")" --lm_type "$LLM" --alpha 0.5 \
    --num_passages "$NUM_PASSAGES" $LLM_FLAGS $SUPERVISION_FLAGS $(limit_flag)
  say "keeping the questions of $name that the best passage answers"
  if [[ " $SUPERVISION_FLAGS " == *" --predictions none "* ]]; then
    # shellcheck disable=SC2086
    python -m gainRAG.llm_supervision.filtering --data_path "$WORK/gains/$name.jsonl" \
      --output_path "$WORK/kept/$name.jsonl" --task "$(task_of "$name")" --lm_type "$LLM" $LLM_FLAGS $GENERATION_FLAGS \
      $FILTER_FLAGS
  else
    # shellcheck disable=SC2086
    python "$REPO/data/data_filter.py" --data_path "$WORK/gains/$name.jsonl" --output_path "$WORK/kept/$name.jsonl" \
      $FILTER_FLAGS
  fi
  kept+=("$WORK/kept/$name.jsonl")
done
say "training groups"
python "$REPO/data/data2selector.py" --data_path "${kept[@]}" --output_path "$WORK/train.new.jsonl"
if cmp -s "$WORK/train.new.jsonl" "$WORK/train.jsonl"; then # an old file with the same groups: nothing to train again
  rm "$WORK/train.new.jsonl"
else
  mv "$WORK/train.new.jsonl" "$WORK/train.jsonl"
fi
