#!/usr/bin/env python3
"""Libraries that stand in for what torch and torch-npu are linked against and this machine lacks.

    torch_npu_stand_ins.py cuda TORCH                  takes CUDA out of an installed torch that was built with it
    torch_npu_stand_ins.py ascend TORCH TORCH_NPU DIR  adds to DIR, the libraries of a driver, what torch-npu needs beyond

TORCH and TORCH_NPU are the installed packages' folders. A function of a stand-in is a refusal: it says its name on
standard error, and then CUDA's ends the process and Ascend's returns an error. Which functions these are is read from the
packages' own libraries; written down here are only the few that must answer otherwise.
"""

import collections
import os
import pathlib
import re
import subprocess
import sys

NOTHING = "return (void *) 0;"

# An import asks how many devices CUDA has, and makes two objects that nothing uses afterwards.
CUDA_ANSWERS = {
    "_ZN3c104cuda12device_countEv": NOTHING,
    "_ZN4c10d15get_gil_checkerEv": "static void *none; return &none;",
    # The default argument of a binding, which is asked for its type.
    "_ZN4c10d16ProcessGroupNCCL7OptionsC1Eb": 'extern char table[] __asm__("_ZTVN4c10d16ProcessGroupNCCL7OptionsE");'
    " memset(self, 0, malloc_usable_size(self)); *(void **) self = table + 16; return self;",
}
CUDA_REFUSES = r'fprintf(stderr, "no CUDA here: %s\n", name); abort();'

# What torch-npu looks up and does not do without: settings that change nothing here, and one that is read.
ASCEND_ANSWERS = {
    "aclSetCompileopt": NOTHING,
    "aclrtGetSysParamOpt": "*value = 0; return (void *) 0;",
    "aclrtSetDeviceSatMode": NOTHING,
    "aclrtSetStreamOverflowSwitch": NOTHING,
}
ASCEND = re.compile(r"acl|rt[A-Z]|Hccl|Msprof")
NOT_SUPPORTED = 200001
ASCEND_REFUSES = (
    r'if (!*told) fprintf(stderr, "not simulated: %s\n", name); *told = 1; ' f"return (void *) {NOT_SUPPORTED}L;"
)
# Refusals that return no code: what makes an object gives none, what asks one finds nothing.
ASCEND_OBJECTS = re.compile(r"acl(op)?(Create|Destroy|GetTensorDesc)|aclAppLog")
# The compiler of operators from before aclnn, where torch-npu turns when it finds no aclnn function: for which operator.
ASCEND_COMPILERS = ("aclopCompileAndExecute", "aclopCompileAndExecuteV2")


