#!/usr/bin/env bash
# Draws training questions of a set, by a fixed seed (SEED): the paper takes 20,000 of HotpotQA's about 90,000.
#
#   bash scripts/draw_questions.sh HotpotQA_train 20000    $QUESTIONS/HotpotQA_train.jsonl -> HotpotQA_train20000.jsonl
source "$(dirname "${BASH_SOURCE[0]}")/paths.sh"

need_names "$QUESTIONS" ${1:+"$1"}
[[ "${2:-}" =~ ^[1-9][0-9]*$ ]] || fail "$0 $1 ${2:-}: wanted how many questions, as in $1 20000"
there="$(grep -c . "$QUESTIONS/$1.jsonl")"
[ "$there" -ge "$2" ] || fail "$QUESTIONS/$1.jsonl has $there questions, $2 are wanted"
python "$REPO/data/prepare_sample.py" --data_path "$QUESTIONS/$1.jsonl" --output_path "$QUESTIONS/$1$2.jsonl" \
  --sample "$2" --seed "$SEED"
