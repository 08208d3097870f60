"""The example of an Atari game runs."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.full
def test_the_example_trains_plays_and_saves(tmp_path):
    pytest.importorskip("ale_py")
    arguments = ["--game", "Pong", "--steps", "1610", "--encoder", "impala", "--width-scale", "0.125", "--sparsity", "0.8"]
    arguments += ["--games", "1", "--device", "cpu", "--folder", "here"]
    command = [sys.executable, ROOT / "examples/der_atari.py", *arguments]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    name = "Pong-impala-x0.125-S0.8-sigma0.5-0"
    assert f"{name}: -2" in result.stdout, result.stderr
    assert {path.name for path in (tmp_path / "here").iterdir()} == {f"{name}.csv", f"{name}.zip"}
