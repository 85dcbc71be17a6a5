#!/usr/bin/env bash
# Ends a training run with kill -9 at sixty random moments, and compares it with one that never stopped.
#
#   tests/kill.sh [KILLS]
set -euo pipefail
cd "$(dirname "$0")/.."
ATOMBANK_KILLS=${1:-60} cargo test --locked --test cli killed_runs_lose_no_checkpoint -- --nocapture
