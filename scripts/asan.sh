#!/usr/bin/env bash
# Memory errors and leaks in the unsafe cores, found by AddressSanitizer: bash scripts/asan.sh [core|cpu|load]...
# Everything is built again with the sanitizer. Device memory is mapped, not allocated: what runs past an operand
# there is found by the conformance suite's guard bands, what runs past a kernel's own memory is found here.
set -euo pipefail
cd "$(dirname "$0")/.."

if [[ $(uname -s) != Linux || $(uname -m) != x86_64 ]]; then
    echo 'AddressSanitizer: this script knows Linux on x86-64 only' >&2
    exit 2
fi

# The sanitizer's flag is unstable; a stable compiler takes it when told to. With --target, build scripts and
# macros are left alone.
export RUSTC_BOOTSTRAP=1
export RUSTFLAGS='-Zsanitizer=address'
export ASAN_OPTIONS=${ASAN_OPTIONS:-detect_leaks=1:detect_stack_use_after_return=1:strict_string_checks=1}
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target/asan}
# Optimised fully, the kernels take the sanitizer's passes many minutes to compile.
run=(cargo test --locked --no-fail-fast --target x86_64-unknown-linux-gnu --config 'profile.dev.package.portolan-cpu.opt-level=1')

[[ $# -gt 0 ]] || set -- core cpu load
for part in "$@"; do
    case $part in
        core) "${run[@]}" -p portolan-core --tests ;;
        # Kernels on memory of their own, then whole operators and the contract's areas. FILTER is a part of a
        # test's name, for a shorter run.
        cpu) "${run[@]}" -p portolan-cpu --lib --tests -- ${FILTER:+"$FILTER"} ;;
        load) "${run[@]}" -p portolan --no-default-features --test load ;;
        *)
            echo "no part is named $part: core, cpu or load" >&2
            exit 2
            ;;
    esac
done
