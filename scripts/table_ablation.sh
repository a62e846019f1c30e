#!/usr/bin/env bash
# The paper's ablations: the pseudo-passage, the distillation and the contrast taken away, each alone.
#
#   bash scripts/table_ablation.sh                 -> $WORK/table_ablation.json, table_ablation.md, for TABLE_DATASETS
#
# Without distillation: distilling the gains is the only training there is, so what remains is the untrained reranker,
# choosing among the retrieved passages and the pseudo-passage. Plain perplexity: a second selector, trained in the same
# way on the same kept questions ($WORK/kept of TRAINING), but on the perplexity without contrast.
source "$(dirname "${BASH_SOURCE[0]}")/tables_common.sh"

PLAIN="$WORK/plain_ppl" # its train.jsonl and selector
plain_is_trained=""

train_plain_selector() {
  local name sets kept=()
  read -r -a sets <<<"$TRAINING"
  for name in "${sets[@]}"; do
    if [ ! -e "$WORK/kept/$name.jsonl" ]; then
      say "SKIPPED: plain perplexity, for there is no $WORK/kept/$name.jsonl (scripts/llm_supervision.sh makes it)"
      return
    fi
    kept+=("$WORK/kept/$name.jsonl")
  done
  python "$REPO/data/data2selector.py" --data_path "${kept[@]}" --output_path "$PLAIN/train.jsonl" \
    "${GROUP_FLAGS[@]}" --signal retrieved_ppl
  (WORK="$PLAIN" SELECTOR="$PLAIN/selector" && script selector_finetune)
  plain_is_trained=1
}

need_selector
read -r -a sets <<<"$TABLE_DATASETS"
need_retrieved "${sets[@]}"
train_plain_selector
select_all
answer_all
for name in "${NAMES[@]}"; do
  methods="rerank_with_pseudo"
  selections=(rerank_with_pseudo="$RUN/selected/rerank_with_pseudo/$name.jsonl")
  pick start "$name" "$RUN/selected/rerank_with_pseudo/$name.jsonl" --K_docs "$K_DOCS"
  if [ -n "$plain_is_trained" ]; then
    methods+=" plain_ppl"
    selections+=(plain_ppl="$RUN/selected/plain_ppl/$name.jsonl")
    find_pseudo "$RUN" "$name"
    WORK="$RUN" score_candidates plain_ppl "$PLAIN/selector" "$name" "${PSEUDO[@]}" >/dev/null
    pick plain_ppl "$name" "$RUN/selected/plain_ppl/$name.jsonl" --K_docs "$K_DOCS"
  fi
  answer "$K_DOCS" "$name" "$RUN/answers_ablation/$name" "$methods" "${selections[@]}"
done
write_table ablation table_ablation "$RUN/answers" "$RUN/answers_ablation"
