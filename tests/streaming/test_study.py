"""The studies of the examples folder: files that are whole or absent, and curves of equal windows."""

from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def study_runs(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples"))
    import study_runs

    return study_runs


def test_windows(study_runs):
    episodes = [(10, 1.0), (20, 3.0), (75, 8.0)]
    # Episodes end in windows 1, 1 and 4 of 5; the third and second take the one under way; nothing ends in the last.
    np.testing.assert_array_equal(study_runs.window_means(episodes, 100, 5), [2, 8, 8, 8, np.nan])
    assert np.isnan(study_runs.window_means([], 100, 2)).all()
    assert study_runs.last_mean([(i, float(i)) for i in range(20)]) == 14.5


def test_a_run_is_written_whole_and_not_again(study_runs, tmp_path):
    path = tmp_path / "new" / "run.csv"
    study_runs._run_one((path, lambda: [(7, 1.25), (9, -2.0)], ["stream_ac", "Hopper-v5", "ours", 3], study_runs.HEADER))
    assert study_runs.read_episodes(path) == [(7, 1.25), (9, -2.0)]
    assert [file.name for file in path.parent.iterdir()] == ["run.csv"]

    def explode():
        raise AssertionError("a finished run was started again")

    study_runs.run_all({path: explode}, {path: []}, jobs=1)


def test_a_broken_run_leaves_no_file(study_runs, tmp_path):
    def explode():
        raise RuntimeError("no episodes")

    with pytest.raises(RuntimeError, match="no episodes"):
        study_runs._run_one((tmp_path / "run.csv", explode, [], study_runs.HEADER))
    assert not list(tmp_path.iterdir())
