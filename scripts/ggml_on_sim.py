#!/usr/bin/env python3
"""Runs ggml's test-backend-ops on a simulated CANN device and counts; ggml-on-sim.sh calls it.

    ggml_on_sim.py --config FILE --work DIR --record FILE --commit ID [--build FILE…] [--only OP,…] [--jobs N] [--write] PROGRAM

Every operator has a process of its own. One that dies, because the driver refused a call, or that does nothing for long,
costs the case that was running; the cases behind it run again without it. Results are written as they come: a run of the
same build that was interrupted goes on where it stopped.

The record says what was reached at a commit of ggml, and why what fails there is ggml's own. With fewer passed cases of
any operator, or a failure that has no reason there, the status is 1.
"""

import argparse
import collections
import concurrent.futures
import hashlib
import os
import pathlib
import pty
import re
import select
import shutil
import subprocess
import sys
import time

DEVICE = "CANN0"
CASE = re.compile(r"(?<![A-Za-z0-9_])(?P<case>(?P<op>[A-Z][A-Z0-9_]+)\([a-zA-Z_0-9]+=.*\)): (?P<rest>.*)$")
COLOUR = re.compile(r"\x1b\[[\d;]*m")
# What may become of a case. One that failed is drawn again, since ggml takes other values each time; one that then passes
# is counted among the passed, and told apart.
PASSED, REDRAWN, FAILED, DIED, STUCK = "passed", "redrawn", "failed", "died", "stuck"
# Of cases that never run: the backend says no, or the CPU that it is compared with does.
UNCLAIMED, UNREFERENCED = "not claimed", "no reference"
COLUMNS = ["passed", "failed", "died", "stuck", "no reference", "not claimed"]
# Seconds of processor time for one case, and seconds without using any.
BUSY, IDLE = 900, 120
# Names that fit a command line.
PACK = 200


class Stuck(Exception):
    """A program that was ended, for nothing came."""


