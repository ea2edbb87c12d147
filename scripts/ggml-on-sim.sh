#!/usr/bin/env bash
# Runs ggml's own test-backend-ops, built with its CANN backend, on the simulated driver:
#
#     scripts/ggml-on-sim.sh [-o OP,OP…] [-p] [-w DIR] GGML_DIR [HEADERS_DIR]
#
# GGML_DIR is a checkout of ggml. HEADERS_DIR holds a toolkit's acl/, aclnn/ and aclnnop/; without it the headers are
# made from declarations of our own (cann_headers.py). Every case runs with graph capture on.
#   -o  only cases of these operators, as test-backend-ops spells them
#   -p  plain: without graph capture
#   -w  where to build, kept for the next time; without it a temporary folder
# Needs cmake, a C++ compiler, python3 and what builds the simulator. JOBS says how many compilers run at a time.
# The last line counts: passed, failed, not claimed (by ggml's CANN backend, or by the CPU that it is compared with). A
# failure ends the script with 1. Nothing is written to the repository but its target folder.
set -euo pipefail

usage() { sed -n '2,14p' "$0" >&2; exit 2; }
stop() { echo "ggml-on-sim: $*" >&2; exit 2; }

root=$(cd "$(dirname "$0")/.." && pwd)
ops= plain= work=
while getopts o:pw: option; do
    case $option in
        o) ops=$OPTARG ;;
        p) plain=1 ;;
        w) work=$OPTARG ;;
        *) usage ;;
    esac
done
shift $((OPTIND - 1))
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
rm -rf "$cann/include"
if [[ -n $headers ]]; then
    ln -s "$headers" "$cann/include"
else
    python3 "$root/scripts/cann_headers.py" "$ggml/src/ggml-cann" "$cann/include"
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
{"soc": "A2", "devices": 1, "memory_bytes": 17179869184, "alignment": 512, "tolerated": ["tensor_alignment", "allocation_bounds", "workspace_apart", "tail_padding", "statistics_shape"], "adversary": "late", "seed": 0}
JSON
export PORTOLAN_SIM_CONFIG=$work/sim.json LD_LIBRARY_PATH=$cann/lib64
export GGML_CANN_ACL_GRAPH=on
[[ -z $plain ]] || GGML_CANN_ACL_GRAPH=off
version=$(git -C "$ggml" rev-parse --short HEAD 2> /dev/null || echo "of no known commit")
echo "ggml $version, graph capture $GGML_CANN_ACL_GRAPH, ${headers:-headers of our own}"
python3 "$root/scripts/ggml_on_sim.py" "$work/build/bin/test-backend-ops" "$work/run.log" ${ops:+"$ops"}
