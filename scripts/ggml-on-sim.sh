#!/usr/bin/env bash
# Runs ggml's own test-backend-ops, built with its CANN backend, on the simulated driver:
#
#     scripts/ggml-on-sim.sh [-o OP,OP…] [-p] [-u] [-w DIR] GGML_DIR [HEADERS_DIR]
#
# GGML_DIR is a checkout of ggml. HEADERS_DIR holds a toolkit's acl/, aclnn/ and aclnnop/; without it the headers are
# made from declarations of our own (cann_headers.py). Every case runs as ggml runs it by default, with graph capture on.
#   -o  only cases of these operators, as test-backend-ops spells them
#   -p  plain: without graph capture
#   -u  writes scripts/ggml-on-sim.txt anew instead of comparing with it
#   -w  where to build, kept for the next time, with the results: an interrupted run of the same build goes on where it
#       stopped; without it a temporary folder
# Needs cmake, a C++ compiler, python3 and what builds the simulator. JOBS says how many compilers, and then how many
# operators, run at a time.
# The last line counts: passed, failed, no reference (on the CPU that ggml compares with), not claimed (by ggml's CANN
# backend). A failure that has no reason in scripts/ggml-on-sim.txt, or an operator with fewer passed cases than there,
# ends the script with 1. Nothing else is written to the repository but its target folder.
set -euo pipefail

usage() { sed -n '2,19p' "$0" >&2; exit 2; }
stop() { echo "ggml-on-sim: $*" >&2; exit 2; }

root=$(cd "$(dirname "$0")/.." && pwd)
ops= plain= update= work=
while getopts o:puw: option; do
    case $option in
        o) ops=$OPTARG ;;
        p) plain=1 ;;
        u) update=1 ;;
        w) work=$OPTARG ;;
        *) usage ;;
    esac
done
shift $((OPTIND - 1))
[[ -z $update || -z $ops$plain ]] || stop "-u takes numbers of a whole run with graph capture; leave out -o and -p"
[[ $# == 1 || $# == 2 ]] || usage
[[ -d $1 ]] || stop "$1 is no folder; it should be a checkout of ggml"
ggml=$(cd "$1" && pwd)
[[ -f $ggml/src/ggml-cann/CMakeLists.txt && -f $ggml/tests/test-backend-ops.cpp ]] ||
    stop "$ggml has no src/ggml-cann or no tests/test-backend-ops.cpp; it should be a checkout of ggml with its tests"
headers=
if [[ $# == 2 ]]; then
    [[ -f $2/acl/acl.h && -d $2/aclnnop ]] || stop "$2 has no acl/acl.h or no aclnnop/; it should be a toolkit's include folder"
    headers=$(cd "$2" && pwd)
fi
command -v cmake > /dev/null || stop "cmake was not found; it configures ggml"
command -v "${CXX:-c++}" > /dev/null || stop "${CXX:-c++} was not found; ggml is C++"
command -v python3 > /dev/null || stop "python3 was not found; it makes the headers and counts"

if [[ -n $work ]]; then
    mkdir -p "$work"
else
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
fi
work=$(cd "$work" && pwd)
[[ $work != "$root"/* ]] || stop "$work is in the repository; build outside of it"

# What looks like a toolkit: lib64 with the vendor's names, include with the headers.
cann=$work/cann
"$root/scripts/cann-driver.sh" "$cann" > /dev/null
if [[ -n $headers ]]; then
    rm -rf "$cann/include"
    ln -s "$headers" "$cann/include"
else
    # Headers that did not change stay, and with them what was compiled from them.
    rm -rf "$cann/include.new"
    python3 "$root/scripts/cann_headers.py" "$ggml/src/ggml-cann" "$cann/include.new" > /dev/null
    if [[ ! -L $cann/include ]] && diff -rq "$cann/include.new" "$cann/include" > /dev/null 2>&1; then
        rm -rf "$cann/include.new"
    else
        rm -rf "$cann/include"
        mv "$cann/include.new" "$cann/include"
    fi
fi
log=$work/build.log
if ! { cmake -S "$ggml" -B "$work/build" -DCMAKE_BUILD_TYPE=Release -DGGML_CANN=ON -DCANN_INSTALL_DIR="$cann" \
    -DSOC_TYPE=Ascend910B3 -DUSE_ACL_GRAPH=ON -DGGML_BUILD_TESTS=ON -DGGML_BUILD_EXAMPLES=OFF \
    -DCMAKE_BUILD_RPATH="$cann/lib64" &&
    cmake --build "$work/build" --target test-backend-ops -j "${JOBS:-2}"; } > "$log" 2>&1; then
    grep -m 20 -iE 'error|undefined' "$log" >&2 || tail -n 20 "$log" >&2
    stop "ggml was not built; $log has it all"
fi

# ggml relies on buffers at multiples of 128 bytes; the vendor promises 64, though its allocator gives more.
cat > "$work/sim.json" <<'JSON'
{"soc": "A2", "devices": 1, "memory_bytes": 17179869184, "alignment": 512, "tolerated": ["tensor_alignment", "allocation_bounds", "workspace_apart", "statistics_shape"], "adversary": "late", "seed": 0}
JSON
export LD_LIBRARY_PATH=$cann/lib64 GGML_CANN_ACL_GRAPH=on
[[ -z $plain ]] || GGML_CANN_ACL_GRAPH=off
# Of a program that dies its messages are enough; a debugger's report would take seconds each time.
export GGML_NO_BACKTRACE=1
# ggml's threads would spin while they wait for each other, and pages given back would be cleared anew for every case.
export OMP_THREAD_LIMIT=1 GLIBC_TUNABLES=glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=4294967296
commit=$(git -C "$ggml" rev-parse HEAD 2> /dev/null || echo unknown)
echo "ggml $commit, graph capture $GGML_CANN_ACL_GRAPH, ${headers:-headers of our own}"
mapfile -t libraries < <(find "$work/build" "$cann/lib64" -type f -name '*.so*' | sort)
python3 "$root/scripts/ggml_on_sim.py" --config "$work/sim.json" --work "$work" --record "$root/scripts/ggml-on-sim.txt" \
    --commit "$commit" --build "${libraries[@]}" --jobs "${JOBS:-2}" ${ops:+--only "$ops"} ${update:+--write} \
    -- "$work/build/bin/test-backend-ops"
