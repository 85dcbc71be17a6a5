#!/usr/bin/env bash
# Has real clients load what atombank writes, or do the same: llama.cpp (xllamacpp), transformers, peft, LyCORIS, mergekit,
# gguf-py, ggml, compressed-tensors, bitsandbytes, tensorboard.
#
#   tests/clients/run.sh [CARGO BUILD ARGS ...]
#
# Sets up its own virtual environment in target/clients and needs PyPI for that the first time; ggml itself is out of an
# npm package, kept there too.
set -euo pipefail
cd "$(dirname "$0")/../.."
work=target/clients
mkdir -p "$work"
if ! cmp -s tests/clients/requirements.txt "$work/installed.txt"; then
    rm -rf "$work/venv"
    python3 -m venv "$work/venv"
    "$work/venv/bin/pip" install --quiet --disable-pip-version-check -r tests/clients/requirements.txt
    cp tests/clients/requirements.txt "$work/installed.txt"
fi
cargo build "$@"
binary=$(cargo build "$@" --message-format=json 2>/dev/null | grep -o '"executable":"[^"]*/atombank"' | tail -n 1 | cut -d '"' -f 4)
# One script on each core, those that take longest first. Each prints its lines when it ends.
run() {
    local script=$1 status=0
    rm -rf "${work:?}/$script"
    "$work/venv/bin/python" "tests/clients/$script.py" "$binary" "$work/$script" >"$work/$script.txt" 2>"$work/$script.err" || status=1
    cat "$work/$script.txt"
    [ "$status" = 0 ] || tail -n 20 "$work/$script.err"
    return "$status"
}
export -f run
export work binary
failed=0
scripts=(
    families
    renamed
    adapters_trained
    decoders
    quantize
    merge
    kinds
    combine
    mergekit_yaml
    lora
    check
    prequantized
    kohya
    architectures
    extract
    extract_mergekit
    hub
    training
    convolutions
    doubles
    forms
    filter_atoms
    bank_trained
    checkpoints
    templates
    mergekit_methods
    moe
    vocabulary
    tokensurgeon
)
printf '%s\n' "${scripts[@]}" | xargs -P "$(nproc)" -I {} bash -c 'run {}' || failed=1
for script in "${scripts[@]}"; do
    tail -n 1 "$work/$script.txt"
done
exit "$failed"
