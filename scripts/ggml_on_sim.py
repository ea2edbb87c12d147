#!/usr/bin/env python3
"""Runs test-backend-ops on a CANN device and counts: `ggml_on_sim.py TEST_BACKEND_OPS LOG [OP,OP…]`.

A call that the driver refuses ends the whole program: the case is counted as failed, and those behind it run again without it.
"""

import csv
import os
import pathlib
import pty
import re
import subprocess
import sys

DEVICE = "CANN0"
CASE = re.compile(r"^(?P<op>[A-Z0-9_]+)\((?P<parameters>.*)\): (?P<rest>.*)$")
COLOUR = re.compile(r"\x1b\[[\d;]*m")


def lines(command, log):
    """The lines that a program prints, as it prints them, and its status at last."""
    # On a terminal each line comes when it is printed: a program that dies takes none with it.
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command, stdout=theirs, stderr=theirs, stdin=subprocess.DEVNULL)
    os.close(theirs)
    with os.fdopen(ours, "rb", closefd=True) as stream:
        rest = b""
        while True:
            try:
                piece = os.read(stream.fileno(), 1 << 16)
            except OSError:  # Linux says so where the other end is closed.
                piece = b""
            if not piece:
                break
            *whole, rest = (rest + piece).split(b"\n")
            for line in whole:
                line = COLOUR.sub("", line.decode(errors="replace")).rstrip()
                print(line, file=log, flush=True)
                yield line
    yield process.wait()


class Counts:
    """What became of the cases."""

    def __init__(self):
        self.passed, self.failed, self.unclaimed, self.operators = 0, [], 0, {}

    def count(self, op, parameters, rest, message):
        row = self.operators.setdefault(op, [0, 0, 0])
        if rest.startswith("not supported"):
            self.unclaimed += 1
            row[2] += 1
        elif rest.endswith("OK"):
            self.passed += 1
            row[0] += 1
        else:
            self.fail(op, f"{op}({parameters}): {message or rest}")

    def fail(self, op, text):
        self.failed.append(text)
        self.operators.setdefault(op, [0, 0, 0])[1] += 1


def run(program, log, counts, only):
    """Runs, and says what the program died of, if it did."""
    command = [program, "test", "-b", DEVICE] + (["-o", only] if only else [])
    said, seen = [], False
    for line in lines(command, log):
        if isinstance(line, int):
            # 1 is a failed case, which was counted.
            if line in (0, 1):
                return None if seen else "the device was not found"
            text = next((text for text in said if "CANN error" in text), said[-1] if said else "")
            return f"status {line}: {text}"
        seen = seen or "Device description" in line
        text = line.strip()
        match = re.search(r"(?<![A-Za-z0-9_])([A-Z][A-Z0-9_]+\([a-zA-Z_0-9]+=.*)$", text)
        match = match and CASE.match(match.group(1))
        if match:
            message = text[: -len(match.group(0))].strip()
            counts.count(*match.group("op", "parameters", "rest"), " ".join([*said, message]).strip())
            said = []
        elif text and not text.startswith("simulated CANN: tolerated"):
            said = [*said[-8:], text]
    return "no end"


def cases(program):
    """The cases of each operator, in order; of whole graphs the program lists none."""
    found = subprocess.run([program, "support", "-b", DEVICE, "--output", "csv"], capture_output=True, text=True).stdout
    table = {}
    for row in csv.DictReader(line for line in found.splitlines() if line.startswith('"')):
        table.setdefault(row["op_name"], []).append(f"{row['op_name']}({row['op_params']})")
    return table


def packs(names):
    """Names in lists that fit a command line."""
    for start in range(0, len(names), 400):
        yield names[start : start + 400]


def survivors(program, log, counts, op, names):
    """Runs the cases of an operator behind and before those that the program dies of."""
    for pack in packs(names):
        while pack:
            before = sum(counts.operators.get(op, [0, 0, 0]))
            death = run(program, log, counts, ",".join(pack))
            if not death:
                break
            done = sum(counts.operators.get(op, [0, 0, 0])) - before
            counts.fail(op, f"{pack[done]}: {death}")
            pack = pack[done + 1 :]


def main():
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    program, path = sys.argv[1], pathlib.Path(sys.argv[2])
    only = sys.argv[3] if len(sys.argv) == 4 else None
    counts, lost = Counts(), []
    with path.open("w") as log:
        table = cases(program)
        death = run(program, log, counts, only)
        if death:
            # The case that was running, and what is behind it, are those that have no result yet.
            wanted = only.split(",") if only else list(table)
            lost = [name for name in wanted if name not in table]
            for op in (op for op in wanted if op in table):
                row = counts.operators.get(op, [0, 0, 0])
                survivors(program, log, counts, op, table[op][sum(row) :])
    for op, (passed, failed, unclaimed) in sorted(counts.operators.items()):
        print(f"{op:32} {passed:6} passed {failed:6} failed {unclaimed:6} not claimed")
    for text in counts.failed:
        print(f"failed: {text}")
    for line in sorted(set(re.findall(r"^simulated CANN: tolerated (\w+ of \w+)", path.read_text(), re.M))):
        print(f"tolerated: {line}")
    if lost:
        print(f"not run, for the program died before: {', '.join(lost)}")
    print(f"passed {counts.passed}, failed {len(counts.failed)}, not claimed {counts.unclaimed}")
    sys.exit(1 if counts.failed or lost or not counts.passed else 0)


main()
