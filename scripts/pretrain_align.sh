#!/usr/bin/env bash
# Stage 1: the connector alone, with DeepSpeed ZeRO-2.
#   bash scripts/pretrain_align.sh [RECIPE] [key=value ...]        (default: align; see scripts/launch.sh)
ZERO="${ZERO:-zero2}"
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
launch align "$@"
