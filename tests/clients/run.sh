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
rm -rf "$work/files" "$work/lora" "$work/merge" "$work/kohya" "$work/combine" "$work/mergekit_yaml" "$work/extract" "$work/architectures" "$work/families" "$work/decoders" "$work/quantize" "$work/hub" "$work/prequantized" "$work/training" "$work/adapters_trained" "$work/bank_trained" "$work/convolutions" "$work/checkpoints" "$work/templates" "$work/mergekit_methods" "$work/moe"
# One script on each core, those that take longest first. Each prints its lines when it ends.
run() {
    local script=${1%:*} folder=${1#*:} status=0
    "$work/venv/bin/python" "tests/clients/$script.py" "$binary" "$work/$folder" >"$work/$folder.txt" 2>"$work/$folder.err" || status=1
    cat "$work/$folder.txt"
    [ "$status" = 0 ] || tail -n 20 "$work/$folder.err"
    return "$status"
}
export -f run
export work binary
failed=0
scripts=(families:families adapters_trained:adapters_trained decoders:decoders quantize:quantize merge:merge mergekit_yaml:mergekit_yaml combine:combine lora:lora check:files prequantized:prequantized
    kohya:kohya architectures:architectures extract:extract hub:hub training:training convolutions:convolutions bank_trained:bank_trained checkpoints:checkpoints templates:templates
    mergekit_methods:mergekit_methods moe:moe)
printf '%s\n' "${scripts[@]}" | xargs -P "$(nproc)" -I {} bash -c 'run {}' || failed=1
for script in "${scripts[@]}"; do
    tail -n 1 "$work/${script#*:}.txt"
done
exit "$failed"
