#!/usr/bin/env bash
# Runs the vendor's torch-npu, from its wheel, on the simulated driver, and compares with torch on the CPU:
#
#     scripts/torch-npu-on-sim.sh [-s SOC] [-l LIBRARY] [-w DIR] [STEP…]
#
#   -s  the product that is simulated: A2 (the default), A3 or 950. (On a 310P torch-npu compiles every operator by what
#       came before aclnn, which is not simulated.)
#   -l  a simulator that was built already; without it one is built
#   -w  where packages and the driver's folder lie, kept for the next time; without it portolan/torch-npu in the user's
#       cache folder. 1.3 GB, after a download of 0.6 GB.
# Steps are those of torch_npu_on_sim.py; without any, all of them run, and what is known to be missing is tried too.
#
# Needs python3 of a version that torch-npu has a wheel for, with venv; pip's access to a package registry, the first time;
# a C compiler, nm and readelf. Nothing is written to the repository but its target folder.
#
# torch must be of torch-npu's version. Where a registry has it with CUDA alone, its CUDA half is replaced by refusals
# (torch_npu_stand_ins.py), since the two do not load together; its CPU half is as it came. Functions of the driver that
# the simulator lacks are refusals of the same kind. DIR/run.log has everything that was said.
#
# The last line counts. A step that worked and does not any more ends the script with 1; 2: it could not be tried.
set -euo pipefail

version=2.14.0
usage() { sed -n '2,12p' "$0" >&2; exit 2; }
stop() { echo "torch-npu-on-sim: $*" >&2; exit 2; }

root=$(cd "$(dirname "$0")/.." && pwd)
soc=A2 library= work=${XDG_CACHE_HOME:-$HOME/.cache}/portolan/torch-npu
while getopts s:l:w: option; do
    case $option in
        s) soc=$OPTARG ;;
        l) library=$(realpath "$OPTARG") ;;
        w) work=$OPTARG ;;
        *) usage ;;
    esac
done
shift $((OPTIND - 1))
[[ $soc =~ ^(A2|A3|950)$ ]] || stop "-s $soc: it should be A2, A3 or 950"
[[ -z $library || -f $library ]] || stop "$library is no file; it should be libportolan_cann_sim.so"
for tool in python3 "${CC:-cc}" nm readelf; do
    command -v "$tool" > /dev/null || stop "$tool was not found"
done
mkdir -p "$work"
work=$(cd "$work" && pwd)
[[ $work != "$root"/* ]] || stop "$work is in the repository; packages belong outside of it"

venv=$work/venv
if [[ ! -f $venv/complete ]]; then
    rm -rf "$venv"
    python3 -m venv "$venv" || stop "python3 made no environment"
    # Without dependencies: torch's are CUDA's libraries for the most part. Those of its Python half by name.
    "$venv/bin/pip" install --quiet --no-deps "torch==$version" "torch-npu==$version" numpy pyyaml filelock \
        typing-extensions sympy mpmath networkx jinja2 markupsafe fsspec setuptools ||
        stop "pip had no torch $version or no torch-npu $version for this python3"
    touch "$venv/complete"
fi
packages=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("platlib"))')
python3 "$root/scripts/torch_npu_stand_ins.py" cuda "$packages/torch"

# A folder as an installed toolkit's, as far as torch-npu looks whether there is one.
driver=$work/driver
rm -rf "$driver"
mkdir -p "$driver"/{opp,runtime,compiler}
"$root/scripts/cann-driver.sh" ${library:+--from "$library"} "$driver" > /dev/null
python3 "$root/scripts/torch_npu_stand_ins.py" ascend "$packages/torch" "$packages/torch_npu" "$driver/lib64"

cat > "$work/sim.json" <<JSON
{"soc": "$soc", "devices": 2, "memory_bytes": 2147483648, "alignment": 512, "adversary": "late", "seed": 0}
JSON
export PORTOLAN_SIM_CONFIG=$work/sim.json LD_LIBRARY_PATH=$driver/lib64
export ASCEND_HOME_PATH=$driver ASCEND_OPP_PATH=$driver/opp
echo "torch-npu $version on a simulated $soc"
exec "$venv/bin/python" "$root/scripts/torch_npu_on_sim.py" "$work/run.log" "$@"