def used(pid):
    """Seconds of processor time of a process and its threads."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def lines(command, config, log):
    """The lines that a program prints, as it prints them, and its status at last."""
    # On a terminal each line comes when it is printed: a program that dies takes none with it.
    ours, theirs = pty.openpty()
    environment = os.environ | {"PORTOLAN_SIM_CONFIG": str(config)}
    process = subprocess.Popen(command, stdout=theirs, stderr=theirs, stdin=subprocess.DEVNULL, env=environment)
    os.close(theirs)
    rest, work, line_at, work_at = b"", 0.0, 0.0, time.monotonic()
    try:
        while True:
            ready, _, _ = select.select([ours], [], [], 5)
            if not ready:
                now = used(process.pid)
                if now > work:
                    work, work_at = now, time.monotonic()
                if work - line_at > BUSY or time.monotonic() - work_at > IDLE:
                    raise Stuck(f"no line in {work - line_at:.0f} s of processor time")
                continue
            try:
                piece = os.read(ours, 1 << 16)
            except OSError:  # Linux says so where the other end is closed.
                piece = b""
            if not piece:
                break
            *whole, rest = (rest + piece).split(b"\n")
            for line in whole:
                line = COLOUR.sub("", line.decode(errors="replace")).rstrip()
                print(line, file=log, flush=True)
                yield line
            work, work_at = used(process.pid), time.monotonic()
            line_at = work if whole else line_at
        yield process.wait()
    finally:
        os.close(ours)
        if process.poll() is None:
            process.kill()
            process.wait()


def listed(program, config, folder):
    """The cases of each operator that run, and how many of each never do.

    A device without memory fails each case before it computes, and the program then names those that failed.
    """
    empty = folder / "empty.json"
    empty.write_text(re.sub(r'("memory_bytes": *)\d+', r"\g<1>1024", config.read_text()))
    cases, never, failing, seen = {}, collections.Counter(), False, False
    with (folder / "list.log").open("w") as log:
        for line in lines([program, "test", "-b", DEVICE], empty, log):
            if isinstance(line, int):
                break
            seen = seen or "Device description" in line
            failing = failing or line == "Failing tests:"
            match = CASE.search(line)
            if match and match["rest"].startswith("not supported"):
                never[match["op"], UNCLAIMED if DEVICE in match["rest"] else UNREFERENCED] += 1
            elif failing and (match := re.match(r"  (([A-Z0-9_]+)\(.*\))$", line)):
                cases.setdefault(match[2], []).append(match[1])
    if not seen or not cases:
        sys.exit(f"{program} found no device {DEVICE}, or no case; {folder}/list.log has what it said")
    return cases, never


def parts(names, size):
    """Names in lists of so many."""
    return (names[start : start + size] for start in range(0, len(names), max(1, size)))


class Operator:
    """The cases of one operator, and what became of those that have run."""

    def __init__(self, name, cases, folder):
        # Several cases may have one name; the program then runs all of them.
        self.name, self.cases = name, collections.Counter(cases)
        self.results = {case: [] for case in cases}
        self.log, self.file = folder / f"{name}.log", folder / f"{name}.results"
        self.ended = False
        if self.file.exists():
            # A line that was being written is no result.
            *whole, _ = self.file.read_text().split("\n")
            self.ended = whole[-1:] == ["end"]
            for outcome, case, message in (line.split("\t", 2) for line in whole if line != "end"):
                self.results[case].append((outcome, message))

    def pending(self, cases):
        """Those of some cases that have no result yet."""
        return [case for case in cases if len(self.results[case]) < self.cases[case]]

    def add(self, outcome, case, message=""):
        """A case has a result."""
        if len(self.results[case]) < self.cases[case]:
            self.results[case].append((outcome, message.replace("\t", " ")))
            with self.file.open("a") as file:
                print(outcome, case, self.results[case][-1][1], sep="\t", file=file)

    def outcomes(self, program, config, names):
        """Runs cases by name and gives (case, outcome, message) of each; where the program dies, one without a case."""
        said = []
        with self.log.open("a") as log:
            try:
                for line in lines([program, "test", "-b", DEVICE, "-o", names], config, log):
                    if isinstance(line, int):
                        if line not in (0, 1):  # 1 is a failed case.
                            text = next((text for text in said if "CANN error" in text), said[-1] if said else "")
                            yield None, DIED, f"status {line}: {text}"
                        return
                    match = CASE.search(line)
                    if match and match["rest"].startswith("not supported"):
                        said = []
                    elif match:
                        message = " ".join([*said, line[: match.start()]]).strip()
                        passed = match["rest"].endswith("OK")
                        yield match["case"], PASSED if passed else FAILED, "" if passed else message
                        said = []
                    elif line.strip() and not line.startswith("simulated CANN: tolerated"):
                        said = [*said[-8:], line.strip()]
            except Stuck as stuck:
                yield None, STUCK, str(stuck)

    def run(self, program, config):
        """Runs the cases that have no result yet."""
        waiting = self.pending(self.cases)
        # The operator's name stands for all of its cases.
        packs = [waiting] if len(waiting) == len(self.cases) else list(parts(waiting, PACK))
        while packs:
            pack = self.pending(packs.pop())
            if not pack:
                continue
            names = self.name if len(pack) == len(self.cases) else ",".join(pack)
            for case, outcome, message in self.outcomes(program, config, names):
                if case is not None:
                    self.add(outcome, case, message)
                elif len(left := self.pending(pack)) == 1:
                    self.add(outcome, left[0], message)
                else:
                    # The program names a case when it is done: the one that it died of is found by running fewer.
                    packs.extend(parts(left, min(PACK, -(-len(left) // 8))))
                    break
            else:
                for case in self.pending(pack):
                    # A case that gets no memory has no line of its own.
                    self.add(FAILED, case, "no result")
        if not self.ended:
            self.draw_again(program, config)
            with self.file.open("w") as file:
                for case, results in self.results.items():
                    for outcome, message in results:
                        print(outcome, case, message, sep="\t", file=file)
                print("end", file=file)
            self.ended = True
        return self

    def draw_again(self, program, config):
        """Runs failed cases once more, with other values."""
        failed = [case for case, results in self.results.items() if any(outcome == FAILED for outcome, _ in results)]
        again = collections.defaultdict(set)
        for pack in parts(failed, PACK):
            for case, outcome, _ in self.outcomes(program, config, ",".join(pack)):
                again[case].add(outcome)
        for case in failed:
            if again[case] == {PASSED}:
                change = lambda outcome: REDRAWN if outcome == FAILED else outcome
                self.results[case] = [(change(outcome), message) for outcome, message in self.results[case]]

    def counts(self, never):
        """The columns of the record."""
        count = collections.Counter(outcome for results in self.results.values() for outcome, _ in results)
        row = [count[PASSED] + count[REDRAWN], count[FAILED], count[DIED], count[STUCK]]
        return [*row, never[self.name, UNREFERENCED], never[self.name, UNCLAIMED]]


class Record:
    """What was reached: lines of an operator and its numbers, and of reasons."""

    def __init__(self, path):
        self.path, self.rows, self.reasons, self.commit, self.kept = path, {}, [], None, []
        for line in path.read_text().splitlines() if path.exists() else []:
            words = line.split()
            if words[:1] == ["reason"]:
                # reason OPERATOR /pattern of the case and what it said/ text
                match = re.fullmatch(r"reason (\w+) /(.*)/ (.*)", line) or sys.exit(f"{path}: {line}: no reason")
                self.reasons.append((match[1], re.compile(match[2]), match[3]))
                self.kept.append(line)
            elif words[:1] == ["ggml"]:
                self.commit = words[1]
            elif words and words[0] != "total" and not line.startswith("#"):
                self.rows[words[0]] = [int(word) for word in words[1:]]

    def reason(self, op, case, message):
        """Why a failure is ggml's own, if it is."""
        text = f"{case} {message}"
        return next((why for of, pattern, why in self.reasons if of == op and pattern.search(text)), None)

    def fallen(self, rows, whole):
        """Operators with fewer passed cases than the record has, of all or of those that ran."""
        wanted = {op: row[0] for op, row in self.rows.items() if whole or op in rows}
        pairs = ((op, rows[op][0] if op in rows else 0, then) for op, then in wanted.items())
        return [f"{op} passed {now}, was {then}" for op, now, then in pairs if now < then]

    def write(self, commit, rows):
        """Other numbers, the same reasons."""
        head = [
            "# What ggml's own test-backend-ops reaches on the simulated driver with graph capture on, by operator. Written by",
            "# scripts/ggml-on-sim.sh -u and compared by it: numbers of passed cases may only rise.",
            f"# Cases: {', '.join(COLUMNS)}.",
            f"ggml {commit}",
        ]
        table = [f"{op} {' '.join(map(str, row))}" for op, row in sorted(rows.items())]
        total = "total " + " ".join(str(sum(column)) for column in zip(*rows.values()))
        why = ["# Why failures are ggml's own: operator, what its case and message match, reason."] if self.kept else []
        self.path.write_text("\n".join([*head, *table, total, *why, *self.kept]) + "\n")


