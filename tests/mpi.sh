#!/usr/bin/env bash
# Trains the demo's bank with two ranks of MPI: the same bits as one process, resuming with another number of ranks, and
# ranks that are killed at random moments. Trains a LoRA on rows that ranks can't share equally. Needs Open MPI or MPICH, and libclang to build.
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

# A LoRA on a few rows with different numbers of targets: OUTPUT ROWS ARGUMENT..
lora() {
    "$program" train "$work/lora.toml" --threads 1 --quiet \
        --set "output=$work/$1" --set "data.train=$2" --set "data.eval=$2" "${@:3}"
}
export -f lora
cat > "$work/lora.toml" <<END
kind = "lora"
base = "fixtures/convert/llama/model"
output = ""
[data]
train = ""
[adapter]
r = 2
prompt_template = "{prompt}"
[training]
batch_size = 2
learning_rate = 0.02
warmup_steps = 0
schedule = "constant"
eval_every = 2
steps = 12
END
lora_ranks() { # N OUTPUT ROWS ARGUMENT..
    mpirun -n "$1" "${oversubscribe[@]}" bash -c 'lora "$@"' lora "${@:2}"
}
targets() { # OUTPUT: the numbers of targets of the steps
    sed -nE 's/.*"completion_tokens":([0-9]+).*/\1/p' "$work/$1/metrics.jsonl" | paste -sd ' '
}
expect() { # WHAT FOUND EXPECTED
    [[ $2 == "$3" ]] || { echo "$1: expected $3, found $2"; exit 1; }
    echo "ok: $1: $2"
}

# Targets differ between ranks: the step is divided by the targets of both.
few=fixtures/train/losses/accumulation.jsonl
lora_ranks 2 few-two "$few"
lora few-one "$few" --set training.gradient_accumulation=2
same few-one few-two

# Packed sequences, of which ranks have different numbers, stopped inside an epoch.
rows=fixtures/train/resume.jsonl
packed=(--set training.packing=true --set training.batch_size=1 --set data.max_length=24)
lora packed-one "$rows" "${packed[@]}" --set training.gradient_accumulation=2
lora_ranks 2 packed-two "$rows" "${packed[@]}"
same packed-one packed-two
lora_ranks 2 packed-again "$rows" "${packed[@]}" --set training.steps=6
lora_ranks 2 packed-again "$rows" "${packed[@]}" --resume
same packed-one packed-again
expect "targets of a resumed run" "$(targets packed-again)" "$(targets packed-one)"

# Seven rows of 2 to 8 targets: every row once in an epoch, whatever the ranks.
answer=in
for row in 1 2 3 4 5 6 7; do
    echo "{\"prompt\": \"row $row\\n\", \"completion\": \"$answer\"}"
    answer+=" in"
done > "$work/rows.jsonl"
epoch=(--set training.epochs=1 --set training.step_ends_with_epoch=true --set training.shuffle=false)
lora_ranks 2 epoch-two "$work/rows.jsonl" "${epoch[@]}"
expect "two ranks" "$(targets epoch-two)" "14 21"
lora_ranks 3 epoch-three "$work/rows.jsonl" "${epoch[@]}"
expect "three ranks" "$(targets epoch-three)" "27 8"
head -n 1 "$work/rows.jsonl" > "$work/row.jsonl"
lora_ranks 2 epoch-row "$work/row.jsonl" "${epoch[@]}"
expect "one row" "$(targets epoch-row)" "2"

# All ranks stop for want of progress at the same step.
patience=(--set training.learning_rate=0 --set training.patience=2 --set training.steps=40 --set training.checkpoint_every=6)
lora_ranks 2 patience-two "$work/rows.jsonl" "${patience[@]}"
lora patience-one "$work/rows.jsonl" "${patience[@]}" --set training.gradient_accumulation=2
diff <(losses patience-one) <(losses patience-two)
expect "patience" "$(tail -n 1 "$work/patience-two/metrics.jsonl" | cut -d , -f 1,2)" '{"step":6,"end":"patience"'

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
