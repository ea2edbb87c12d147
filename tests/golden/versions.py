"""The package versions that computed each golden, kept in VERSIONS.json beside this file.

Here because a golden whose origin is not known cannot be made again.
Called at the end of each of the scripts beside it.
"""

import json
import platform
from importlib.metadata import version
from pathlib import Path

VERSIONS = Path(__file__).resolve().parent / "VERSIONS.json"


def cpu_maker():
    """Who made the processor: what MKL chooses its kernels, and thereby the order of sums, by."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    makers = (line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id"))
    return next(makers, platform.machine())


def record(script, packages, **more):
    """Replaces the entry of `script`; `more` is whatever else identifies its input."""
    entries = json.loads(VERSIONS.read_text()) if VERSIONS.exists() else {}
    entries[Path(script).name] = {
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
        **more,
    }
    VERSIONS.write_text(json.dumps(entries, indent=2, sort_keys=True) + "\n")