def state(folder, build, config, whole):
    """A folder for results: what a run of the same build left unfinished, or nothing."""
    digest = hashlib.sha256(config.read_bytes())
    for path in [__file__, *build]:
        digest.update(pathlib.Path(path).read_bytes())
    digest.update(os.environ.get("GGML_CANN_ACL_GRAPH", "").encode())
    mark = folder / "build"
    if not whole or not mark.exists() or mark.read_text() != digest.hexdigest() or (folder / "finished").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        mark.write_text(digest.hexdigest())
    return folder


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--config", type=pathlib.Path, required=True, help="what to simulate")
    parser.add_argument("--work", type=pathlib.Path, required=True, help="folder for results")
    parser.add_argument("--record", type=pathlib.Path, required=True, help="file of the numbers to reach")
    parser.add_argument("--commit", required=True, help="of ggml")
    parser.add_argument("--build", nargs="*", default=[], help="files that results depend on")
    parser.add_argument("--only", help="operators")
    parser.add_argument("--jobs", type=int, default=1, help="operators at a time")
    parser.add_argument("--write", action="store_true", help="the record anew instead of comparing")
    return parser.parse_args()


def main():
    args = arguments()
    only = args.only.split(",") if args.only else None
    folder = state(args.work / ("only" if only else "run"), [args.program, *args.build], args.config, not only)
    cases, never = listed(args.program, args.config, folder)
    names = sorted(set(cases) | {op for op, _ in never})
    if only:
        unknown = sorted(set(only) - set(names))
        if unknown:
            sys.exit(f"test-backend-ops has no case of {', '.join(unknown)}")
        names = [op for op in names if op in only]
    operators = {op: Operator(op, cases.get(op, []), folder) for op in names}
    before = sum(len(results) for operator in operators.values() for results in operator.results.values())
    if before:
        print(f"going on behind {before} results of the same build")
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        # Those with most cases first.
        order = sorted(operators.values(), key=lambda operator: -operator.cases.total())
        done = [pool.submit(operator.run, args.program, args.config) for operator in order if operator.cases]
        for count, future in enumerate(concurrent.futures.as_completed(done), 1):
            operator = future.result()
            row = dict(zip(COLUMNS, operator.counts(never)))
            text = ", ".join(f"{row[column]} {column}" for column in COLUMNS if row[column])
            print(f"{count}/{len(done)} {operator.name}: {text}", flush=True)
    (folder / "finished").touch()
    rows = {op: operator.counts(never) for op, operator in operators.items()}
    sys.exit(report(args, Record(args.record), operators, rows, whole=not only))


