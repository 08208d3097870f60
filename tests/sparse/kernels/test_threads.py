import os
import subprocess
import sys
from pathlib import Path


def test_kernels_with_several_threads():
    """The tests of ``several_threads.py``: how threads share the work, threads of Python, and forked children."""
    script = Path(__file__).with_name("several_threads.py")
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", script],
        cwd=Path(__file__).parents[3],
        env={name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "OMP_"))},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-5000:]
    assert " passed" in result.stdout
