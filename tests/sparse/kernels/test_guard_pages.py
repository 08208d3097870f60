import os
import subprocess
import sys
from pathlib import Path

import llvmlite.binding as llvm
import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="protects pages by mprotect, and forks")

ROOT = Path(__file__).parents[3]
SCRIPT = "tests/sparse/kernels/guard_pages.py"


def run(*arguments):
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])},
        capture_output=True,
        text=True,
        timeout=600,
    )
    # A fault is a negative return code, and its place in stderr.
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-5000:]
    return result.stdout


def run_after(module, kernels):
    """The script, with kernels for the processors that a module pretends."""
    code = f"import {module}, runpy, sys; sys.argv = ['', {kernels!r}]; runpy.run_path({SCRIPT!r}, run_name='__main__')"
    return run("-c", code)


@pytest.mark.parametrize("kernels", ["batches", "convolutions", "norms", "streaming", "forward"])
def test_kernels_touch_nothing_beside_their_arrays(kernels):
    assert run(SCRIPT, kernels).startswith("all right: ")


@pytest.mark.parametrize("kernels", ["batches", "convolutions"])
def test_kernels_of_processors_without_avx512_touch_nothing_beside_their_arrays(kernels):
    if not llvm.get_host_cpu_features().get("avx512f", False):
        pytest.skip("for processors with AVX-512, on which others differ")
    assert run_after("without_avx512", kernels).startswith("all right: ")


# Those that tell LLVM of alignment.
@pytest.mark.parametrize("kernels", ["convolutions", pytest.param("batches", marks=pytest.mark.full)])
def test_kernels_of_processors_without_avx_read_vectors_where_they_lie(kernels):
    """Their instructions end the process where an address is less aligned than LLVM was told; those of AVX do not."""
    if not llvm.get_host_cpu_features().get("sse2", False):
        pytest.skip("for x86-64 processors")
    assert run_after("tests.sparse.kernels.without_avx", kernels).startswith("all right: ")


def test_an_array_that_is_too_short_ends_the_process():
    assert run(SCRIPT, "streaming", "prove") == ""
    assert run(SCRIPT, "convolutions", "prove") == ""
    assert run(SCRIPT, "forward", "prove") == ""
    assert run(SCRIPT, "norms", "prove") == ""
    # These two have some more elements than the kernels touch, on purpose: whole vectors are read and written.
    assert run(SCRIPT, "batches", "prove") == "end local 0\nend packed 0\n"
