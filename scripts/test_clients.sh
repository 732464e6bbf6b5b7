#!/usr/bin/env bash
# Points clients of other projects (OpenAI's, LiteLLM, LangChain, LlamaIndex, instructor) at a served m3-tiny.
#   bash scripts/test_clients.sh [FOLDER]      their packages go into FOLDER (default: .clients), never into M3's own environment
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
folder="${1:-.clients}"
port="${M3_CLIENTS_PORT:-8137}"
python="${M3_PYTHON:-.venv/bin/python}" # with M3 and its extra `serve`

make_environment() { # folder, packages...
    local environment="$1"
    shift
    [ -x "$environment/bin/python" ] || python3 -m venv "$environment"
    "$environment/bin/python" -m pip install --quiet "$@"
}
make_environment "$folder/newest" openai litellm langchain-openai llama-index-llms-openai-like instructor pytest pillow httpx
make_environment "$folder/oldest" openai==2.0.0 pytest pillow httpx

PYTHONPATH="$PWD" "$python" -m m3.cli serve --model-path playground/m3-tiny --port "$port" &
server=$!
trap 'kill "$server" 2>/dev/null; wait "$server" 2>/dev/null || true' EXIT
export M3_CLIENTS_ADDRESS="http://127.0.0.1:$port"
for _ in $(seq 240); do
    kill -0 "$server" || exit 1
    ! "$folder/newest/bin/python" -c "import httpx, sys; sys.exit(httpx.get('$M3_CLIENTS_ADDRESS/health').status_code != 200)" 2>/dev/null || break
    sleep 0.5
done
# without the settings of pyproject.toml, which name plugins of M3's own environment
options=(-q --disable-warnings -c /dev/null --rootdir tests/serving/clients --confcutdir tests/serving/clients -p no:cacheprovider)
"$folder/newest/bin/python" -m pytest "${options[@]}" tests/serving/clients
"$folder/oldest/bin/python" -m pytest "${options[@]}" tests/serving/clients/test_openai.py
