"""The run on quadruped-run: one that was killed goes on where its last checkpoint was, and what is finished stays."""

import csv
import runpy
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "drqv2_quadruped.py"
COMMAND = ["--decisions", "40", "--every", "10", "--learning-starts", "30", "--width", "0.25", "--sparsity", "0.5"]


@pytest.mark.full
def test_a_run_that_was_killed_goes_on(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
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
    # Between them the machine did something else for hours, which is not the run's.
    clock = time.perf_counter
    monkeypatch.setattr(time, "perf_counter", lambda: clock() + 1e5)
    run(tmp_path / "other")
    with next((tmp_path / "other").glob("*.csv")).open(newline="") as file:
        assert float(list(csv.DictReader(file))[-1]["frames_per_second"]) > 0.01
    assert rows(tmp_path / "other") == rows(tmp_path / "one")
    run(tmp_path / "other")
    assert sorted(file.suffix for file in (tmp_path / "other").iterdir()) == [".csv"]


def test_the_table_and_the_picture(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    example = runpy.run_path(str(SCRIPT))
    rows = [[10, 9.0, 1024, 0.5, 0.25, 1], [20, 2, 2048, 0.25, 0.25, 0.75], [30, 4, 1024, 0.125, 0.25, 0.5]]
    for name in ("width4-S0-0.csv", "width4-S0.8-0.csv"):
        example["write_csv"](tmp_path / name, example["COLUMNS"], rows)
    # Finished runs are not made again.
    monkeypatch.setitem(example["run"].__globals__, "make_model", None)
    args = example["parse"](["--decisions", "30", "--every", "10", "--folder", str(tmp_path)])
    for sparsity in args.sparsity:
        example["run"](sparsity, args)
    runs = {sparsity: example["read"](example["path_of"](sparsity, args)) for sparsity in args.sparsity}
    capsys.readouterr()
    example["summarise"](runs, learning_starts=10)
    line = "| S = {} | 3.00 | 2.0 GB | 50.0 % → 12.5 % | 25.0 % → 25.0 % | 100.0 % → 50.0 % |"
    printed = capsys.readouterr().out
    assert line.format("0") in printed
    assert line.format("0.8") in printed
    example["draw"](runs, tmp_path / "drawn")
    assert (tmp_path / "drawn" / "drqv2_quadruped.png").read_bytes()[1:4] == b"PNG"
    assert len((tmp_path / "drawn" / "drqv2_quadruped.csv").read_text().splitlines()) == 7
