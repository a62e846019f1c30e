#!/usr/bin/env bash
# What training was worth: the untrained start and the trained selector against the gains of held-out questions, by the
# share of questions whose best candidate comes first (top-1 agreement), the regret of the pick (the
# best gain less its own), and NDCG@10. All candidates count, by their gain, whatever GROUP_FLAGS train on.
#
#   GAINS=1 bash scripts/rag_generation.sh NaturalQA_test          first: the gains of questions not trained on
#   bash scripts/selector_quality.sh NaturalQA_test                -> $WORK/quality/NAME.md, and on standard output
source "$(dirname "${BASH_SOURCE[0]}")/paths.sh"

need_names "$WORK/gains" "$@"
if [[ -e "$SELECTOR/training.settings.json" && ! -e "$SELECTOR/trainer_state.json" ]]; then
  fail "$SELECTOR: its training is not finished; scripts/selector_finetune.sh resumes it"
fi
need_selector
for name in "$@"; do
  folder="$WORK/quality/$name"
  mkdir -p "$folder"
  python "$REPO/data/data2selector.py" --data_path "$WORK/gains/$name.jsonl" --output_path "$folder/groups.jsonl"
  for which in start trained; do
    if [ "$which" = start ]; then model="$SELECTOR_START"; else model="$SELECTOR"; fi
    say "measuring $model on $name"
    python -m gainRAG.selector_finetune --model_name_or_path "$model" --train_data "$folder/groups.jsonl" \
      --eval_data "$folder/groups.jsonl" --num_train_epochs 0 --output_dir "$folder/$which" --overwrite_output_dir \
      --query_max_len "$QUERY_MAX_LEN" --passage_max_len "$PASSAGE_MAX_LEN" --per_device_eval_batch_size "$BATCH" >/dev/null
  done
  python - "$folder" <<'PYTHON' | tee "$folder.md"
import json, sys
from pathlib import Path

from gainRAG.evaluation.results import markdown_table

names = ("eval_top1_agreement", "eval_gain_regret", "eval_ndcg@10")
found = {kind: json.loads((Path(sys.argv[1]) / kind / "eval_results.json").read_text()) for kind in ("start", "trained")}
rows = [(kind, *(f"{metrics[name]:.3f}" for name in names)) for kind, metrics in found.items()]
print(markdown_table(("selector", *(name.removeprefix("eval_") for name in names)), rows), end="")
PYTHON
done
