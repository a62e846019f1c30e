#!/usr/bin/env bash
# The paper's run, from the downloads to its main table, ablation, top-k table and figure 1: one command after the other.
# What is finished is passed over and what was interrupted resumes, so after any stop the same command is right; each
# line is a script of this folder and can be run alone: `script retrieval NAME` is `bash scripts/retrieval.sh NAME`.
# Paths, models, question sets (TRAINING, DATASETS, TABLE_DATASETS) and sizes are in paths.sh, the environment or a file
# (CONFIG=FILE). docs/reproduction.md explains the steps, docs/fidelity.md how near to the paper they are.
#
#   bash scripts/reproduce.sh --plan      each step's size and needs, and all that is missing; computes nothing
#   bash scripts/reproduce.sh             on one GPU
#   GPUS=8 bash scripts/reproduce.sh      on a machine of eight
#   GPUS=8 WORKERS=32 RAY_ADDRESS=node1:6379 bash scripts/reproduce.sh     on a Ray cluster of four such machines
source "$(dirname "${BASH_SOURCE[0]}")/paths.sh"

# lacks_vectors : whether step 3 would refuse to embed: a large corpus without vectors, and without EMBED
lacks_vectors() {
  if ! needs_vectors || [[ -n "$EMBEDDINGS$EMBED$(published_vectors)" || -e "$WORK/embeddings/shards.jsonl" ]]; then
    return 1
  fi
  [[ "$PASSAGES" = "$DOWNLOADS/psgs_w100.tsv.gz" ]] || is_large # the published corpus, there or not
}

plan() { # with the settings in its environment, and nowhere else
  (
    for name in "${FLAGS[@]}"; do declare -n list="$name" && export "TEXT_$name=${list[*]}"; done
    for name in "${VALUES[@]}"; do export "${name?}"; done
    NEEDS_VECTORS="$(if needs_vectors; then echo 1; fi)" LACKS_VECTORS="$(if lacks_vectors; then echo 1; fi)"
    export NEEDS_VECTORS LACKS_VECTORS
    PUBLISHED_VECTORS="$(published_vectors)" python "$REPO/scripts/plan.py" "$@"
  )
}
if [ "${1:-}" = --plan ]; then
  plan
  exit
fi
need_nothing "$@"
need_even_batch
if [ -n "$LIMIT" ]; then
  fail "LIMIT=$LIMIT makes a trial of a table; here gains and selector would be made of so few questions as well:" \
    "for a trial of the whole, CONFIG=scripts/demo.conf or smaller question sets, in a WORK of its own"
fi
plan check

step() { printf '\n##### %s\n' "$*" >&2; }

read -r -a trained <<<"$TRAINING"
read -r -a asked <<<"$DATASETS $TABLE_DATASETS"
readarray -t sets < <(printf '%s\n' "${trained[@]}" "${asked[@]}" | awk '!seen[$0]++')
drawn="HotpotQA_train$HOTPOTQA_QUESTIONS"

step "1 downloads: the corpus, its vectors, the question sets"
downloads=()
if [ "$PASSAGES" = "$DOWNLOADS/psgs_w100.tsv.gz" ]; then downloads+=(corpus); fi
vectors="$(published_vectors)"
if [ -n "$vectors" ]; then downloads+=("$vectors"); fi
for name in "${sets[@]}"; do
  if [ ! -e "$QUESTIONS/$name.jsonl" ]; then downloads+=("${name/#$drawn/HotpotQA_train}"); fi
done
if [ ${#downloads[@]} -gt 0 ]; then script download_data "${downloads[@]}"; fi

step "2 training questions: $TRAINING"
if [[ " $TRAINING " == *" $drawn "* && -e "$QUESTIONS/HotpotQA_train.jsonl" ]]; then
  script draw_questions HotpotQA_train "$HOTPOTQA_QUESTIONS"
fi

step "3 retrieval: $N_DOCS passages for every question"
script retrieval "${sets[@]}"

step "4 supervision: pseudo-passages, predictions, gains; the filter; training groups"
script llm_supervision "${trained[@]}"

step "5 training of the selector"
script selector_finetune

step "6 the main table: selector_engine.sh and rag_generation.sh for $DATASETS, then the table"
script table_main

step "7 the ablation, with a second selector, of plain perplexity: $TABLE_DATASETS"
script table_ablation

step "8 one to five passages in the prompt: $TABLE_DATASETS"
script table_topk

step "9 figure 1"
script figure_gap

step "done: $TABLES/table_main.md, table_ablation.md, table_topk.md, figure_gap.md, figure_gap.svg"
