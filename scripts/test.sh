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

install_chromium() {  # for the tests of pages; elsewhere they are skipped, and say so at the end
    local name
    for name in "${M3_CHROMIUM:-}" chromium chromium-browser google-chrome; do
        [ -z "$name" ] || ! command -v "$name" >/dev/null || return 0
    done
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "Installing Chromium for the tests of pages"
        if apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
            apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null; then
            return 0
        fi
    fi
    echo "No Chromium: tests of pages are left out. Install one (Debian: apt-get install chromium), or name it by M3_CHROMIUM." >&2
}
install_chromium

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
# Tests compare with numbers of a CPU; those of tests/model/test_on_cuda.py are for a GPU.
if [ "$fast" = no ] && has_nvidia_gpu; then
    say "pytest: on the GPU"
    pytest tests/model/test_on_cuda.py
fi
export CUDA_VISIBLE_DEVICES=
say "pytest: quick tests, two processes, a file to each in turn"
OMP_NUM_THREADS=1 pytest -n 2 --dist loadfile -m "not slow"
[ "$fast" = no ] || exit 0
say "pytest: slow tests, one by one; they start servers, browsers and groups of processes"
pytest -m slow
