# shellcheck shell=bash
# What every script says of itself: its own head.

# usage [--help] : prints the head of the calling script and ends it, with 2 unless --help was asked for.
usage() {
  local i=1
  while [[ "${BASH_SOURCE[i]}" =~ /(usage|paths|tables_common)\.sh$ ]]; do i=$((i + 1)); done
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' "${BASH_SOURCE[i]}" >&2
  if [[ "${1:-}" == -h || "${1:-}" == --help ]]; then exit 0; else exit 2; fi
}

# need_nothing ARGUMENT... : usage where there are arguments.
need_nothing() { if [ $# -gt 0 ]; then usage "$@"; fi; }
