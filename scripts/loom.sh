#!/usr/bin/env bash
# Models of everything that shares memory between threads: bash scripts/loom.sh [part of a model's name]
# Searches all orders with at most LOOM_MAX_PREEMPTIONS forced switches of threads (2 unless set), a few minutes.
set -euo pipefail
cd "$(dirname "$0")/../loom"

export LOOM_MAX_PREEMPTIONS=${LOOM_MAX_PREEMPTIONS:-2}
export LOOM_MAX_BRANCHES=${LOOM_MAX_BRANCHES:-10000}
export RUSTFLAGS='--cfg loom'
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-../target/loom}
cargo test --release --locked --lib -- "$@"
