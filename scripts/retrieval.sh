#!/usr/bin/env bash
# Retrieval: embeds the corpus (once) and writes the nearest passages of every question set.
#
#   bash scripts/retrieval.sh HotpotQA_dev NaturalQA_test ...      -> $WORK/retrieved/NAME.jsonl
source "$(dirname "${BASH_SOURCE[0]}")/paths.sh"

say "embedding $PASSAGES with $ENCODER"
# shellcheck disable=SC2086
python -m gainRAG.retrieval_engine.passage_embed --model_name_or_path "$ENCODER" --passages "$PASSAGES" \
  --output_dir "$EMBEDDINGS" $ENCODER_FLAGS $EMBED_FLAGS
say "retrieving $N_DOCS passages a question: $*"
files=()
for name in "$@"; do files+=("$QUESTIONS/$name.jsonl"); done
# shellcheck disable=SC2086
python -m gainRAG.retrieval_engine.retrieval --model_name_or_path "$ENCODER" --passages "$PASSAGES" \
  --passages_embeddings "$EMBEDDINGS" --data_path "${files[@]}" --output_dir "$WORK/retrieved" --n_docs "$N_DOCS" \
  $ENCODER_FLAGS $RETRIEVAL_FLAGS
