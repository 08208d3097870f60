"""
Run a benchmark with dense networks as fast as a user can make them, which is the strictest rival of a sparse one.

    python benchmarks/best_dense.py benchmarks/sac_step.py --width 5

- MKL's kernels for AVX-512, on processors that have it and are not from Intel. Torch multiplies dense matrices with MKL, which
  asks for the processor's maker and gives all others its kernels for AVX2. Where a processor has the full width of AVX-512
  (AMD from Zen 5 on), that is half of its speed. The question is a function, ``mkl_serv_intel_cpu_true``, and a library that
  is loaded first can answer it.
- Memory stays with the process. The allocator of Linux gives what is larger than 32 MB back to the system when it is freed,
  and gets it anew, page by page, for the next step: gradients of wide dense networks and activations of images are that
  large. Allocators such as tcmalloc keep it, too.

Both hold for the sparse contenders as well. Needs Linux and a C compiler.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

# By this, ``common.machine`` names it in the heading of tables.
VARIABLE = "SB3_SPARSE_BEST_DENSE"
# Settings of glibc: nothing is mapped on its own, and the heap does not shrink.
KEPT_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}


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
        environment = {**os.environ, **KEPT_MEMORY, "LD_PRELOAD": loaded_first, VARIABLE: "1"}
        return subprocess.run([sys.executable, "-u", *sys.argv[1:]], env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
