"""Where a run that goes on logs to."""

from pathlib import Path

import pytest
from stable_baselines3.common.logger import KVWriter, Logger

from sb3_sparse.resume import resume_exact
from sb3_sparse.resume.checkpoint import StoppedOnRequest
from tests.resume.cases import sac
from tests.resume.test_exact import Interrupted


def events(folder):
    return {path.name: len(list(path.glob("events*"))) for path in folder.iterdir()}


def test_a_run_goes_on_in_its_own_folder_of_tensorboard(tmp_path):
    """And not in that of the newest run of the same name, which SB3 would take."""
    logs = tmp_path / "logs"
    with pytest.raises(StoppedOnRequest):
        sac(tensorboard_log=str(logs)).learn(400, callback=Interrupted(tmp_path / "run", 120))
    sac(tensorboard_log=str(logs)).learn(10)
    assert events(logs) == {"SAC_1": 1, "SAC_2": 1}
    model = resume_exact(tmp_path / "run")
    assert model.logger.dir == str(logs / "SAC_1")
    assert events(logs) == {"SAC_1": 2, "SAC_2": 1}


@pytest.mark.parametrize("is_inside", [True, False])
def test_logs_in_the_folder_of_a_run_move_with_it(tmp_path, is_inside):
    """Mistake of ours: they were written where the run had been, also on another machine."""
    run, moved = tmp_path / "run", tmp_path / "elsewhere" / "moved"
    logs = run / "logs" if is_inside else tmp_path / "logs"
    model = sac(tensorboard_log=str(logs))
    with pytest.raises(StoppedOnRequest):
        model.learn(400, callback=Interrupted(run / "exact", 120))
    moved.parent.mkdir()
    run.rename(moved)
    model = resume_exact(moved / "exact")
    assert model.logger.dir == str((moved / "logs" if is_inside else logs) / "SAC_1")
    assert events(Path(model.logger.dir).parent) == {"SAC_1": 2}
    assert not run.exists()


class Somewhere(KVWriter):
    """An output of a user, such as a service on the network."""

    def write(self, key_values, key_excluded, step=0):
        """Nothing."""


def test_an_output_of_a_user_is_named(tmp_path):
    model = sac()
    model.set_logger(Logger(None, [Somewhere()]))
    with pytest.warns(UserWarning, match="the output Somewhere of the logger"):
        model.learn(50, callback=Interrupted(tmp_path / "run", 120))
