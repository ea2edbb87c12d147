#!/usr/bin/env bash
# Compares every declaration of ffi/cann-sys/include with real CANN headers: parameter types up to pointee const, values
# of enumerations, sizes of structs. Nothing is linked or run: one C++ unit that compiles, or names what differs.
#
#     scripts/check-cann-abi.sh DIR
#
# DIR holds acl/, and as far as it has them aclnn/, aclnnop/ and hccl/: `include` of an installed toolkit, or
# `torch_npu/include` of the Python package torch-npu (acl/ alone). What a version lacks is counted and not compared.
set -euo pipefail
if [[ $# -ne 1 || ! -d $1/acl ]]; then
    echo "usage: $0 DIR, a folder that holds acl/acl.h" >&2
    exit 2
fi
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 "$root/scripts/check_cann_abi.py" "$root/ffi/cann-sys/include" "$1" > "$work/unit.cpp"
tail -n 1 "$work/unit.cpp" | sed 's|^// ||'
"${CXX:-g++}" -std=c++17 -fsyntax-only -fmax-errors=0 -w -I "$root/ffi/cann-sys/include" -I "$1" "$work/unit.cpp"
echo "every declaration that these headers have is the same"
