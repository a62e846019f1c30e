# shellcheck shell=bash
# What the table scripts share. They read WORK's retrieval output, and write $TABLES/NAME.json and NAME.md.
#
#   DATASETS    question sets, as $QUESTIONS/NAME.jsonl; one without a file is skipped and its cells stay empty
#   LIMIT       only the first questions of each; such a run keeps to its own folder, $WORK/first$LIMIT
#   SELECTOR    the trained selector
source "$(dirname "${BASH_SOURCE[0]}")/paths.sh"

need_nothing "$@"
RUN="$WORK${LIMIT:+/first$LIMIT}" # selections and answers
NAMES=()                          # those of ALL_NAMES that can be run

# need_retrieved NAME... : sets NAMES, and retrieves for those that have questions and a corpus; where there is neither,
# an earlier retrieval output is taken as it is.
need_retrieved() {
  local name to_retrieve=()
  ALL_NAMES=("$@")
  for name in "$@"; do
    if [[ -e "$QUESTIONS/$name.jsonl" && (-e "$PASSAGES" || ! -e "$WORK/retrieved/$name.jsonl") ]]; then
      to_retrieve+=("$name")
    elif [ ! -e "$WORK/retrieved/$name.jsonl" ]; then
      say "SKIPPED: $name, for there is no $QUESTIONS/$name.jsonl (scripts/download_data.sh fetches question sets)"
      continue
    fi
    NAMES+=("$name")
  done
  [ ${#NAMES[@]} -gt 0 ] || fail "none of the question sets is there: $*"
  if [ ${#to_retrieve[@]} -gt 0 ]; then script retrieval "${to_retrieve[@]}" >/dev/null; fi
  if [ "$RUN" != "$WORK" ]; then
    mkdir -p "$RUN"
    ln -sfn "$(cd "$WORK/retrieved" && pwd)" "$RUN/retrieved"
  fi
}

# select_all: every selection of the main table for NAMES. The pseudo-passages written here serve the other tables.
select_all() { (WORK="$RUN" && script selector_engine "${NAMES[@]}"); }

# answer_all: the answers of every method of the main table. Gains that are there stay in use.
answer_all() {
  local name gains
  for name in "${NAMES[@]}"; do
    gains="$GAINS"
    if [ -e "$RUN/gains/$name.jsonl" ]; then gains=1; fi
    (WORK="$RUN" GAINS="$gains" && script rag_generation "$name" >/dev/null)
  done
}

# pick WHICH NAME OUTPUT flags... : picks beyond those of selector_engine.sh
pick() { WORK="$RUN" pick_best "$@"; }

# answer K NAME OUTPUT_DIR METHODS METHOD=FILE... : the METHODS, a list in one word, from the selections
answer() {
  local k="$1" name="$2" output="$3" methods
  read -r -a methods <<<"$4"
  shift 4
  say "answers to $name from $k passages: ${methods[*]}"
  python -m gainRAG.rag_workflow.run_baselines --data_path "$RUN/retrieved/$name.jsonl" --task "$(task_of "$name")" \
    --lm_type "$LLM" --output_dir "$output" --K_docs "$k" --methods "${methods[@]}" --selections "$@" \
    "${LLM_FLAGS[@]}" "${GENERATION_FLAGS[@]}" "${LIMIT_FLAG[@]}" "${OVERWRITE_FLAG[@]}" >/dev/null
}

# write_table KIND NAME ANSWERS_DIR...
write_table() {
  local kind="$1" name="$2"
  shift 2
  python -m gainRAG.analysis.tables "$kind" --answers "$@" --datasets "${ALL_NAMES[@]}" \
    --output_path "$TABLES/$name.json"
  say "$TABLES/$name.json, $TABLES/$name.md"
}
