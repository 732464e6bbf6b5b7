#!/usr/bin/env bash
# All of a model over all its scales with DeepSpeed ZeRO-3 on every accelerator of this machine.
#   bash scripts/finetune.sh RECIPE [key=value ...] [--matryoshka_vis_token_scale 1,9,36,144,576]
# GPUS: how many processes (default: every accelerator). ZERO: zero2, zero3 (default) or zero3_offload.
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
recipe="${1:-llava_1_5_7b_m3}"
shift || true
with_deepspeed "${ZERO:-zero3}" "$recipe" "$@"
