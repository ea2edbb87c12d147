#!/usr/bin/env bash
# Vector instructions that stayed function calls in a binary: bash scripts/inlined.sh [BINARY]
# A kernel is fast only where all it is made of is compiled into it. A closure or a function that is passed on may be
# compiled apart, without the kernel's instruction set: each of its instructions is then a call, and its vectors go
# through memory. Nothing else shows this; results are the same.
set -euo pipefail
cd "$(dirname "$0")/.."

binary=${1:-${CARGO_TARGET_DIR:-target}/release/portolan}
if [[ $(uname -m) != x86_64 ]] || ! command -v objdump > /dev/null; then
    echo 'SKIPPED: whether kernels are compiled into one piece (needs objdump and x86-64)'
    exit 0
fi
if [[ ! -f $binary ]]; then
    echo "$binary is not there: cargo build --release" >&2
    exit 2
fi
calls=$(objdump --disassemble --no-show-raw-insn "$binary" | awk '
    /^[0-9a-f]+ <.*>:$/ { from = $2 }
    /[ \t](call|jmp) .*</ {
        to = "<" substr($NF, 2) ":"
        if (to ~ /core_arch.*x86/) called[from]++
        else if (to ~ /4core/) callers[to] = callers[to] " " from
    }
    END {
        # What is passed on is an instance of a function of the standard library, whoever passes it.
        for (f in called)
            if (f ~ /portolan/ || (f ~ /4core/ && callers[f] ~ /portolan/)) print called[f], f, callers[f]
    }' | sort -rn)
if [[ -n $calls ]]; then
    echo 'vector instructions that are calls: how many, in which function, called by' >&2
    { c++filt <<< "$calls" 2> /dev/null || echo "$calls"; } >&2
    exit 1
fi
echo "$binary: kernels are compiled into one piece"
