#!/usr/bin/env python3
"""Runs test-backend-ops on a CANN device and counts: `ggml_on_sim.py TEST_BACKEND_OPS LOG [OP,OP…]`.

A call that the driver refuses ends the whole program, so what died is named and the operators behind it run on their own.
"""

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
            self.failed.append(f"{op}({parameters}): {message or rest}")
            row[1] += 1


def run(program, log, counts, only):
    """Runs, and says after which operator the program died, if it did."""
    command = [program, "test", "-b", DEVICE] + (["-o", only] if only else [])
    last, said, seen = None, [], False
    for line in lines(command, log):
        if isinstance(line, int):
            # 1 is a failed case, which was counted.
            if line in (0, 1):
                return None if seen else "the device was not found"
            text = next((text for text in said if "CANN error" in text), said[-1] if said else "")
            return f"after {last or 'nothing'}, status {line}: {text}"
        if f"Backend {DEVICE}: " in line or "Device description" in line:
            seen = True
        text = line.strip()
        match = re.search(r"(?<![A-Za-z0-9_])([A-Z][A-Z0-9_]+\([a-zA-Z_0-9]+=.*)$", text)
        match = match and CASE.match(match.group(1))
        if match:
            message = text[: -len(match.group(0))].strip()
            counts.count(*match.group("op", "parameters", "rest"), " ".join([*said, message]).strip())
            last, said = match.group("op"), []
        elif text:
            said = [*said[-8:], text]
    return "no end"


def claimed(program):
    """Operators with cases, in order, as far as the program lists them."""
    found = subprocess.run([program, "support", "-b", DEVICE, "--output", "csv"], capture_output=True, text=True).stdout
    names = re.findall(rf'^"{DEVICE}","([A-Z0-9_]+)"', found, re.M) or re.findall(r'^(?:"[^"]*",)*"([A-Z0-9_]+)"', found, re.M)
    return list(dict.fromkeys(names))


def main():
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    program, path = sys.argv[1], pathlib.Path(sys.argv[2])
    only = sys.argv[3] if len(sys.argv) == 4 else None
    counts, deaths = Counts(), []
    with path.open("w") as log:
        death = run(program, log, counts, only)
        if death:
            deaths.append(death)
            names = only.split(",") if only else claimed(program)
            for name in [name for name in names if name not in counts.operators]:
                death = run(program, log, counts, name)
                if death:
                    deaths.append(f"{name}: {death}")
    for op, (passed, failed, unclaimed) in sorted(counts.operators.items()):
        print(f"{op:32} {passed:6} passed {failed:6} failed {unclaimed:6} not claimed")
    for text in counts.failed[:100]:
        print(f"failed: {text}")
    for text in deaths:
        print(f"died: {text}")
    print(f"passed {counts.passed}, failed {len(counts.failed)}, died {len(deaths)}, not claimed {counts.unclaimed}")
    sys.exit(1 if counts.failed or deaths or not counts.passed else 0)


main()
