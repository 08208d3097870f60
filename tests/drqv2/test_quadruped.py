"""The run on quadruped-run: one that was killed goes on where its last checkpoint was, and what is finished stays."""

import csv
import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "drqv2_quadruped.py"
COMMAND = ["--decisions", "40", "--every", "10", "--learning-starts", "30", "--width", "0.25", "--sparsity", "0.5"]


@pytest.mark.full
def test_a_run_that_was_killed_goes_on(monkeypatch, tmp_path):
    example = runpy.run_path(str(SCRIPT))
    report, parse = example["Report"], example["parse"]

    def rows(folder):
        with next(folder.glob("*.csv")).open(newline="") as file:
            # Speed and memory are those of the moment.
            return [[row["decisions"], row["encoder"], row["actor"], row["critic"]] for row in csv.DictReader(file)]

    def run(folder):
        example["run"](0.5, parse([*COMMAND, "--folder", str(folder)]))

    run(tmp_path / "one")
    assert len(rows(tmp_path / "one")) == 4

    class Killed(BaseException):
        pass

    on_step = report._on_step

    def interrupted(self):
        if self.num_timesteps == 35:
            raise Killed
        return on_step(self)

    monkeypatch.setattr(report, "_on_step", interrupted)
    with pytest.raises(Killed):
        run(tmp_path / "other")
    assert len(rows(tmp_path / "other")) == 3
    monkeypatch.setattr(report, "_on_step", on_step)
    monkeypatch.setitem(example["run"].__globals__, "make_model", None)
    run(tmp_path / "other")
    assert rows(tmp_path / "other") == rows(tmp_path / "one")
    run(tmp_path / "other")
    assert sorted(file.suffix for file in (tmp_path / "other").iterdir()) == [".csv"]
