#!/usr/bin/env bash
# Trains the demo's bank with two ranks of MPI: the same bits as one process, resuming with another number of ranks, and
# ranks that are killed at random moments. Needs Open MPI or MPICH, and libclang to build.
#
#     tests/mpi.sh [--locked]          KILLS=60 tests/mpi.sh for more random moments than 3
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --features mpi "$@"
program=$PWD/${CARGO_TARGET_DIR:-target}/debug/atombank
[[ ${CARGO_TARGET_DIR:-} == /* ]] && program=$CARGO_TARGET_DIR/debug/atombank
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
# Ranks share the cores of a small machine.
oversubscribe=()
mpirun --version | grep -q 'Open MPI' && oversubscribe=(--oversubscribe --bind-to none)

train() { # OUTPUT ARGUMENT..: on one thread, so that sums have one order
    "$program" train fixtures/demo/bank.toml --threads 1 \
        --set "output=$work/$1" --set training.steps=12 --set training.batch_size=4 --set training.schedule=constant \
        --set training.checkpoint_every=2 --set training.eval_every=3 --set training.warmup_steps=2 "${@:2}"
}
export -f train
export program work
ranks() { # N OUTPUT ARGUMENT..
    mpirun -n "$1" "${oversubscribe[@]}" bash -c 'train "$@"' train "${@:2}"
}
same() { # A B: adapters, optimizers and losses
    for file in adapter_model.safetensors checkpoint-000012/optimizer.safetensors; do
        cmp "$work/$1/$file" "$work/$2/$file"
    done
    losses() { sed -E 's/.*"(loss|eval_loss)":([^,}]*).*/\1 \2/' "$work/$1/metrics.jsonl"; }
    diff <(losses "$1") <(losses "$2")
    echo "ok: $2 has the bits of $1"
}

train one --set training.gradient_accumulation=2
ranks 2 two
same one two
ranks 3 three --set training.gradient_accumulation=2
train six --set training.gradient_accumulation=6
same six three

# The step stays as large as it was with two ranks.
ranks 2 changed --set training.steps=6
train changed --resume 2> "$work/said"
grep -q 'began with 2 ranks' "$work/said"
same one changed

for ((kill = 1; kill <= ${KILLS:-3}; kill++)); do
    rm -rf "$work/killed"
    mkdir "$work/killed"
    ranks 2 killed 2> "$work/log" &
    launched=$!
    sleep "0.$((RANDOM % 900 + 100))"
    # One of the two ranks.
    victim=$(pgrep -f "^$program train .*$work/killed" | shuf -n 1 || true)
    [[ -n $victim ]] && kill -9 "$victim" 2> "$work/log" || true
    wait "$launched" && status=0 || status=$?
    for checkpoint in "$work"/killed/checkpoint-*; do
        [[ -e $checkpoint ]] || continue
        [[ -f $checkpoint/trainer_state.json && -f $checkpoint/optimizer.safetensors ]]
    done
    if ls "$work"/killed/checkpoint-* > "$work/log" 2>&1; then
        ranks 2 killed --resume
    else
        rm -rf "$work/killed"
        ranks 2 killed
    fi
    echo "kill $kill: exit code $status"
    same one killed
done
echo "mpi: passed"
