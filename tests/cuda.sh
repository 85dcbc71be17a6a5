#!/usr/bin/env bash
# Builds the program for CUDA and compares what it computes on a GPU with what it computes on the CPU.
#
#   tests/cuda.sh [CARGO BUILD ARGS ...]
#
# Exit code 2 where there is no GPU, 1 where a comparison failed. docs/cuda.md says what a build needs.
#
# PROGRAM=FILE    compares with this program and builds nothing
# PYTHON=FILE     uses this Python, with numpy, torch, transformers and safetensors; without it, the environment of
#                 tests/clients/run.sh is used, which needs PyPI the first time
# DEVICE=NAME     another device than cuda, such as cuda:1; with cpu, only the script itself is tried
# WORK=FOLDER     where files are written; small models that are there already are not made again, and then numpy is
#                 all that is needed
set -euo pipefail
cd "$(dirname "$0")/.."
device=${DEVICE:-cuda}
if [ "$device" != cpu ] && ! nvidia-smi -L 2>/dev/null | grep -q '^GPU '; then
    echo "tests/cuda.sh: no GPU: nvidia-smi lists none" >&2
    exit 2
fi
work=${WORK:-target/cuda}
mkdir -p "$work"
python=${PYTHON:-}
if [ -z "$python" ]; then
    clients=target/clients
    if ! cmp -s tests/clients/requirements.txt "$clients/installed.txt"; then
        rm -rf "$clients/venv"
        python3 -m venv "$clients/venv"
        "$clients/venv/bin/pip" install --quiet --disable-pip-version-check -r tests/clients/requirements.txt
        cp tests/clients/requirements.txt "$clients/installed.txt"
    fi
    python=$clients/venv/bin/python
fi
program=${PROGRAM:-}
if [ -z "$program" ]; then
    cargo build --locked --features cuda "$@"
    program=$(cargo build --locked --features cuda "$@" --message-format=json 2>/dev/null |
        grep -o '"executable":"[^"]*/atombank"' | tail -n 1 | cut -d '"' -f 4)
fi
if [ "$device" != cpu ]; then
    nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
fi
exec "$python" tests/cuda_parity.py "$program" "$work" --device "$device"
