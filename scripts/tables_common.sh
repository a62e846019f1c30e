# shellcheck shell=bash
# What the table scripts share. They read WORK's retrieval output, and write $TABLES/NAME.json and NAME.md.
#
#   DATASETS    question sets, as $QUESTIONS/NAME.jsonl; one without a file is skipped and its cells stay empty
#   LIMIT       only the first questions of each; such a run keeps to its own folder, $WORK/first$LIMIT
#   SELECTOR    the trained selector
source "$(dirname "${BASH_SOURCE[0]}")/paths.sh"

: "${DATASETS:=HotpotQA_dev 2WikiMultiHopQA_dev WebQuestions_test NaturalQA_test TriviaQA_test SQuAD_test}"
: "${TABLES:=$WORK}"
RUN="$WORK${LIMIT:+/first$LIMIT}" # selections and answers
read -r -a ALL_NAMES <<<"$DATASETS"
NAMES=() # those of ALL_NAMES that can be run

fail() {
  echo "error: $*" >&2
  exit 2
}

need_selector() {
  if [[ "$SELECTOR" == /* && ! -f "$SELECTOR/config.json" ]]; then
    fail "$SELECTOR: no trained selector there; scripts/llm_supervision.sh and then scripts/selector_finetune.sh" \
      "make it, or name another: SELECTOR=FOLDER"
  fi
}

# Sets NAMES, and retrieves for those that have no retrieval output yet.
need_retrieved() {
  local name missing=()
  for name in "${ALL_NAMES[@]}"; do
    if [ -e "$WORK/retrieved/$name.jsonl" ]; then
      NAMES+=("$name")
    elif [ -e "$QUESTIONS/$name.jsonl" ]; then
      NAMES+=("$name")
      missing+=("$name")
    else
      say "SKIPPED: $name, for there is no $QUESTIONS/$name.jsonl (scripts/download_data.sh fetches question sets)"
    fi
  done
  [ ${#NAMES[@]} -gt 0 ] || fail "none of the question sets is there: $DATASETS"
  if [ ${#missing[@]} -gt 0 ]; then bash "$REPO/scripts/retrieval.sh" "${missing[@]}"; fi
  if [ "$RUN" != "$WORK" ]; then
    mkdir -p "$RUN"
    ln -sfn "$(cd "$WORK/retrieved" && pwd)" "$RUN/retrieved"
  fi
}

# Selection and generation of every method for NAMES, by the stage scripts. Gains that are there stay in use.
run_stages() {
  local name gains
  for name in "${NAMES[@]}"; do
    WORK="$RUN" SELECTOR="$SELECTOR" bash "$REPO/scripts/selector_engine.sh" "$name"
    gains="${GAINS:-}"
    if [ -e "$RUN/gains/$name.jsonl" ]; then gains=1; fi
    WORK="$RUN" GAINS="$gains" bash "$REPO/scripts/rag_generation.sh" "$name" >/dev/null
  done
}

# pick K SELECTOR NAME OUTPUT extra-flags... : one selection beyond those of selector_engine.sh
pick() {
  local k="$1" selector="$2" name="$3" output="$4"
  shift 4
  say "picking $k of $N_DOCS passages for $name with $selector"
  # shellcheck disable=SC2046,SC2086
  python -m gainRAG.selector_engine.selector_gainRag --model_name_or_path "$selector" \
    --data_path "$RUN/retrieved/$name.jsonl" --output_path "$output" --K_docs "$k" --n_candidates "$N_DOCS" \
    --lm_type "$LLM" $LLM_FLAGS $SELECTION_FLAGS $(limit_flag) "$@" >/dev/null
}

# answer K NAME OUTPUT_DIR METHOD=FILE... : the methods given, and standard_rag where WITH_STANDARD is set
answer() {
  local k="$1" name="$2" output="$3" methods=()
  shift 3
  methods=("${@%%=*}")
  if [ -n "${WITH_STANDARD:-}" ]; then methods+=(standard_rag); fi
  say "answers to $name from $k passages: ${methods[*]}"
  # shellcheck disable=SC2046,SC2086
  python -m gainRAG.rag_workflow.run_baselines --data_path "$RUN/retrieved/$name.jsonl" --task "$(task_of "$name")" \
    --lm_type "$LLM" --output_dir "$output" --K_docs "$k" --methods "${methods[@]}" --selections "$@" \
    $LLM_FLAGS $GENERATION_FLAGS $(limit_flag) >/dev/null
}

# write_table KIND NAME ANSWERS_DIR...
write_table() {
  local kind="$1" name="$2"
  shift 2
  python -m gainRAG.analysis.tables "$kind" --answers "$@" --datasets "${ALL_NAMES[@]}" \
    --output_path "$TABLES/$name.json"
  say "$TABLES/$name.json, $TABLES/$name.md"
}
