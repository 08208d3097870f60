"""
Time and memory of a report.

    python benchmarks/report.py [--runs 1000] [--folder FOLDER]

A study of so many runs with made-up numbers is written: 4 tasks, 50 groups of 5 seeds each, 50 evaluations and 200 rows of
plasticity (12 series) in each run. Then ``sb3-sparse report`` puts it together in a process of its own. "Time" is that of
the process from its start to its end, "memory" its peak.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from common import machine, print_table  # noqa: E402

from tests.results.studies.made import make_study  # noqa: E402

# What a report may take.
SECONDS, MIB = 30, 1024
SPARSITIES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def main() -> None:
    """Write a study, and measure its report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000, help="in steps of 200 (default: 1000)")
    parser.add_argument("--folder", help="keeps the study and its report there (default: a temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.folder or temporary)
        envs = [f"dm_control/{name}-v0" for name in ("humanoid-run", "humanoid-walk", "dog-run", "dog-walk")]
        widths = [0.5, 1, 2, 3, 5, 6, 7, 8, 9, 10][: max(1, options.runs // 200)]
        if not (folder / "study").exists():
            n = sum(1 for _ in make_study(folder / "study", widths, SPARSITIES, 5, envs, points=(50, 200), series=12))
            print(f"{n} runs are written", flush=True)
        n = sum(1 for _ in (folder / "study/runs").iterdir())
        command = [sys.executable, "-m", "sb3_sparse.cli", "report", str(folder / "study"), "-o", str(folder / "report")]
        before = time.perf_counter()
        subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - before
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        size = (folder / "report.html").stat().st_size / 2**20
    row = [str(n), f"{seconds:.1f}", f"{used.ru_utime + used.ru_stime:.1f}", f"{used.ru_maxrss / 1024:.0f}", f"{size:.1f}"]
    print(machine())
    print_table("Report", ["runs", "time (s)", "of processors (s)", "memory (MiB)", "page (MiB)"], [row])
    if n >= 1000:
        print(f"less than {SECONDS} s and {MIB} MiB are asked for 1,000 runs")


if __name__ == "__main__":
    main()
