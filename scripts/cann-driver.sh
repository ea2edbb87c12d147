#!/usr/bin/env bash
# Makes a folder that looks like an installed Ascend driver, for programs that are not ours:
#
#     scripts/cann-driver.sh DIR              builds the simulator for it
#     scripts/cann-driver.sh --from FILE DIR  takes a library that was built already
#
# ASCEND_HOME_PATH=DIR, or LD_LIBRARY_PATH=DIR/lib64, leads a program there; PORTOLAN_SIM_CONFIG names a file with what to
# simulate: {"soc": "A2", "devices": 1, "memory_bytes": 1073741824, "adversary": "late", "seed": 0}. The simulator says on
# standard error what it read, and at aclFinalize what is left.
#
# One file is the driver. The others are empty and depend on it, so that a process has one world by whichever names it
# opens its libraries.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
library=
if [[ ${1:-} == --from ]]; then
    library=${2:?"--from needs a file"}
    shift 2
fi
[[ $# == 1 ]] || { sed -n '2,6p' "$0" >&2; exit 2; }
cc=${CC:-cc}
command -v "$cc" > /dev/null || { echo "$cc was not found; the empty libraries need a C compiler" >&2; exit 2; }

if [[ -z $library ]]; then
    # A folder of its own: worlds of the tests are copies of one library, which a name inside of it would make one.
    target=${CARGO_TARGET_DIR:-$root/target}/cann-driver
    CARGO_TARGET_DIR=$target cargo rustc --quiet --locked --release --manifest-path "$root/Cargo.toml" \
        -p portolan-cann-sim --lib --crate-type cdylib -- -C link-arg=-Wl,-soname,libascendcl.so
    library=$target/release/libportolan_cann_sim.so
fi

mkdir -p "$1/lib64"
folder=$(cd "$1/lib64" && pwd)
# Renamed into its place: programs that run go on with the file that they have.
cp -f "$library" "$folder/libascendcl.so.new"
mv -f "$folder/libascendcl.so.new" "$folder/libascendcl.so"
for name in acl_rt nnopbase acl_op_compiler opapi opapi_math opapi_nn opapi_cv opapi_transformer hccl hcomm; do
    "$cc" -shared -x c /dev/null -o "$folder/lib$name.so" -Wl,-soname,"lib$name.so" -Wl,--no-as-needed \
        -L "$folder" -lascendcl -Wl,-rpath,'$ORIGIN'
done
echo "$folder"
