# shellcheck shell=bash
# What the measurements of docs/results share, after paths.sh: evidence.sh and evidence_new_domain.sh read it.

# train NAME flags-of-data2selector... : a selector from the questions of KEPT, training/NAME/selector, with the learning
# rate and the training flags that are set.
train() {
  local folder="$WORK/training/$1"
  if [ -e "$folder/selector/trainer_state.json" ]; then return; fi # written last
  python "$REPO/data/data2selector.py" --data_path "${KEPT[@]}" --output_path "$folder/train.jsonl" "${@:2}"
  (WORK="$folder" SELECTOR="$folder/selector" && script selector_finetune)
}

# train_seeds SEED... : a selector of all groups for each seed, all at once, each on its share of the cores: an update
# is too small to keep several cores busy
train_seeds() {
  local seed job failed=0 jobs=()
  for seed in "$@"; do
    (OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((($(nproc) + $# - 1) / $#))}" TRAINING_FLAGS+=(--seed "$seed")
      export OMP_NUM_THREADS
      train "seed_$seed" "${GROUP_FLAGS[@]}") &
    jobs+=($!)
  done
  for job in "${jobs[@]}"; do wait "$job" || failed=1; done # each has said what went wrong
  return "$failed"
}

# pick METHOD WHICH flags-of-pick_best... : the best of the candidates that WHICH has scored, selected/METHOD/test.jsonl
pick() { pick_best "$2" test "$WORK/selected/$1/test.jsonl" "${@:3}"; }

# answer NAME K FOLDER flags-of-run_baselines... : the answers to NAME's questions from K passages, answers/FOLDER
answer() {
  python -m gainRAG.rag_workflow.run_baselines --data_path "$WORK/retrieved/$1.jsonl" --task "$TASK" --lm_type "$LLM" \
    --output_dir "$WORK/answers/$3" --K_docs "$2" "${LLM_FLAGS[@]}" "${GENERATION_FLAGS[@]}" "${@:4}"
}

# answer_test : the answers of all methods to WORK's test questions, beside the gains of their picks
answer_test() {
  answer test 1 test --gains_path "$WORK/gains/test.jsonl" --selections rerank="$WORK/selected/rerank/test.jsonl" \
    gainrag_no_pseudo="$WORK/selected/gainrag_no_pseudo/test.jsonl"
}
