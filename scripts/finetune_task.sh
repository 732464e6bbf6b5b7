#!/usr/bin/env bash
# A trained all-scales model on data of one's own.
#   bash scripts/finetune_task.sh [RECIPE] [key=value ...]        (default: llava_1_5_7b_m3_task; see scripts/launch.sh)
ZERO="${ZERO:-zero3}"
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
launch llava_1_5_7b_m3_task "$@"
