#!/usr/bin/env bash
# The paper's ablations: the pseudo-passage, the distillation and the contrast taken away, each alone.
#
#   bash scripts/table_ablation.sh                             -> $WORK/table_ablation.json, table_ablation.md
#
# Without distillation: distilling the gains is the only training there is, so what remains is the untrained reranker,
# choosing among the retrieved passages and the pseudo-passage. Plain perplexity: a second selector, trained in the same
# way on the same kept questions ($WORK/kept), but on the perplexity without contrast.
: "${DATASETS:=HotpotQA_dev 2WikiMultiHopQA_dev NaturalQA_test}"
source "$(dirname "${BASH_SOURCE[0]}")/tables_common.sh"

PLAIN="$WORK/plain_ppl" # its train.jsonl and selector

train_plain_selector() {
  local kept=("$WORK"/kept/*.jsonl) groups=()
  for file in "${kept[@]}"; do
    if [[ -e "$file" && "$file" != *.predictions.jsonl ]]; then groups+=("$file"); fi
  done
  if [ ${#groups[@]} -eq 0 ]; then
    say "SKIPPED: plain perplexity, for $WORK/kept holds no training questions (scripts/llm_supervision.sh makes them)"
    return
  fi
  mkdir -p "$PLAIN"
  python "$REPO/data/data2selector.py" --data_path "${groups[@]}" --output_path "$PLAIN/new.jsonl" \
    --signal retrieved_ppl
  if ! cmp -s "$PLAIN/new.jsonl" "$PLAIN/train.jsonl"; then mv "$PLAIN/new.jsonl" "$PLAIN/train.jsonl"; fi
  rm -f "$PLAIN/new.jsonl"
  WORK="$PLAIN" SELECTOR="$PLAIN/selector" bash "$REPO/scripts/selector_finetune.sh"
}

need_selector
need_retrieved
train_plain_selector
run_stages
for name in "${NAMES[@]}"; do
  background=(--background_path "$RUN/selected/gainrag/$name.background.jsonl")
  with_pseudo="$RUN/selected/rerank_with_pseudo/$name.jsonl"
  pick "$K_DOCS" "$SELECTOR_START" "$name" "$with_pseudo" "${background[@]}"
  selections=(rerank_with_pseudo="$with_pseudo")
  if [ -e "$PLAIN/selector/config.json" ]; then
    plain="$RUN/selected/plain_ppl/$name.jsonl"
    pick "$K_DOCS" "$PLAIN/selector" "$name" "$plain" "${background[@]}"
    selections+=(plain_ppl="$plain")
  fi
  answer "$K_DOCS" "$name" "$RUN/answers_ablation/$name" "${selections[@]}"
done
write_table ablation table_ablation "$RUN/answers" "$RUN/answers_ablation"
