"""What is called like an argument of a callback's constructor: a setting, or state if the run has changed it."""

import warnings

import numpy as np
import pytest
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback

from sb3_sparse.resume import resume_exact
from sb3_sparse.resume.checkpoint import StoppedOnRequest
from tests.resume.cases import sac
from tests.resume.test_exact import Interrupted


class Phase(BaseCallback):
    """Keeps text, a list, a number and nothing at all in attributes that are called like its arguments."""

    def __init__(self, phase="warmup", levels=None, rate=1.0, best=None, every=100, log_path="logs"):
        super().__init__()
        self.phase, self.levels, self.rate, self.best, self.every = phase, levels or [0], rate, best, every
        self.log_path = log_path

    def _on_training_start(self):
        self.every //= 2
        self.log_path += "/of this run"

    def _on_step(self):
        if self.num_timesteps == self.every:
            self.phase, self.best = "main", np.arange(3)
        self.levels[0] += 1
        self.rate *= 0.5
        return True


def resumed(folder, before, after):
    """What a callback has after a run that was interrupted, and what it was warned of."""
    with pytest.raises(StoppedOnRequest):
        sac().learn(150, callback=[Interrupted(folder / "run", 120), before])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        resume_exact(folder / "run", callback=after)
    return [str(each.message) for each in caught if "goes on with" in str(each.message)]


def test_what_the_run_has_changed_goes_on(tmp_path):
    expected, found = Phase(), Phase()
    sac().learn(150, callback=expected)
    assert not resumed(tmp_path, Phase(), found)
    assert (found.phase, found.levels, found.rate, found.every) == (expected.phase, [150], expected.rate, 50)
    assert found.phase == "main"
    assert found.best.tolist() == [0, 1, 2]


def test_it_goes_on_again_and_again(tmp_path):
    with pytest.raises(StoppedOnRequest):
        sac().learn(150, callback=[Interrupted(tmp_path / "run", 60), Phase()])
    with pytest.raises(StoppedOnRequest):
        resume_exact(tmp_path / "run", callback=[Interrupted(tmp_path / "run", 60), Phase()])
    resume_exact(tmp_path / "run", callback=(found := Phase()))
    assert (found.phase, found.levels) == ("main", [150])


def test_in_a_second_call_of_learn_it_is_what_it_was_made_with_that_counts(tmp_path):
    checkpoint, phase = Interrupted(tmp_path / "run", 120), Phase()
    model = sac()
    model.learn(110, callback=[checkpoint, phase])
    with pytest.raises(StoppedOnRequest):
        model.learn(60, callback=[checkpoint, phase], reset_num_timesteps=False)
    resume_exact(tmp_path / "run", callback=(found := Phase()))
    assert found.phase == "main"


def test_another_text_is_warned_about(tmp_path):
    def never(phase):
        return Phase(phase, every=1000)

    # Other lists and numbers that the run has changed are named, too.
    (first,) = resumed(tmp_path / "1", never("a"), never("b"))
    assert first.startswith("Phase goes on with phase='b' instead of 'a': not exact")
    (second,) = resumed(tmp_path / "2", Phase(every=100), Phase(every=140))
    assert second.startswith("Phase goes on with every=50, not 140: the run has changed it")


def test_other_folders_are_fine(tmp_path):
    found = Phase(log_path="elsewhere")
    assert not resumed(tmp_path, Phase(log_path="here"), found)
    assert found.log_path == "elsewhere/of this run"
    checkpoints = [CheckpointCallback(500, str(tmp_path / name), name_prefix=name) for name in ("a", "b")]
    assert not resumed(tmp_path / "2", *checkpoints)


def test_text_with_a_slash_is_no_folder(tmp_path):
    """Mistake of ours: the name of a series counted as a place, and another one was taken without a word."""
    (warned,) = resumed(tmp_path / "1", Phase("train/loss", every=1000), Phase("rollout/reward", every=1000))
    assert warned.startswith("Phase goes on with phase='rollout/reward' instead of 'train/loss'")
    for i, (here, there) in enumerate((("/data/a", "/data/b"), ("./a", "../b"), ("s3://a/b", "~/b"), ("C:\\a", "D:\\b"))):
        assert not resumed(tmp_path / f"place{i}", Phase(here, every=1000), Phase(there, every=1000))


class Shared(BaseCallback):
    """With a list that somebody else has, too."""

    def __init__(self, levels):
        super().__init__()
        self.levels = levels

    def _on_step(self):
        return True


def test_what_is_the_same_stays_the_same_object(tmp_path):
    levels = [1, 2]
    found = Shared(levels)
    assert not resumed(tmp_path, Shared([1, 2]), found)
    assert found.levels is levels


def test_two_that_had_one_list_go_on_with_their_own(tmp_path):
    """Mistake of ours: the second was said to go on with its own list, and got that of the first."""
    with pytest.raises(StoppedOnRequest):
        sac().learn(150, callback=[Interrupted(tmp_path / "run", 60), *map(Shared, [[1]] * 2)])
    ours = [Shared([1]), Shared([2])]
    with pytest.warns(UserWarning, match=r"^Shared goes on with levels=\[2\] instead of \[1\]"):
        resume_exact(tmp_path / "run", callback=ours)
    assert [each.levels for each in ours] == [[1], [2]]


def test_sets_have_another_order_in_another_process(tmp_path):
    first, second = {0, 8}, {8, 0}
    assert list(first) != list(second)
    assert not resumed(tmp_path / "1", Phase(levels=[0, first]), Phase(levels=[0, second]))
    (warned,) = resumed(tmp_path / "2", Phase(levels=[0, first]), Phase(levels=[0, {0, 9}]))
    assert warned.startswith("Phase goes on with levels=")
