#!/usr/bin/env bash
# Installs what is missing, then runs every check: format, lint, import layers, types, tests.
#   bash scripts/test.sh           everything
#   bash scripts/test.sh --fast    without the tests marked slow
#   bash scripts/test.sh [--fast] tests/nesting -k count     the rest of the line goes to pytest
set -euo pipefail
M3_WITH=serve
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"
cd "$M3_ROOT"
export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}" HF_DATASETS_OFFLINE="${HF_DATASETS_OFFLINE:-1}"
export TRANSFORMERS_OFFLINE="${TRANSFORMERS_OFFLINE:-1}" TOKENIZERS_PARALLELISM="${TOKENIZERS_PARALLELISM:-false}"

selection=()
if [ "${1:-}" = --fast ]; then
    selection=(-m "not slow")
    shift
fi
say "ruff format";    ruff format --check .
say "ruff check";     ruff check .
say "import layers";  lint-imports
say "pyright";        pyright --pythonpath "$M3_VENV/bin/python"
say "pytest";         pytest "${selection[@]}" "$@"