def report(args, record, operators, rows, whole):
    """Prints what came of the run; the status."""
    unexplained, explained = [], collections.Counter()
    for op, operator in operators.items():
        results = ((case, *result) for case, results in operator.results.items() for result in results)
        for case, outcome, message in results:
            if outcome == REDRAWN:
                print(f"passed with other values: {case}: {message}")
            elif outcome != PASSED:
                why = record.reason(op, case, message)
                explained[op, outcome, why] += 1 if why else 0
                if not why:
                    unexplained.append(f"{outcome}: {case}: {message}")
    for (op, outcome, why), count in sorted(item for item in explained.items() if item[1]):
        print(f"{count} of {op} {outcome}, ggml's own: {why}")
    tolerated = set()
    for operator in operators.values():
        text = operator.log.read_text() if operator.log.exists() else ""
        tolerated.update(re.findall(r"^simulated CANN: tolerated (\w+ of \w+)", text, re.M))
    for line in sorted(tolerated):
        print(f"tolerated: {line}")
    print(*unexplained, sep="\n", end="\n" if unexplained else "")
    fallen = []
    capture = os.environ.get("GGML_CANN_ACL_GRAPH") == "on"
    if args.write and whole and capture:
        record.write(args.commit, rows)
        print(f"written: {args.record}")
    elif not capture or record.commit != args.commit:
        print(f"not compared: {args.record.name} has numbers of ggml {record.commit} with graph capture")
    else:
        fallen = record.fallen(rows, whole)
        risen = [op for op, row in rows.items() if row[0] > record.rows.get(op, [0])[0]]
        if risen:
            print(f"more passed than {args.record.name} has: {', '.join(sorted(risen))}; -u writes it anew")
        for line in fallen:
            print(f"fell: {line}")
    totals = [sum(column) for column in zip(*rows.values())]
    own = sum(explained.values())
    failed = sum(totals[1:4])
    print(
        f"passed {totals[0]}, failed {failed} ({totals[2]} died, {totals[3]} stuck; {own} ggml's own), "
        f"no reference {totals[4]}, not claimed {totals[5]}"
    )
    return 1 if unexplained or fallen or not totals[0] else 0


if __name__ == "__main__":
    main()
