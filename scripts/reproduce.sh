#!/usr/bin/env bash
# The paper's run, from the downloads to its main table, ablation, top-k table and figure 1: one command after the other.
# What is finished is passed over and what was interrupted resumes, so after any stop the same command is right; each
# line is a script of this folder and can be run alone: `script retrieval NAME` is `bash scripts/retrieval.sh NAME`.
# docs/reproduction.md explains the steps, docs/fidelity.md how near to the paper they are.
#
#   bash scripts/reproduce.sh --plan      each step's size and needs, and all that is missing; computes nothing
#   bash scripts/reproduce.sh             on one GPU
#   GPUS=8 bash scripts/reproduce.sh      on a machine of eight
#   GPUS=8 WORKERS=32 RAY_ADDRESS=node1:6379 bash scripts/reproduce.sh     on a Ray cluster of four such machines
REPO="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

# --- settings: here, in the environment, or in a file (CONFIG=FILE); all others, with the paper's values: paths.sh ------
if [ -z "${CONFIG:-}" ]; then
  : "${DATA:=$REPO/data}"                  # downloads and question sets
  : "${WORK:=$REPO/results/paper}"         # everything that is computed
  : "${ENCODER:=contriever-msmarco}"       # models: names, folders or hub ids; GAINRAG_MODELS is a folder of weights
  : "${LLM:=Llama-3-8B-Instruct}"
  : "${SELECTOR_START:=bge-reranker-base}"
  : "${GPUS:=1}"                           # of this machine: the training takes them all, 8 groups an update in all
  : "${WORKERS:=$GPUS}"                    # GPUs of all machines, for all other stages
  : "${RAY_ADDRESS:=}"                     # HOST:PORT of the Ray cluster; empty: this machine alone
  : "${HOTPOTQA_QUESTIONS:=20000}"         # training questions drawn of HotpotQA's
fi
source "$REPO/scripts/paths.sh"

if [ "${1:-}" = --plan ]; then
  for name in "${FLAGS[@]}"; do declare -n list="$name"; export "TEXT_$name=${list[*]}"; done
  for name in "${VALUES[@]}"; do export "${name?}"; done
  python "$REPO/scripts/plan.py"
  exit
fi
need_nothing "$@"

step() { printf '\n##### %s\n' "$*" >&2; }

step "1 downloads: the corpus, its vectors, the question sets"
script download_data corpus embeddings
script download_data HotpotQA_dev 2WikiMultiHopQA_dev WebQuestions_test NaturalQA_test TriviaQA_test SQuAD_test
script download_data HotpotQA_train WebQuestions_train

step "2 training questions: $HOTPOTQA_QUESTIONS of HotpotQA, all of WebQuestions"
script draw_questions HotpotQA_train "$HOTPOTQA_QUESTIONS"

step "3 retrieval: $N_DOCS passages for every question"
script retrieval "HotpotQA_train$HOTPOTQA_QUESTIONS" WebQuestions_train \
  HotpotQA_dev 2WikiMultiHopQA_dev WebQuestions_test NaturalQA_test TriviaQA_test SQuAD_test

step "4 supervision: pseudo-passages, predictions, gains; the filter; training groups"
script llm_supervision "HotpotQA_train$HOTPOTQA_QUESTIONS" WebQuestions_train

step "5 training of the selector"
script selector_finetune

step "6 the main table: selector_engine.sh and rag_generation.sh for the six sets (DATASETS), then the table"
script table_main

step "7 the ablation, with a second selector, of plain perplexity: $TABLE_DATASETS"
script table_ablation

step "8 one to five passages in the prompt: $TABLE_DATASETS"
script table_topk

step "9 figure 1"
script figure_gap

step "done: $TABLES/table_main.md, table_ablation.md, table_topk.md, figure_gap.md, figure_gap.svg"
