"""The command in a process of its own, as a user runs it."""

import subprocess
import sys


def run(*args, cwd, check=True):
    result = subprocess.run([sys.executable, "-m", "sb3_sparse.cli", *args], cwd=cwd, capture_output=True, text=True)
    if check:
        assert result.returncode == 0, result.stdout + result.stderr
    return result
