#!/usr/bin/env bash
# Adapters (LoRA) over all scales, with DeepSpeed ZeRO-3.
#   bash scripts/finetune_lora.sh [RECIPE] [key=value ...]        (default: llava_1_5_7b_m3_lora; see scripts/launch.sh)
ZERO="${ZERO:-zero3}"
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
launch llava_1_5_7b_m3_lora "$@"
