#!/usr/bin/env bash
# Installs what is missing, then runs every check: format, lint, import layers, types, tests.
#   bash scripts/test.sh           everything
#   bash scripts/test.sh --fast    without the tests marked slow
#   bash scripts/test.sh [--fast] tests/nesting -k count     the rest of the line goes to pytest, in one process
set -euo pipefail
M3_WITH=serve
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"
cd "$M3_ROOT"
export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}" HF_DATASETS_OFFLINE="${HF_DATASETS_OFFLINE:-1}"
export TRANSFORMERS_OFFLINE="${TRANSFORMERS_OFFLINE:-1}" TOKENIZERS_PARALLELISM="${TOKENIZERS_PARALLELISM:-false}"
unset PYTHONDONTWRITEBYTECODE  # where it is set, each of the processes that tests start compiles everything anew

fast=no
if [ "${1:-}" = --fast ]; then
    fast=yes
    shift
fi
say "ruff format";    ruff format --check .
say "ruff check";     ruff check .
say "import layers";  lint-imports
say "pyright";        pyright --pythonpath "$M3_VENV/bin/python"
if [ $# -gt 0 ]; then
    selection=()
    [ "$fast" = no ] || selection=(-m "not slow")
    say "pytest";     pytest "${selection[@]}" "$@"
    exit
fi
say "pytest: quick tests, two processes, a file to each in turn"
OMP_NUM_THREADS=1 pytest -n 2 --dist loadfile -m "not slow"
[ "$fast" = no ] || exit 0
say "pytest: slow tests, one by one; they start servers, browsers and groups of processes"
pytest -m slow
