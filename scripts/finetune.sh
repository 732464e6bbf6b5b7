#!/usr/bin/env bash
# All of a model over all its scales, with DeepSpeed ZeRO-3.
#   bash scripts/finetune.sh [RECIPE] [key=value ...]        (default: llava_1_5_7b_m3; see scripts/launch.sh)
ZERO="${ZERO:-zero3}"
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
launch llava_1_5_7b_m3 "$@"
