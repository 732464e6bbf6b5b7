#!/usr/bin/env bash
# Stage 3: instruction tuning over all scales, with DeepSpeed ZeRO-3.
#   bash scripts/sft.sh [RECIPE] [key=value ...]        (default: sft; see scripts/launch.sh)
ZERO="${ZERO:-zero3}"
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
launch sft "$@"
