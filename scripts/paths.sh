# shellcheck shell=bash
# Paths, models and sizes of every script. Edit them here, or set any of them in the environment.
set -euo pipefail

REPO="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
if [ -x "$REPO/.venv/bin/python" ]; then export PATH="$REPO/.venv/bin:$PATH"; fi

# Files. Question sets are $QUESTIONS/<DATASET>_<split>.jsonl, as data/prepare_questions.py names them.
: "${QUESTIONS:=$REPO/data/eval_data}"
: "${PASSAGES:=$REPO/data/eval_data/psgs_w100.tsv.gz}"
: "${WORK:=$REPO/results/paper}"                  # everything the stages write
mkdir -p "$WORK"
WORK="$(cd "$WORK" && pwd)"
: "${EMBEDDINGS:=$WORK/embeddings}"

# Models: a name of gainRAG/llm_inference/models.py, a folder or a hub id.
: "${ENCODER:=contriever-msmarco}"
: "${LLM:=Llama-3-8B-Instruct}"
: "${SELECTOR_START:=bge-reranker-base}"
: "${SELECTOR:=$WORK/selector}"

# Extra flags of single stages, as one string.
: "${ENCODER_FLAGS:=}"                            # "--normalize" for MiniLM, E5 and BGE
: "${EMBED_FLAGS:=}"
: "${RETRIEVAL_FLAGS:=}"
: "${LLM_FLAGS:=--backend hf}"                    # "--backend vllm" where vLLM is installed
: "${SUPERVISION_FLAGS:=}"                        # "--dtype bfloat16" for a faster signal
: "${FILTER_FLAGS:=}"                             # "--keep answerable" for an LLM that often fails on good passages
: "${TRAINING_FLAGS:=}"                           # SPEED_FLAGS: see selector_finetune.sh
: "${GENERATION_FLAGS:=}"                         # of filtering and answering
: "${SELECTION_FLAGS:=}"

# Sizes, the paper's.
: "${N_DOCS:=100}"                                # passages retrieved, and weighed by the selector
: "${NUM_PASSAGES:=20}"                           # candidates that get a gain, for training
: "${GROUP_SIZE:=16}"
: "${QUERY_MAX_LEN:=512}"                           # tokens; together they are cut to what the selector can read
: "${PASSAGE_MAX_LEN:=512}"
: "${EPOCHS:=2}"
: "${LEARNING_RATE:=6e-5}"
: "${BATCH:=8}"                                   # groups a step and process
: "${PROCESSES:=1}"                               # one a GPU
: "${K_DOCS:=1}"
: "${LIMIT:=}"                                    # only the first questions of every file; empty: all
: "${TASK:=}"                                     # whose prompt; empty: the file's name up to its last _

limit_flag() { if [ -n "$LIMIT" ]; then echo "--limit $LIMIT"; fi; }
task_of() { echo "${TASK:-${1%_*}}"; }
say() { printf '\n=== %s\n' "$*" >&2; }
