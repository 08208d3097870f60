"""The strictest rival: MKL's question is answered, freed memory stays with the process, and the run is named so."""

import subprocess
import sys
from pathlib import Path

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


def ask(*script):
    command = [sys.executable, *script, "-c", ASK, str(BENCHMARKS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 7, done.stderr
    faults, answer, machine = done.stdout.splitlines()
    return int(faults.split()[1]), answer, machine


def test_dense_networks_have_all_of_the_processor_and_keep_their_memory():
    (faults, answer, machine), (plain_faults, plain_answer, plain_machine) = ask(str(BENCHMARKS / "best_dense.py")), ask()
    # With huge pages there are fewer of them.
    assert 4 * faults < plain_faults
    assert (answer, plain_answer) == ("answer 1", "answer 0")
    assert "MKL with AVX-512, memory kept" in machine
    assert "memory kept" not in plain_machine
