#!/usr/bin/env bash
# From nothing to a chart of accuracy against cost on two CPU cores: installs, trains the shipped tiny model over all its
# scales for about three minutes, sweeps every scale of it and of its untrained base, writes the report.
# Run it again and it continues: what is finished is not done twice. Delete runs/quickstart to start over.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"
cd "$M3_ROOT"
export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}" HF_DATASETS_OFFLINE="${HF_DATASETS_OFFLINE:-1}"
export TRANSFORMERS_OFFLINE="${TRANSFORMERS_OFFLINE:-1}" TOKENIZERS_PARALLELISM="${TOKENIZERS_PARALLELISM:-false}"

RUN=runs/quickstart
BASE=playground/m3-tiny-base

step() {  # step TITLE COMMAND...
    local begin=$SECONDS
    say "$1"
    shift
    "$@"
    echo "-- $((SECONDS - begin)) s ($SECONDS s in all)"
}

echo "-- environment ready ($SECONDS s)"
if [ ! -f $RUN/data/suite.json ]; then
    step "1/4 Drawing training pictures" m3 data tiny --out $RUN/data --train 300 --test 0
fi
step "2/4 Training over 1, 4, 9, 36 and 144 tokens an image" \
    m3 train m3/recipes/tiny_quickstart.yaml "run=$RUN/all-scales" "model=$BASE" "data.sources.0.path=$RUN/data/train"
step "3/4 Sweeping the scales: the trained model, and its base with plain pooling" \
    m3 sweep $RUN/all-scales/checkpoints/final $BASE --tasks m3_tiny --scales 1,4,9,36,144 --out $RUN/sweep
step "4/4 Report" m3 report $RUN/sweep

say "Done in $((SECONDS / 60)) min $((SECONDS % 60)) s"
echo "The chart:  $M3_ROOT/$RUN/sweep/accuracy_vs_cost.png"
echo "The table:  $M3_ROOT/$RUN/sweep/summary.csv"
echo "The page:   $M3_ROOT/$RUN/sweep/report.html   (open it in a browser)"
