# shellcheck shell=bash
# The demo's models and sizes for every script: `source scripts/demo_paths.sh` first, then run the script.
DEMO_REPO="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
export WORK="${WORK:-$DEMO_REPO/results/demo}"
export QUESTIONS="${QUESTIONS:-$WORK/questions}" PASSAGES="${PASSAGES:-$WORK/corpus.jsonl}"
export ENCODER=all-MiniLM-L6-v2 ENCODER_FLAGS="--normalize" EMBED_FLAGS="--max_length 128 --shard_size 2000"
export LLM=SmolLM2-135M-Instruct LLM_FLAGS="--backend hf --dtype auto --max_batch_tokens 4096" SELECTOR_START=MiniLM-selector-start
# Of the questions that so small an LLM answers rightly, too many are those that it knows by itself.
export FILTER_FLAGS="--keep answerable"
export SUPERVISION_FLAGS="--predictions none --background_tokens 48" SELECTION_FLAGS="--background_tokens 48"
export GENERATION_FLAGS="--max_new_tokens 16" QUERY_MAX_LEN=32 PASSAGE_MAX_LEN=96
# A few hundred groups are few: a low rate keeps what the start knows, and a sharper teacher matches the scale of its scores.
export SPEED_FLAGS="--train_sampling_strategy group_by_length --logging_steps 1" TRAINING_FLAGS="--teacher_temperature 0.25"
export N_DOCS=6 NUM_PASSAGES=6 GROUP_SIZE=7 EPOCHS=2 LEARNING_RATE=3e-5 BATCH=4
export TASK="${TASK:-WebQuestions}" DATASETS="${DATASETS:-demo_test}"
