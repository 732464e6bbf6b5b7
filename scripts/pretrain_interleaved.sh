#!/usr/bin/env bash
# Stage 2: connector and decoder on interleaved documents, with DeepSpeed ZeRO-3.
#   bash scripts/pretrain_interleaved.sh [RECIPE] [key=value ...]        (default: pretrain_interleaved; see scripts/launch.sh)
ZERO="${ZERO:-zero3}"
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
launch pretrain_interleaved "$@"
