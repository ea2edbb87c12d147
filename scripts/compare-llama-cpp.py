#!/usr/bin/env python3
"""Prefill and decode tokens/s of `portolan bench` beside llama.cpp's `llama-bench`, on one GGUF file.

Here because a speed is only worth stating as a ratio taken in the same minutes on the same machine. The peer is any
llama.cpp build that is already present; the benchmarks of single operators are in `benches/`.

Needs: Python 3.9 and no packages.
Usage: scripts/compare-llama-cpp.py --model FILE.gguf [--llama-bench PATH] [--portolan PATH] [--runs 5] [--threads 2]
                                    [--prompt 512] [--generate 128] [--precision fast] [--peer-only]
The paths default to $PORTOLAN_GGUF, $LLAMA_BENCH (or `llama-bench` on PATH) and $PORTOLAN (or target/release/portolan).

Each round runs every contestant once, in an order that turns round by round: llama.cpp as it comes, with flash
attention on, with it off, and portolan. Printed are medians, spreads (lowest to highest) and the median of the ratios
taken within a round, against whichever llama.cpp variant has the best median for that figure.

  prefill       the prompt in one batch, from an empty cache
  decode        one token at a time behind the prompt: the peer runs with a depth of `--prompt` tokens
  decode empty  (peer only) one token at a time from an empty cache, llama-bench's own `tg` figure

Where a tool is missing it prints `not compared: <why>` and exits 0; where a tool fails, it exits 1.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

VARIANTS = {"default": [], "flash on": ["-fa", "on"], "flash off": ["-fa", "off"]}
FIGURES = ["prefill", "decode", "decode empty"]
# What decides which kernels the peer's processor backend holds; looked up in its CMakeCache.txt.
BUILD_FLAGS = r"^(CMAKE_BUILD_TYPE|CMAKE_C(?:XX)?_FLAGS|GGML_(?:NATIVE|OPENMP|LLAMAFILE|CPU_REPACK|BLAS|LTO|AVX\w*|AMX\w*|ACCELERATE)):\w+=(.*)$"


def not_compared(why):
    print(f"not compared: {why}")
    sys.exit(0)


def execute(command):
    """Its own session, so that automatic process grouping gives it the share of a program, not of this one."""
    done = subprocess.run(command, capture_output=True, text=True, start_new_session=True)
    if done.returncode != 0:
        tail = "\n".join((done.stderr or done.stdout).strip().splitlines()[-5:])
        sys.exit(f"failed with exit code {done.returncode}: {' '.join(map(str, command))}\n{tail}")
    return done.stdout


def run_peer(options, flags):
    def bench(*arguments):
        command = [options.llama_bench, "-m", options.model, "-t", options.threads, "-r", 1, "-o", "json"]
        return json.loads(execute([str(word) for word in [*command, *arguments, *flags]]))

    cold = bench("-p", options.prompt, "-n", options.generate)
    deep = bench("-p", 0, "-n", options.generate, "-d", options.prompt)
    figures = {
        "prefill": next(row["avg_ts"] for row in cold if row["n_prompt"]),
        "decode empty": next(row["avg_ts"] for row in cold if row["n_gen"]),
        "decode": deep[0]["avg_ts"],
    }
    return figures, cold[0]


def run_ours(options):
    command = [options.portolan, "bench", "--model", options.model, "--precision", options.precision]
    command += ["--threads", options.threads, "--prompt", options.prompt, "--generate", options.generate, "--json"]
    lines = [line for line in execute([str(word) for word in command]).splitlines() if line.startswith("{")]
    if not lines:
        sys.exit("portolan bench printed no JSON line")
    row = json.loads(lines[-1])
    return {"prefill": row["prefill_tokens_per_second"], "decode": row["decode_tokens_per_second"]}


def build_flags(bench):
    for folder in Path(bench).resolve().parents:
        cache = folder / "CMakeCache.txt"
        if cache.is_file():
            found = re.findall(BUILD_FLAGS, cache.read_text(errors="replace"), re.MULTILINE)
            # Where the build is native, the compiler's own flags decide and the single switches say nothing.
            native = dict(found).get("GGML_NATIVE") == "ON"
            kept = [f"{k}={v}" for k, v in found if v and not (native and re.match("GGML_A(VX|MX)", k) and v == "OFF")]
            return " ".join(kept)
    return "not known (no CMakeCache.txt above the tool)"


def our_commit():
    here = Path(__file__).resolve().parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "not known"


def load_average():
    return "%.2f" % os.getloadavg()[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=os.environ.get("PORTOLAN_GGUF"))
    parser.add_argument("--llama-bench", default=os.environ.get("LLAMA_BENCH", "llama-bench"))
    default = Path(__file__).resolve().parents[1] / "target" / "release" / "portolan"
    parser.add_argument("--portolan", default=os.environ.get("PORTOLAN", str(default)))
    parser.add_argument("--precision", default="fast")
    for name, value in (("runs", 5), ("threads", 2), ("prompt", 512), ("generate", 128)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--peer-only", action="store_true", help="measure llama.cpp alone")
    options = parser.parse_args()
    if min(options.runs, options.threads, options.prompt, options.generate) < 1:
        parser.error("runs, threads, prompt and generate start at 1")

    if not options.model or not Path(options.model).is_file():
        not_compared(f"no GGUF file at {options.model!r}; name one with --model or PORTOLAN_GGUF")
    bench = shutil.which(options.llama_bench)
    if bench is None:
        not_compared(f"no llama-bench at {options.llama_bench!r}; name one with --llama-bench or LLAMA_BENCH")
    options.llama_bench = bench
    if not options.peer_only and shutil.which(options.portolan) is None:
        not_compared(f"no portolan at {options.portolan!r}; build it with `cargo build --release` or use --peer-only")

    contestants = [f"llama.cpp {variant}" for variant in VARIANTS] + ([] if options.peer_only else ["portolan"])
    rounds = []
    load = [load_average()]
    for number in range(options.runs):
        turn = number % len(contestants)
        seen = {}
        for name in contestants[turn:] + contestants[:turn]:
            if name == "portolan":
                seen[name] = run_ours(options)
            else:
                seen[name], about = run_peer(options, VARIANTS[name.removeprefix("llama.cpp ")])
        rounds.append(seen)
        load.append(load_average())
        print(f"round {number + 1}: " + "; ".join(
            f"{name} " + " / ".join(f"{seen[name][figure]:.1f}" for figure in FIGURES if figure in seen[name])
            for name in contestants), flush=True)

    print(f"\nmodel      {Path(options.model).name}, {options.threads} threads, prompt {options.prompt}, "
          f"generate {options.generate}, {options.runs} rounds, load average {' '.join(load)}")
    print(f"machine    {about.get('cpu_info', 'not known')}")
    print(f"llama.cpp  commit {about.get('build_commit', 'not known')}, build {about.get('build_number', 'not known')}, "
          f"{build_flags(bench)}")
    if not options.peer_only:
        print(f"portolan   commit {our_commit()}, --precision {options.precision}")
    print(f"\n{'tokens/s':<14}{'contestant':<22}{'median':>9}  spread")
    best = {}
    for figure in FIGURES:
        for name in contestants:
            values = [seen[name][figure] for seen in rounds if figure in seen[name]]
            if not values:
                continue
            median = statistics.median(values)
            print(f"{figure:<14}{name:<22}{median:>9.1f}  {min(values):.1f} to {max(values):.1f}")
            if name != "portolan" and median > best.get(figure, ("", 0.0))[1]:
                best[figure] = (name, median)
    if options.peer_only:
        return
    print()
    for figure in ("prefill", "decode"):
        peer = best[figure][0]
        ratios = [seen["portolan"][figure] / seen[peer][figure] for seen in rounds]
        print(f"{figure}: portolan is {statistics.median(ratios):.2f} times {peer} "
              f"({min(ratios):.2f} to {max(ratios):.2f})")
    peer = best["decode empty"][0]
    ratios = [seen["portolan"]["decode"] / seen[peer]["decode empty"] for seen in rounds]
    print(f"decode behind the prompt against {peer} from an empty cache: {statistics.median(ratios):.2f} "
          f"({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
