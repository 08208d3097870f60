"""The example of an Atari game runs."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.full
def test_the_example_trains_plays_and_saves(tmp_path):
    pytest.importorskip("ale_py")
    arguments = ["--game", "Pong", "--steps", "1610", "--width", "0.125", "--episodes", "1", "--device", "cpu"]
    command = [sys.executable, ROOT / "examples/der_atari.py", *arguments]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "Mean return over 1 games of Pong: -2" in result.stdout, result.stderr
    assert (tmp_path / "der-Pong.zip").is_file()
