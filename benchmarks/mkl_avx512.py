"""
Run a benchmark with MKL's kernels for AVX-512, on processors that have it and are not from Intel.

    python benchmarks/mkl_avx512.py benchmarks/sac_step.py --width 5

Torch multiplies dense matrices with MKL, which asks for the processor's maker and gives all others its kernels for AVX2. Where
a processor has the full width of AVX-512 (AMD from Zen 5 on), that is half of its speed. The question is a function,
``mkl_serv_intel_cpu_true``, and a library that is loaded first can answer it. This is the strictest rival of a sparse network
on such a machine: dense products as fast as they get. Nothing changes on Intel's processors. Needs Linux and a C compiler.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

# By this, ``common.machine`` names it in the heading of tables.
VARIABLE = "SB3_SPARSE_MKL_AVX512"


def main() -> int:
    """Build the library, and run the rest of the command line with it."""
    if sys.argv[1:] in ([], ["-h"], ["--help"]):
        print(__doc__)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "libmkl_avx512.so"
        source = "int mkl_serv_intel_cpu_true(void) { return 1; }"
        compiler = [os.environ.get("CC", "cc"), "-shared", "-fPIC", "-x", "c", "-", "-o", str(library)]
        subprocess.run(compiler, input=source, text=True, check=True)
        loaded_first = " ".join([str(library), *os.environ.get("LD_PRELOAD", "").split()])
        environment = {**os.environ, "LD_PRELOAD": loaded_first, VARIABLE: "1"}
        return subprocess.run([sys.executable, "-u", *sys.argv[1:]], env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
