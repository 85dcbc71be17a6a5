#!/usr/bin/env bash
# Has real clients load what atombank writes, or do the same: llama.cpp (xllamacpp), transformers, peft, LyCORIS,
# gguf-py, ggml, compressed-tensors, bitsandbytes.
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
rm -rf "$work/files" "$work/lora" "$work/merge" "$work/kohya" "$work/combine" "$work/extract" "$work/architectures" "$work/families" "$work/quantize" "$work/hub" "$work/prequantized"
failed=0
lines=()
for script in check:files lora:lora merge:merge kohya:kohya combine:combine extract:extract architectures:architectures families:families quantize:quantize hub:hub prequantized:prequantized; do
    "$work/venv/bin/python" "tests/clients/${script%:*}.py" "$binary" "$work/${script#*:}" | tee "$work/lines.txt" || failed=1
    lines+=("$(tail -n 1 "$work/lines.txt")")
done
printf '%s\n' "${lines[@]}"
exit "$failed"
