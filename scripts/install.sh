#!/usr/bin/env bash
# Makes the environment (.venv, or $M3_VENV) with the tested versions and puts it first on PATH. To be sourced or run;
# where everything is up to date it does nothing. $PYTHON names the interpreter to make it with. M3_WITH=serve installs what the
# server needs as well.
set -euo pipefail

M3_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
M3_VENV="${M3_VENV:-$M3_ROOT/.venv}"
PINS="$M3_ROOT/scripts/constraints.txt"
SERVE_PINS="$M3_ROOT/scripts/constraints-serve.txt"

export PIP_DISABLE_PIP_VERSION_CHECK=1

say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }

find_python() {
    local name
    for name in ${PYTHON:-python3 python3.11 python3.12 python3.13 python}; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$name"
            return
        fi
    done
    echo "Python 3.11 or newer was not found. Install one, or name it: PYTHON=/path/to/python3 bash $0" >&2
    return 1
}

cpu_torch_index() {  # PyPI's torch for Linux brings 4 GB of CUDA; the CPU build is on torch's own index
    local index=https://download.pytorch.org/whl/cpu
    if [ "$(uname -s)" = Linux ] &&
        python -c "import urllib.request; urllib.request.urlopen('$index/', timeout=5)" >/dev/null 2>&1; then
        echo "--extra-index-url $index"
    fi
}

has_nvidia_gpu() {  # M3_DEVICE=cuda or cpu says it where the machine cannot (building an image)
    [ "${M3_DEVICE:-}" = cuda ] || { [ -z "${M3_DEVICE:-}" ] && command -v nvidia-smi >/dev/null && nvidia-smi >/dev/null 2>&1; }
}

wanted="$M3_ROOT $(cat "$PINS" "$M3_ROOT/setup.py" "$M3_ROOT/scripts/install.sh" | cksum)"
if [ "$(cat "$M3_VENV/.m3_installed" 2>/dev/null)" != "$wanted" ]; then
    if [ ! -x "$M3_VENV/bin/python" ]; then
        say "Making $M3_VENV"
        "$(find_python)" -m venv "$M3_VENV" || {
            echo "Python's venv module does not work here (on Debian and Ubuntu: apt install python3-venv)." >&2
            rm -rf "$M3_VENV"
            exit 1
        }
    fi
    export PATH="$M3_VENV/bin:$PATH"
    if has_nvidia_gpu; then
        say "Installing for this machine's NVIDIA GPU"
        python -m pip install -c "$PINS" torch torchvision setuptools
        python -m pip install -c "$PINS" -c "$SERVE_PINS" --no-build-isolation -e "$M3_ROOT[train,eval,dev]"
    else
        say "Installing for the CPU (2 to 5 minutes)"
        # The pins are the whole environment, so nothing is left to resolve. Without torchvision, whose registry build
        # fits CUDA's torch alone, and without what lmms-eval needs for other people's tasks.
        # shellcheck disable=SC2046
        python -m pip install --no-deps $(cpu_torch_index) -r "$PINS"
        python -m pip install --no-deps --no-build-isolation -e "$M3_ROOT"
    fi
    echo "$wanted" >"$M3_VENV/.m3_installed"
fi
export PATH="$M3_VENV/bin:$PATH"

if [ "${M3_WITH:-}" = serve ]; then
    wanted="$(cksum <"$SERVE_PINS")"
    if [ "$(cat "$M3_VENV/.m3_installed_serve" 2>/dev/null)" != "$wanted" ]; then
        say "Installing what the server needs"
        python -m pip install --no-deps -r "$SERVE_PINS"
        echo "$wanted" >"$M3_VENV/.m3_installed_serve"
    fi
fi
