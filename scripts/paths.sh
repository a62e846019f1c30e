# shellcheck shell=bash
# Where everything is, and the models, sizes and flags of every script: this is the one place. The values below are the
# paper's. Another value comes from the environment, or from a file that a run names; the environment wins.
#
#   LLM=Qwen3-8B WORK=results/qwen bash scripts/retrieval.sh HotpotQA_dev
#   CONFIG=scripts/demo.conf bash scripts/table_main.sh
#
# *_FLAGS go to the stages as they are. In a file they are arrays, EMBED_FLAGS=(--passage_prefix "passage: "); in the
# environment they are one text, EMBED_FLAGS='--passage_prefix "passage: "'.
if [ -n "${SETTINGS_ARE_READ:-}" ]; then return; fi # by the script that called this one
SETTINGS_ARE_READ=1
set -euo pipefail
export GAINRAG_SCRIPT=1 # stages do not say what to run next: the script runs it

# shellcheck source=scripts/usage.sh
source "$(dirname "${BASH_SOURCE[0]}")/usage.sh"
say() { printf '\n=== %s\n' "$*" >&2; }
fail() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}
[ "$((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1]))" -ge 404 ] || fail "bash 4.4 or newer is needed, this is $BASH_VERSION"

REPO="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# An environment that is activated and has this package wins over the .venv that the two set-up commands make.
has_package() { command python -I -c 'import importlib.metadata as m; m.version("gainRAG")' 2>/dev/null; }
if [ -x "$REPO/.venv/bin/python" ] && { [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] || ! has_package; }; then
  export PATH="$REPO/.venv/bin:$PATH"
fi
if ! command -v python >/dev/null; then python() { python3 "$@"; }; fi

VALUES=(DATA DOWNLOADS QUESTIONS PASSAGES WORK EMBEDDINGS TABLES ENCODER LLM SELECTOR_START SELECTOR SHIPPED GPUS WORKERS
  RAY_ADDRESS PROCESSES N_DOCS NUM_PASSAGES GROUP_SIZE QUERY_MAX_LEN PASSAGE_MAX_LEN EPOCHS LEARNING_RATE BATCH K_DOCS
  LIMIT SEED TASK TRAINING DATASETS TABLE_DATASETS GAINS EMBED FAST OVERWRITE HOTPOTQA_QUESTIONS)
FLAGS=(ENCODER_FLAGS EMBED_FLAGS RETRIEVAL_FLAGS LLM_FLAGS SUPERVISION_FLAGS FILTER_FLAGS GROUP_FLAGS SPEED_FLAGS
  TRAINING_FLAGS SELECTION_FLAGS GENERATION_FLAGS)

declare -A from_environment=()
for name in "${VALUES[@]}" "${FLAGS[@]}"; do
  if [ -n "${!name+set}" ]; then from_environment[$name]="${!name}"; fi
done
if [ -n "${CONFIG:-}" ]; then
  [ -f "$CONFIG" ] || fail "CONFIG=$CONFIG: no such file"
  for name in "${FLAGS[@]}"; do
    begin="^([^#]*[[:space:];&|])?"
    if grep -Eq "$begin$name\+=" "$CONFIG" && ! grep -Eq "$begin($name=|source |\. )" "$CONFIG"; then
      fail "$CONFIG: $name+= would replace what paths.sh gives by default: write the whole list, $name=(...)"
    fi
  done
  if grep -q $'\r' "$CONFIG"; then
    fail "$CONFIG: has line ends of Windows, which would become part of the values:" \
      "sed -i 's/\r//' $CONFIG takes them away"
  fi
  own="$(IFS='|' && echo "${VALUES[*]}|${FLAGS[*]}")"
  own="[A-Za-z_]+[[:space:]]+=|($own)=[[:space:]]+[^][:space:]#=;&|]+([[:space:]]|$)" # the latter would be a command
  spaced="$(grep -nE "^[[:space:]]*($own)" "$CONFIG" || true)"
  if [[ "$spaced" =~ ^([0-9]+):[[:space:]]*([A-Za-z_]+) ]]; then
    fail "$CONFIG:${BASH_REMATCH[1]}: a space beside the = of ${BASH_REMATCH[2]}: write ${BASH_REMATCH[2]}=VALUE"
  fi
  known=" ${FLAGS[*]} SPLIT_FLAGS $(compgen -v | xargs) " # SPLIT_FLAGS are the demo's
  # shellcheck disable=SC1090
  source "$CONFIG"
  for name in $(compgen -v); do
    if [[ "$name" =~ _FLAGS?$ && "$known" != *" $name "* ]]; then
      fail "$CONFIG: $name is no setting, and nothing would read it; there are ${FLAGS[*]}"
    fi
  done
