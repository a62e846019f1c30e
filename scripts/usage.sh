# shellcheck shell=bash
# What every script says of itself, its own head, and the Python of those that install nothing.

# usage [--help] : prints the head of the calling script and ends it, with 2 unless --help was asked for.
usage() {
  local i=1
  while [[ "${BASH_SOURCE[i]}" =~ /(usage|paths|tables_common)\.sh$ ]]; do i=$((i + 1)); done
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' "${BASH_SOURCE[i]}" >&2
  if [[ "${1:-}" == -h || "${1:-}" == --help ]]; then exit 0; else exit 2; fi
}

# find_torch_python REPO : sets PYTHON, unless it is set: of the activated environment if that has torch, else the .venv's
find_torch_python() {
  if [ -n "${PYTHON:-}" ]; then return; fi
  PYTHON=python3
  if [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]; then
    PYTHON=python
    if python -I -c 'import importlib.metadata as m; m.version("torch")' 2>/dev/null; then return; fi
  fi
  if [ -x "$1/.venv/bin/python" ]; then PYTHON="$1/.venv/bin/python"; fi
}

# need_nothing ARGUMENT... : usage where there are arguments.
need_nothing() { if [ $# -gt 0 ]; then usage "$@"; fi; }
