"""What measures beside MKL's fastest kernels: the answer to MKL's question is found first, and the run is named so."""

import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"
ASK = """
import ctypes, sys
sys.path.insert(0, sys.argv[1])
import torch
from common import machine
assert ctypes.CDLL(None).mkl_serv_intel_cpu_true() == 1
assert torch.allclose(torch.full((40, 30), 2.0) @ torch.full((30, 50), 0.5), torch.full((40, 50), 30.0))
print(machine())
sys.exit(7)
"""


def test_mkl_with_avx512_is_loaded_and_named():
    command = [sys.executable, str(BENCHMARKS / "mkl_avx512.py"), "-c", ASK, str(BENCHMARKS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 7, done.stderr
    assert "MKL with AVX-512" in done.stdout
