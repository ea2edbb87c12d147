#!/usr/bin/env bash
# The whole suite on every instruction-set path, executor and seed of the CPU backend, and every case on the simulated
# Ascend products. Takes hours.
#
#   scripts/full-proof.sh              everything, then writes the last table of docs/proof.md
#   scripts/full-proof.sh --shard 2/4  the second of four parts; the last part to finish writes the table
#   SEEDS=3 scripts/full-proof.sh      fewer seeds (default 20)
#
# Resumable: what has finished for this commit is kept in target/full-proof/COMMIT and not run again. Uncommitted
# changes are refused, since the table names a commit.
set -euo pipefail
cd "$(dirname "$0")/.."

part=1 parts=1 seeds=${SEEDS:-20}
if [[ ${1:-} == --shard && ${2:-} =~ ^([0-9]+)/([0-9]+)$ ]]; then
    part=${BASH_REMATCH[1]} parts=${BASH_REMATCH[2]}
elif [[ $# -gt 0 ]]; then
    echo "usage: $0 [--shard PART/PARTS]" >&2
    exit 2
fi
if ((part < 1 || part > parts)); then
    echo "part $part of $parts does not exist" >&2
    exit 2
fi
if ! git diff --quiet HEAD -- ':!docs/proof.md'; then
    echo 'there are uncommitted changes; commit them first, the table names a commit' >&2
    exit 2
fi
commit=$(git rev-parse --short=12 HEAD)
done_dir=${CARGO_TARGET_DIR:-target}/full-proof/$commit
mkdir -p "$done_dir"

# Debug assertions on, kernels optimised: the profile of the tests.
cargo build --quiet --locked -p portolan-cpu --example proof
proof=${CARGO_TARGET_DIR:-target}/debug/examples/proof

configurations=()
for isa in portable avx2 avx512; do
    configurations+=("$isa inline 0" "$isa queued 0")
    for ((seed = 0; seed < seeds; seed++)); do
        configurations+=("$isa chaotic $seed")
    done
done

failed=0
for index in "${!configurations[@]}"; do
    ((index % parts == part - 1)) || continue
    configuration=${configurations[index]}
    log=$done_dir/${configuration// /-}
    [[ -e $log.done ]] && continue
    started=$SECONDS
    # Word splitting is meant: three arguments.
    # shellcheck disable=SC2086
    if "$proof" $configuration >"$log.log" 2>&1; then
        printf '%s|%ss\n' "$(head -n 1 "$log.log")" "$((SECONDS - started))" >"$log.done"
        echo "$configuration: $(head -n 1 "$log.log")"
    else
        failed=1
        echo "FAILED $configuration: see $log.log" >&2
    fi
done
((failed == 0)) || exit 1

# The whole of what ordinary tests take a part of: models, operators and failing calls on simulated Ascend products.
if ((part == 1)) && [[ ! -e $done_dir/simulated.done ]]; then
    if PORTOLAN_ALL_CASES=1 cargo test --quiet --locked -p portolan -p portolan-cann >"$done_dir/simulated.log" 2>&1; then
        touch "$done_dir/simulated.done"
    else
        echo "FAILED simulated products: see $done_dir/simulated.log" >&2
        exit 1
    fi
fi

# The table, once every part is there.
for configuration in "${configurations[@]}"; do
    if [[ ! -e $done_dir/${configuration// /-}.done ]]; then
        echo "part $part of $parts is done; the table waits for the others"
        exit 0
    fi
done
page=docs/proof.md table=$done_dir/table
{
    echo "Commit \`$commit\`, $(date -u +%Y-%m-%d), $(uname -m), seeds: $seeds. Skipped means that the machine lacks the"
    echo 'instruction set.'
    echo
    echo '| instruction set | executor | seed | result | time |'
    echo '| --- | --- | --- | --- | --- |'
    for configuration in "${configurations[@]}"; do
        read -r isa executor seed <<<"$configuration"
        IFS='|' read -r result took <"$done_dir/${configuration// /-}.done"
        echo "| $isa | $executor | $seed | $result | $took |"
    done
} >"$table"
# What a person wrote ends with this heading.
sed '/^## The last full proof$/q' "$page" >"$done_dir/page"
{ cat "$done_dir/page"; echo; cat "$table"; } >"$page"
echo "wrote $page"
