# Sourced by the launchers beside it: `m3 train RECIPE ...` on one process or several. No logic but the choice of launcher.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
GPUS="${GPUS:-$(python -c 'import torch; print(max(1, torch.accelerator.device_count()))')}"
PORT="${MASTER_PORT:-29500}"

with_deepspeed() {  # with_deepspeed CONFIG RECIPE ARGUMENTS...
    local config="scripts/deepspeed/$1.json" recipe="$2"
    shift 2
    deepspeed --num_accelerators "$GPUS" --master_port "$PORT" --no_local_rank --module m3.cli train "$recipe" "hardware.deepspeed=$config" "$@"
}
