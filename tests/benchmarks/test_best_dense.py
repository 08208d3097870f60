"""The strictest rival: MKL's question is answered, freed memory stays with the process, and the run is named so."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"
ASK = """
import ctypes, resource, sys
sys.path.insert(0, sys.argv[1])
import torch
from common import machine
assert torch.allclose(torch.full((40, 30), 2.0) @ torch.full((30, 50), 0.5), torch.full((40, 50), 30.0))
# Of 100 MB in pages of 4 kB, and of so many more where they were given back and had to be got anew.
for i in range(11):
    torch.full((25_000_000,), float(i))
    if not i:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print("faults", resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print("answer", getattr(ctypes.CDLL(None), "mkl_serv_intel_cpu_true", int)())
print(machine())
sys.exit(7)
"""


@pytest.mark.parametrize("best", [True, False])
def test_dense_networks_have_all_of_the_processor_and_keep_their_memory(best):
    script = [str(BENCHMARKS / "best_dense.py")] if best else []
    command = [sys.executable, *script, "-c", ASK, str(BENCHMARKS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 7, done.stderr
    faults, answer, machine = done.stdout.splitlines()
    assert (int(faults.split()[1]) < 1_000) == best
    assert (answer == "answer 1") == best
    assert ("MKL with AVX-512, memory kept" in machine) == best