def output(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def symbols(library, which):
    """Of a library's `--defined-only` or `--undefined-only`: name → (kind, size, version)."""
    found = {}
    for line in output("nm", "-D", "-S", which, str(library)).splitlines():
        *numbers, kind, name = line.split()
        name, _, version = name.partition("@")
        found[name] = (kind, int(numbers[1], 16) if len(numbers) > 1 else 0, version.lstrip("@"))
    return found


def needed(library):
    """The names of the libraries that one depends on."""
    return re.findall(r"\(NEEDED\).*\[(.*)\]", output("readelf", "-d", str(library)))


def build(folder, name, functions, refuses, data=None, version=None, links=()):
    """Compiles a library: `functions` by name, with a body where it is no refusal, and `data` by name, with its size."""
    rows = [f"#include <{header}.h>" for header in ("malloc", "stdio", "stdlib", "string")]
    rows.append(f"static void *refuse_once(const char *name, char *told) {{ {refuses} }}")
    rows.append("#define refuse(name) ({ static char told; refuse_once(name, &told); })")
    for number, (symbol, body) in enumerate(sorted(functions.items())):
        signature = f"void *f{number}(void *self, long *value)"
        body = body or f'return refuse("{symbol}");'
        rows += [f'{signature} __asm__("{symbol}");', f"{signature} {{ {body} }}"]
    for number, (symbol, size) in enumerate(sorted((data or {}).items())):
        if symbol.startswith("_ZTI"):  # A class, by whose name bindings tell it from others.
            rows.append('extern char classes[] __asm__("_ZTVN10__cxxabiv117__class_type_infoE");')
            rows.append(f'const void *d{number}[3] __asm__("{symbol}") = {{ classes + 16, "{symbol[4:]}" }};')
        else:
            rows.append(f'char d{number}[{size}] __asm__("{symbol}") __attribute__((aligned(16)));')
    source, script = folder / f"{name}.c", folder / f"{name}.map"
    source.write_text("\n".join(rows) + "\n")
    script.write_text(f"{version or ''} {{ global: *; }};\n")
    command = [os.environ.get("CC", "cc"), "-shared", "-fPIC", "-O1", "-w", str(source), "-o", str(folder / name)]
    command += [f"-Wl,-soname,{name}", "-Wl,-rpath,$ORIGIN", "-lstdc++", "-Wl,--no-as-needed", f"-L{folder}"]
    command += [f"-l:{library.name}" for library in links]
    if version:
        command.append(f"-Wl,--version-script={script}")
    (folder / name).unlink(missing_ok=True)
    subprocess.run(command, check=True)
    source.unlink()
    script.unlink()


def cuda(torch):
    """Puts refusals in the place of torch's CUDA half and of CUDA's libraries."""
    folder = torch / "lib"
    halves, mark = [folder / "libtorch_cuda.so", folder / "libc10_cuda.so"], folder / "without-cuda"
    if mark.exists() or not halves[0].exists():
        return
    defined = {name: row for half in halves for name, row in symbols(half, "--defined-only").items()}
    kept = [folder / f"lib{name}.so" for name in ("torch", "torch_cpu", "torch_python", "torch_global_deps")]
    functions, data = collections.defaultdict(dict), {}
    for library in kept:
        for name, (_, _, version) in symbols(library, "--undefined-only").items():
            kind, size, _ = defined.get(name, ("", 0, ""))
            if kind and kind in "BDRV":
                data[name] = size
            elif re.fullmatch(r"lib(cu|nv)\w+\.so\.\d+", version):
                functions[version][name] = None
            elif kind or re.match(r"(cu|nccl|nvrtc)[A-Z]|_ZN4c10d17nvshmem", name):
                functions[halves[0].name][name] = CUDA_ANSWERS.get(name)
    libraries = {name for library in kept for name in needed(library) if re.match(r"lib(cu|nccl|nv)", name)}
    for name in sorted(libraries | {half.name for half in halves}):
        of_torch = name == halves[0].name
        version = name if name in functions and not of_torch else None
        build(folder, name, functions[name], CUDA_REFUSES, data if of_torch else None, version)
    # What a build without CUDA says of itself.
    for name, old, new in (
        ("backends/cuda/__init__.py", r"return torch\._C\._has_cuda", "return False"),
        ("version.py", r"cuda: Optional\[str\] = '.*'", "cuda: Optional[str] = None"),
    ):
        text, count = re.subn(old, new, (torch / name).read_text())
        if count != 1:
            sys.exit(f"{torch / name}: {old} stands there {count} times; this is no torch that the script knows")
        (torch / name).write_text(text)
    mark.touch()


def ascend(torch, torch_npu, driver):
    """Puts refusals before the simulator, for what it lacks, and adds the libraries that the driver's folder lacks."""
    simulator, first = driver / "libportolan_cann_sim.so", driver / "libascendcl.so"
    held = first.replace(driver / "simulator")
    theirs = [*torch_npu.glob("_C.*.so"), *(torch_npu / "lib").glob("lib*.so")]
    theirs = [library for library in theirs if "atb" not in library.name]  # Loaded only where that package is.
    wanted = {name for library in theirs for name in symbols(library, "--undefined-only") if ASCEND.match(name)}
    lacking = wanted - set(symbols(held, "--defined-only"))
    functions = dict.fromkeys(lacking | set(ASCEND_COMPILERS)) | ASCEND_ANSWERS
    for name in functions:
        if ASCEND_OBJECTS.match(name):
            functions[name] = f'refuse("{name}"); {NOTHING}'
        elif name in ASCEND_COMPILERS:
            said = f'fprintf(stderr, "not simulated: {name} of %s\\n", self);'
            functions[name] = f"{said} return (void *) {NOT_SUPPORTED}L;"
    # Linked by the file's name: the simulator may call itself libascendcl.so, as the refusals before it do.
    build(driver, simulator.name, {}, ASCEND_REFUSES)
    build(driver, first.name, functions, ASCEND_REFUSES, links=[simulator])
    held.replace(simulator)
    present = {path.name for folder in (driver, torch / "lib", torch_npu / "lib") for path in folder.iterdir()}
    system = re.compile(r"(lib(c|m|gcc_s|stdc\+\+|pthread|dl|rt)|ld-linux.*)\.so")
    libraries = {name for library in theirs for name in needed(library) if not system.match(name)}
    for name in libraries - present:
        build(driver, name, {}, ASCEND_REFUSES)
    print(f"torch-npu links against {len(wanted)} functions of the driver; not simulated: {' '.join(sorted(lacking))}")
    print(f"it looks up more, and does not do without: {' '.join(sorted(ASCEND_ANSWERS))}")
    print(f"libraries that are empty here: {' '.join(sorted(libraries - present))}")


if __name__ == "__main__":
    actions = {"cuda": cuda, "ascend": ascend}
    if len(sys.argv) < 3 or sys.argv[1] not in actions:
        sys.exit(__doc__)
    actions[sys.argv[1]](*map(pathlib.Path, sys.argv[2:]))
