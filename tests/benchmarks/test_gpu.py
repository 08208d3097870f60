"""The benchmark for the GPU, tried on the CPU."""

import csv
import re
import subprocess
import sys
from pathlib import Path

import torch as th

ROOT = Path(__file__).parent.parent.parent


def run(*args):
    command = [sys.executable, str(ROOT / "benchmarks/gpu.py"), *args]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_dry_run(tmp_path):
    files = ("--csv", str(tmp_path / "gpu.csv"), "--markdown", str(tmp_path / "gpu.md"))
    result = run("--device", "cpu", "--quick", *files)
    assert result.returncode == 0, result.stderr
    with (tmp_path / "gpu.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["what"] for row in rows} == {"layer", "SAC step", "memory"}
    assert {row["contender"] for row in rows if row["what"] == "layer"} >= {
        "nn.Linear",
        "masks of torch.nn.utils.prune",
        "ours, dense",
        "ours, chosen",
    }
    timed = [row for row in rows if row["what"] != "memory"]
    assert all(float(row["ms"]) > 0 and float(row["times dense"]) > 0 for row in timed)
    text = (tmp_path / "gpu.md").read_text()
    assert len(re.findall(r"^\| (?:layer|SAC step|memory) \|", text, re.MULTILINE)) == len(rows)
    assert "Not measured" not in text
    assert text.strip() in result.stdout


def test_what_takes_too_long_is_named(tmp_path):
    result = run("--device", "cpu", "--quick", "--minutes", "0")
    assert result.returncode == 0, result.stderr
    assert "Not measured within 0 minutes: layer 64x32, SAC step W0.05, memory W0.05." in result.stdout


def test_without_a_gpu_it_says_so():
    if not th.cuda.is_available():
        result = run()
        assert result.returncode == 2
        assert "finds no GPU; --device cpu --quick is a dry run" in result.stderr