fi
for name in "${!from_environment[@]}"; do
  unset "$name"
  printf -v "$name" %s "${from_environment[$name]}"
done

# default_flags NAME FLAG... : what NAME is where nothing sets it; a text becomes an array.
default_flags() {
  local name="$1" kind words
  kind="$(declare -p "$name" 2>/dev/null || true)"
  shift
  if [[ "$kind" == "declare -a"* ]]; then return; fi
  local -n list="$name"
  if [ -n "$kind" ]; then
    words="$(xargs printf '%s\n' <<<"$list")" || fail "$name=$list: a quotation mark is never closed"
    unset "$name"
    list=()
    if [ -n "$words" ]; then mapfile -t list <<<"$words"; fi
  else
    list=("$@")
  fi
}

# Files. Question sets are $QUESTIONS/<DATASET>_<split>.jsonl; scripts/download_data.sh puts all of them there.
: "${DATA:=$REPO/data}"
: "${DOWNLOADS:=$DATA/downloads}"                 # files as published
: "${QUESTIONS:=$DATA/questions}"
: "${PASSAGES:=$DOWNLOADS/psgs_w100.tsv.gz}"
: "${WORK:=$REPO/results/paper}"                  # everything the stages write
if [[ "$WORK" != /* ]]; then WORK="$PWD/$WORK"; fi

# Models: a name of gainRAG/common/models.py, a folder or a hub id.
: "${ENCODER:=contriever-msmarco}"
: "${LLM:=Llama-3-8B-Instruct}"
: "${SELECTOR_START:=bge-reranker-base}"
: "${SELECTOR:=$WORK/selector}"
: "${SHIPPED:=}"                                  # another trained selector, for a row of its own; empty: none
: "${EMBEDDINGS:=}"                               # empty: the published vectors where they are, else made here
: "${EMBED:=}"                                    # 1: embed the passages here, however many they are

# Machines.
: "${GPUS:=1}"                                    # of this machine; 0: train without torchrun and DeepSpeed, on the CPU
: "${PROCESSES:=$((GPUS > 1 ? GPUS : 1))}"        # of the training
: "${WORKERS:=$((GPUS > 1 ? GPUS : 1))}"          # of all other stages; more than 1 need Ray
: "${RAY_ADDRESS:=}"                              # HOST:PORT of a Ray cluster; empty: this machine

# Sizes.
: "${N_DOCS:=100}"                                # passages retrieved, and weighed by the selector
: "${NUM_PASSAGES:=20}"                           # candidates that get a gain, for training
: "${GROUP_SIZE:=16}"
: "${QUERY_MAX_LEN:=512}"                         # tokens; together they are cut to what the selector can read
: "${PASSAGE_MAX_LEN:=512}"
: "${EPOCHS:=2}"
: "${LEARNING_RATE:=6e-5}"
: "${BATCH:=8}"                                   # groups an update sees, spread over PROCESSES
: "${FAST:=}"                                     # 1: trains with the fastest flags; needs a GPU with bfloat16 (Ampere on)
: "${K_DOCS:=1}"
: "${LIMIT:=}"                                    # only the first questions of every file; empty: all
: "${SEED:=42}"                                   # of the draw of training questions
: "${HOTPOTQA_QUESTIONS:=20000}"                  # drawn of HotpotQA's about 90,000
: "${TASK:=}"                                     # whose prompt; empty: the file's name up to its last _
: "${GAINS:=}"                                    # 1: the tables of answers show the gain of every pick
: "${OVERWRITE:=}"                                # 1: what was made with other settings is made anew; vectors that are large or named only with EMBED=1
: "${TRAINING:=HotpotQA_train$HOTPOTQA_QUESTIONS WebQuestions_train}"
: "${DATASETS:=HotpotQA_dev 2WikiMultiHopQA_dev WebQuestions_test NaturalQA_test TriviaQA_test SQuAD_test}"
: "${TABLE_DATASETS:=HotpotQA_dev 2WikiMultiHopQA_dev NaturalQA_test}" # of the ablation and the top-k table
: "${TABLES:=$WORK${LIMIT:+/first$LIMIT}}"        # where the tables go

ENCODER="${ENCODER%/}"
for name in TRAINING DATASETS TABLE_DATASETS; do # on one line
  read -r -d "" -a words <<<"${!name}" || true
  printf -v "$name" %s "${words[*]}"
done

for name in GAINS EMBED FAST OVERWRITE; do
  case "${!name}" in
    "" | 1) ;;
    0) printf -v "$name" "" ;;
    *) fail "$name=${!name}: wanted 1, or 0 or nothing" ;;
  esac
done

# Flags. docs/fidelity.md says what each has to do with the paper.
default_flags ENCODER_FLAGS                       # --normalize for MiniLM, E5 and BGE
default_flags EMBED_FLAGS
default_flags RETRIEVAL_FLAGS --dtype float32
default_flags LLM_FLAGS --backend hf --dtype bfloat16 --prompts reference # --backend vllm where vLLM is installed
default_flags SUPERVISION_FLAGS --gain_dtype float32 --max_new_tokens 512 --background_tokens 512 --keep_na
default_flags FILTER_FLAGS                        # --keep answerable or holds for an LLM that often fails on good passages
default_flags GROUP_FLAGS                         # of data2selector.py: --no_pseudo, --signal, --max_ppl
if [ -n "$FAST" ]; then # the same loss; nothing computed twice, compiled, questions of like length together
  default_flags SPEED_FLAGS --bf16 --tf32 True --torch_compile --train_sampling_strategy group_by_length \
    --pad_to_multiple_of 32 --logging_steps 50 --dataloader_num_workers 4
fi
default_flags SPEED_FLAGS --fp16 --gradient_checkpointing --pad_to_multiple_of 8 --logging_steps 1 \
  --deepspeed "$REPO/deepspeed/ds_stage0.json"    # the published ones
default_flags TRAINING_FLAGS
default_flags SELECTION_FLAGS --background_tokens 512 --keep_na
default_flags GENERATION_FLAGS --max_new_tokens 512 # of filtering and answering; with vLLM also --tensor_parallel_size 8

LIMIT_FLAG=(${LIMIT:+--limit "$LIMIT"})
OVERWRITE_FLAG=(${OVERWRITE:+--overwrite changed})
WORKER_FLAGS=()
if [[ -n "$RAY_ADDRESS" && "$WORKERS" -le 1 ]]; then
  fail "RAY_ADDRESS=$RAY_ADDRESS needs WORKERS, the GPUs of the whole cluster; here WORKERS=$WORKERS." \
    "RAY_ADDRESS= takes this machine alone"
fi
if [ "$WORKERS" -gt 1 ]; then WORKER_FLAGS=(--num_workers "$WORKERS" ${RAY_ADDRESS:+--ray_address "$RAY_ADDRESS"}); fi

task_of() { echo "${TASK:-${1%_*}}"; }

# needs_vectors : whether retrieval is by vectors; BM25 reads words.
needs_vectors() { [[ ! " ${RETRIEVAL_FLAGS[*]} " =~ " --retriever"[\ =]"bm25 " ]]; }

# published_vectors : the name by which download_data.sh has vectors of PASSAGES by ENCODER; nothing where it has none,
# where none are needed, and where EMBEDDINGS names others or EMBED wants them made. A folder may hold any weights.
published_vectors() {
  if [ -n "$EMBEDDINGS$EMBED" ] || ! needs_vectors; then return; fi
  case "$PASSAGES ${ENCODER#facebook/}" in
    "$DOWNLOADS/psgs_w100.tsv.gz contriever-msmarco") echo embeddings ;;
    "$DOWNLOADS/psgs_w100.tsv.gz contriever") echo embeddings_contriever ;;
  esac
}

# is_large : whether PASSAGES are more than a million; fewer lines need not be read to know
is_large() {
  local million=1000000 lines
  lines="$(gzip -cdf "$PASSAGES" 2>/dev/null | head -n $((million + 1)) | wc -l)" || true
  [ "$lines" -gt "$million" ]
}

# need_even_batch : an error where the groups of an update cannot be shared out among the processes.
need_even_batch() {
  if ((BATCH % PROCESSES)); then
    fail "BATCH=$BATCH groups an update cannot be spread evenly over PROCESSES=$PROCESSES:" \
      "take PROCESSES that divide BATCH, or another BATCH (the paper's is 8)"
  fi
}

# need_selector : an error where the trained selector is to be a folder, and is not there.
need_selector() {
  if [[ "$SELECTOR" == /* && ! -f "$SELECTOR/config.json" ]]; then
    fail "$SELECTOR: no trained selector there; scripts/llm_supervision.sh and then scripts/selector_finetune.sh" \
      "make it, or name another: SELECTOR=FOLDER"
  fi
}

# script NAME ARGUMENT... : another script, with the settings of this one.
script() {
  local file="$REPO/scripts/$1.sh"
  shift
  # shellcheck disable=SC1090
  (source "$file" "$@")
}

# compute_gains NAME PASSAGES extra-flags... : $WORK/gains/NAME.jsonl, of the first PASSAGES passages of its questions
compute_gains() {
  local name="$1" passages="$2"
  shift 2
  python -m gainRAG.llm_supervision.construct_hf --data_path "$WORK/retrieved/$name.jsonl" \
    --output_path "$WORK/gains/$name.jsonl" --task "$(task_of "$name")" --lm_type "$LLM" --alpha 0.5 \
    --num_passages "$passages" "${LLM_FLAGS[@]}" "${SUPERVISION_FLAGS[@]}" "${WORKER_FLAGS[@]}" "${LIMIT_FLAG[@]}" \
    "${OVERWRITE_FLAG[@]}" "$@"
}

# find_pseudo FOLDER NAME : sets PSEUDO, the flags with which a stage takes up the pseudo-passages that scoring NAME wrote
# under FOLDER, or none where SELECTION_FLAGS leave them out
find_pseudo() {
  PSEUDO=(--background_path "$1/scored/trained/$2.background.jsonl")
  if [[ " ${SELECTION_FLAGS[*]} " == *" --no_pseudo "* ]]; then PSEUDO=(--no_pseudo); fi
}

# score_candidates WHICH SELECTOR NAME extra-flags... : the scores that the selector gives to NAME's retrieved passages and
# pseudo-passages, $WORK/scored/WHICH/NAME.jsonl
score_candidates() {
  local which="$1" selector="$2" name="$3" candidates="$((N_DOCS + 1))" # the pseudo-passage is one
  shift 3
  if [[ " ${SELECTION_FLAGS[*]} $* " == *" --no_pseudo "* ]]; then candidates="$N_DOCS"; fi
  say "scores of all candidates of $name by $selector"
  python -m gainRAG.selector_engine.selector_gainRag --model_name_or_path "$selector" \
    --data_path "$WORK/retrieved/$name.jsonl" --output_path "$WORK/scored/$which/$name.jsonl" \
    --K_docs "$candidates" --n_candidates "$N_DOCS" --lm_type "$LLM" "${LLM_FLAGS[@]}" "${SELECTION_FLAGS[@]}" \
    "${WORKER_FLAGS[@]}" "${LIMIT_FLAG[@]}" "${OVERWRITE_FLAG[@]}" "$@"
}

# pick_best WHICH NAME OUTPUT flags... : the best of the candidates that WHICH has scored
pick_best() {
  python -m gainRAG.selector_engine.pick_best --data_path "$WORK/scored/$1/$2.jsonl" --output_path "$3" \
    "${OVERWRITE_FLAG[@]}" "${@:4}"
}

# need_names FOLDER NAME... : usage where there is no name; an error where FOLDER lacks NAME.jsonl of one of them. Both
# before anything is computed.
need_names() {
  local folder="$1" name
  shift
  if [[ $# -eq 0 || "$1" == -* ]]; then usage "$@"; fi
  for name in "$@"; do
    [ -e "$folder/$name.jsonl" ] || fail "$folder/$name.jsonl: no such file"
  done
}
