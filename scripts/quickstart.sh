#!/usr/bin/env bash
# From nothing to a chart of accuracy against cost on two CPU cores: installs, teaches the shipped tiny model to choose its
# budget from the picture and the question, sweeps every budget of it and of its untrained base, writes the report.
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
    step "1/4 Drawing pictures that the model was not trained on" m3 data tiny --out $RUN/data --train 400 --test 0 --seed 7
fi
step "2/4 Teaching the model to choose: what do 2,400 questions lose at each budget?" \
    m3 train m3/recipes/tiny_router.yaml run=$RUN/m3-tiny model=playground/m3-tiny "data.sources.0.path=$RUN/data/train" \
    samples=1600 held_out=800 "budget_router.targets=[score]"
step "3/4 Sweeping its budgets (tokens @ pixels) and its choices, and the base with plain pooling" \
    m3 sweep $RUN/m3-tiny/checkpoints/final $BASE --tasks m3_tiny --limit 100 --out $RUN/sweep \
    --scales 1@24,9@24,4@48,9@48,36@48,1,4,9,36,144,auto:0.9,auto
step "4/4 Report" m3 report $RUN/sweep

say "Done in $((SECONDS / 60)) min $((SECONDS % 60)) s"
echo "The chart:  $M3_ROOT/$RUN/sweep/accuracy_vs_cost.png"
echo "The table:  $M3_ROOT/$RUN/sweep/summary.csv"
echo "The page:   $M3_ROOT/$RUN/sweep/report.html   (open it in a browser)"
