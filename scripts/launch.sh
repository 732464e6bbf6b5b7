# Sourced by the launchers beside it: `m3 train RECIPE ...` on every accelerator of this machine, or on $GPUS of them.
# The first argument is the recipe unless it is key=value or an option; then the launcher's own recipe is meant. The others
# pass through: key=value, --matryoshka_vis_token_scale 1,9,36,144,576, --dry-run. Paths are those of the folder one stands in, as
# under `m3 train`. No further logic but the choice of LAUNCHER: deepspeed (with ZERO=zero2, zero3 or zero3_offload), torchrun, or accelerate (with ACCELERATE=FILE).
set -euo pipefail
SCRIPTS="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
export PYTHONPATH="${SCRIPTS%/*}${PYTHONPATH:+:$PYTHONPATH}"  # this clone's code, from wherever one stands
GPUS="${GPUS:-$(python -c 'import torch; print(max(1, torch.accelerator.device_count()))')}"
PORT="${MASTER_PORT:-29500}"

launch() {  # launch DEFAULT_RECIPE ARGUMENTS...
    case "${2:-}" in
        "" | -* | *=*) ;;
        *) shift ;;
    esac
    case "${LAUNCHER:-deepspeed}" in
        deepspeed)
            deepspeed --num_accelerators "$GPUS" --master_port "$PORT" --no_local_rank --module m3.cli train "$1" \
                "hardware.deepspeed=$SCRIPTS/deepspeed/${ZERO:-zero3}.json" "${@:2}" ;;
        torchrun)
            torchrun --nproc-per-node "$GPUS" --master-port "$PORT" --module m3.cli train "$@" ;;
        accelerate)
            accelerate launch --config_file "${ACCELERATE:-$SCRIPTS/accelerate/fsdp2.yaml}" --num_processes "$GPUS" \
                --main_process_port "$PORT" --module m3.cli train "$@" ;;
        *) echo "LAUNCHER is $LAUNCHER; expected deepspeed, torchrun or accelerate" >&2; exit 2 ;;
    esac
}
