#!/usr/bin/env bash
# Licences, bans, duplicates and sources of every dependency, against deny.toml: bash scripts/deny.sh
# Known vulnerabilities are not looked up: that needs a database from the network (`cargo deny check advisories`).
set -euo pipefail
cd "$(dirname "$0")/.."

if ! cargo deny --version >/dev/null 2>&1; then
    echo 'missing: cargo-deny (cargo install cargo-deny --locked)' >&2
    exit 2
fi
cargo deny --locked check bans licenses sources
