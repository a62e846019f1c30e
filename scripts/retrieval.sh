#!/usr/bin/env bash
# Retrieval: writes the nearest passages of every question set. Vectors of the passages are the published ones where
# scripts/download_data.sh put them; else they are made first, but of more than a million passages only with EMBED=1.
# RETRIEVAL_FLAGS='--retriever bm25' needs none.
#
#   bash scripts/retrieval.sh HotpotQA_dev NaturalQA_test ...      $QUESTIONS/NAME.jsonl -> $WORK/retrieved/NAME.jsonl
source "$(dirname "${BASH_SOURCE[0]}")/paths.sh"

# find_vectors: sets EMBEDDINGS, unless it is set, to the published vectors if they are those of this corpus and encoder.
find_vectors() {
  local folder="$DOWNLOADS/wikipedia_embeddings/${ENCODER##*/}"
  published="$(published_vectors)"
  if [[ -n "$published" && -d "$folder" ]]; then EMBEDDINGS="$folder"; fi
  : "${EMBEDDINGS:=$WORK/embeddings}"
}

holds_published_vectors() { # not those that passage_embed makes, or had begun to make
  [[ -z "$(compgen -G "$EMBEDDINGS/shards.jsonl*")" && -n "$(compgen -G "$EMBEDDINGS/passages_[0-9]*")" ]]
}

shares_search() { # only exact search has workers
  needs_vectors && [[ ! " ${RETRIEVAL_FLAGS[*]} " =~ " --index_type"[\ =][^F] ]]
}

# is_foreign NAME : whether another retriever wrote NAME's passages: there are no settings beside them, finished or not
is_foreign() {
  local file="$WORK/retrieved/$1.jsonl"
  [[ -e "$file" && ! -e "$file.settings.json" && ! -e "$file.unfinished.settings.json" ]]
}

need_names "$QUESTIONS" "$@"
files=()
for name in "$@"; do
  if is_foreign "$name"; then
    say "$WORK/retrieved/$name.jsonl: not written by retrieval.sh; taken as it is"
  else
    files+=("$QUESTIONS/$name.jsonl")
  fi
done
if [ ${#files[@]} -eq 0 ]; then exit; fi
named="$EMBEDDINGS"
find_vectors
[ -e "$PASSAGES" ] || fail "$PASSAGES: no such file (bash scripts/download_data.sh corpus fetches the paper's)"
vectors=()
if needs_vectors; then vectors=(--passages_embeddings "$EMBEDDINGS"); fi
if needs_vectors && ! holds_published_vectors; then
  if [[ -z "$EMBED" && ! -e "$EMBEDDINGS/shards.jsonl" ]] && is_large; then
    fail "$PASSAGES has more than a million passages, and $EMBEDDINGS not the vectors of all:" \
      "${published:+bash scripts/download_data.sh $published fetches the published ones, }EMBEDDINGS=FOLDER names others," \
      "EMBED=1 embeds the passages here, and resumes where that was interrupted"
  fi
  anew=()
  if [ -n "$OVERWRITE" ] && { [ -n "$EMBED" ] || { [ -z "$named" ] && ! is_large; }; }; then anew=("${OVERWRITE_FLAG[@]}"); fi
  say "embedding $PASSAGES with $ENCODER"
  python -m gainRAG.retrieval_engine.passage_embed --model_name_or_path "$ENCODER" --passages "$PASSAGES" \
    --output_dir "$EMBEDDINGS" "${ENCODER_FLAGS[@]}" "${EMBED_FLAGS[@]}" "${WORKER_FLAGS[@]}" "${anew[@]}" || {
    status=$?
    if [[ $status -eq 2 && ( -n "$named" || -n "$OVERWRITE" ) && ${#anew[@]} -eq 0 ]]; then
      say "vectors in $EMBEDDINGS that are to stay want the ENCODER, ENCODER_FLAGS and EMBED_FLAGS that made them;" \
        "EMBED=1 OVERWRITE=1 makes them anew"
    fi
    exit "$status"
  }
fi
shared=()
if shares_search; then shared=("${WORKER_FLAGS[@]}"); fi
say "retrieving $N_DOCS passages a question: $*"
python -m gainRAG.retrieval_engine.retrieval --model_name_or_path "$ENCODER" --passages "$PASSAGES" \
  "${vectors[@]}" --data_path "${files[@]}" --output_dir "$WORK/retrieved" --n_docs "$N_DOCS" \
  "${ENCODER_FLAGS[@]}" "${RETRIEVAL_FLAGS[@]}" "${shared[@]}" "${OVERWRITE_FLAG[@]}"
