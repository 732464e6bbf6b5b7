#!/usr/bin/env bash
# Asks a server about an image, with curl:
#   bash playground/serving/ask.sh photo.png "What colour is the background?" 9
# M3_SERVER, M3_MODEL and M3_API_KEY name another server, model and key.
set -euo pipefail
image="$1" question="$2" scale="${3:-36}"

quoted() { printf '%s' "$1" | sed 's/\\/\\\\/g; s/"/\\"/g'; }

{
    printf '{"model": "%s", "matryoshka_vis_token_scale": "%s", ' "${M3_MODEL:-m3-tiny}" "$scale"
    printf '"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,'
    base64 <"$image" | tr -d '\n'
    printf '"}}, {"type": "text", "text": "%s"}]}]}' "$(quoted "$question")"
} | curl --silent --show-error --fail-with-body "${M3_SERVER:-http://127.0.0.1:8000}/v1/chat/completions" \
    --header "Content-Type: application/json" --header "Authorization: Bearer ${M3_API_KEY:-none}" --data-binary @-
