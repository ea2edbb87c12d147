#!/usr/bin/env python3
"""Makes the headers that a CANN program includes, from declarations of our own: `cann_headers.py PROGRAM INCLUDE`.

PROGRAM is a folder of C++ sources, INCLUDE the folder to make. What a program may call is what ffi/cann-sys/include
declares, and the operators that only the simulator has, whose rows (`operators!`, ffi/cann-sim/src/op) say their
parameters. The vendor spreads operators over hundreds of files whose names follow no rule, so each name that PROGRAM includes
becomes a file with all of them.
"""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
OURS = ROOT / "ffi/cann-sys/include"
ROWS = ROOT / "ffi/cann-sim/src/op"
# Kinds of parameters in the rows, as C has them.
KINDS = {
    "T": "const aclTensor *", "O": "aclTensor *", "U": "aclTensor *", "TL": "const aclTensorList *", "OL": "aclTensorList *",
    "S": "const aclScalar *", "IA": "const aclIntArray *", "CS": "const char *", "DT": "aclDataType ", "B": "bool ",
    "I8": "int8_t ", "I32": "int32_t ", "I64": "int64_t ", "U64": "uint64_t ", "Int": "int ", "F64": "double ",
}
INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]((?:acl|aclnn|aclnnop|hccl)/[\w/]+\.h(?:pp)?)[>"]', re.M)


def rows():
    """The simulator's operators and their parameters, (name, kind) in order."""
    for path in sorted(ROWS.rglob("*.rs")):
        for table in re.findall(r"^operators! \{\n(.*?)^\}", path.read_text(), re.M | re.S):
            table = re.sub(r"//[^\n]*", "", table)
            for name, parameters in re.findall(r"(\w+)\(([^()]*)\)\s*=", table, re.S):
                yield name, re.findall(r"(\w+)\s*:\s*(\w+)", parameters)


def only_simulated(taken):
    """Declarations of operators that cann-sys leaves out."""
    declared = set(re.findall(r"\baclnn(\w+)GetWorkspaceSize\(", (OURS / "aclnnop.h").read_text())) | taken
    lines = ['#pragma once\n#include "aclnnop.h"\nextern "C" {\n']
    for name, parameters in rows():
        if name in declared:
            continue
        # Some parameters have names that C++ keeps for itself.
        arguments = [f"{KINDS[kind]}{name}_" for name, kind in parameters]
        arguments = ", ".join([*arguments, "uint64_t *workspaceSize", "aclOpExecutor **executor"])
        lines.append(f"aclnnStatus aclnn{name}GetWorkspaceSize({arguments});\n")
        lines.append(f"aclnnStatus aclnn{name}(void *workspace, uint64_t workspaceSize, aclOpExecutor *executor, aclrtStream stream);\n")
    return "".join([*lines, "}\n"])


def sources(program):
    """The text of a program."""
    files = (path for path in sorted(program.rglob("*")) if path.suffix in {".h", ".hpp", ".c", ".cc", ".cpp", ".cxx"})
    return "\n".join(path.read_text(errors="replace") for path in files if path.is_file())


def without(text, taken):
    """A header of ours without the functions that a program declares itself, as it must where the vendor forgot to:
    `const` may stand elsewhere there, and C knows only one declaration of a function."""
    for name in taken:
        text = re.sub(rf"^aclnnStatus aclnn{name}(GetWorkspaceSize)?\([^;]*\);\n", "", text, flags=re.M)
    return text


def main():
    if len(sys.argv) != 3 or not pathlib.Path(sys.argv[1]).is_dir():
        sys.exit(__doc__)
    program, include = map(pathlib.Path, sys.argv[1:])
    text = sources(program)
    taken = set(re.findall(r"^\s*aclnnStatus\s+aclnn(\w+)GetWorkspaceSize\s*\(", text, re.M))
    own = include / "portolan"
    own.mkdir(parents=True, exist_ok=True)
    for header in sorted(OURS.glob("*.h")):
        (own / header.name).write_text(without(header.read_text(), taken))
    (own / "simulated.h").write_text(only_simulated(taken))
    # Every name brings all there is, as the vendor's often do.
    everything = '#pragma once\n#include "acl.h"\n#include "simulated.h"\n#include "hccl.h"\n#define ACL_SUCCESS 0\n#define ACL_ERROR_NONE 0\n'
    (own / "everything.h").write_text(everything)
    names = sorted(set(INCLUDE.findall(text)))
    for name in names:
        path = include / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'#pragma once\n#include "{"../" * name.count("/")}portolan/everything.h"\n')
    print(f"{len(names)} headers in {include}")


main()
