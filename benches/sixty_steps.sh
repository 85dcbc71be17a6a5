#!/bin/sh
# The held-out loss after 60 steps on the demo's rows: a bank, and a LoRA of as many values on q and v with the alpha and
# learning rate that are best for it. Prints a line for each seed, and the ratio of the means.
# Usage: benches/sixty_steps.sh [PROGRAM [SEEDS]]
set -eu
program=$(realpath "${1:-target/release/atombank}")
seeds=${2:-10}
cd "$(dirname "$0")/.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

loss() {
    "$program" --quiet train "fixtures/demo/$1.toml" --set "seed=$2" --set "output='$scratch/$1-$2'" \
        --set training.steps=60 --set training.eval_every=0 --set training.checkpoint_every=0 --json $3 |
        python3 -c 'import json, sys; print(json.load(sys.stdin)["eval_loss"])'
}

for seed in $(seq "$seeds"); do
    bank=$(loss bank "$seed" "")
    lora=$(loss lora "$seed" "--set adapter.lora_alpha=176 --set training.learning_rate=0.005")
    echo "seed $seed: bank $bank, LoRA $lora"
done | tee "$scratch/lines"
awk '{ gsub(",", ""); bank += $4; lora += $6 } END { printf "mean: bank %.4f, LoRA %.4f, ratio %.3f\n", bank / NR, lora / NR, bank / lora }' "$scratch/lines"
