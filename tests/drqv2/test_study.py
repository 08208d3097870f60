"""The learning study of DrQ-v2: a run that was killed goes on as if it had not been, and what is finished is drawn."""

import csv
from pathlib import Path

import pytest

STEPS = 260


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples"))
    import drqv2_study

    return drqv2_study


def short(study, monkeypatch):
    """Runs of one episode and a little more, whose second checkpoint, after 172 steps, is in the middle of training."""
    monkeypatch.setattr(study, "N_CHECKPOINTS", 3)
    monkeypatch.setattr(study, "EVALUATION_EPISODES", 1)
    monkeypatch.setattr(study, "RENDERING", "no_shadows_no_reflections_no_antialiasing")
    make_model = study.make_model

    def cheap(*arguments):
        model = make_model(*arguments)
        model.learning_starts, model.batch_size = 165, 8
        return model

    monkeypatch.setattr(study, "make_model", cheap)


def test_the_arms_are_what_they_say(study):
    critics = {}
    for arm in study.PIXEL_ARMS:
        model = study.make_model("cartpole-balance", arm, 0, 100)
        assert model.observation_space.shape == (9, 48, 48)
        critics[arm] = sum(parameter.numel() for parameter in model.critic.q_networks.parameters())
        model.get_env().close()
    dense, wide, sparse = critics.values()
    assert wide > 10 * dense
    assert sparse == pytest.approx(0.2 * wide, rel=0.02)


@pytest.mark.full
def test_a_run_that_was_interrupted_is_the_undisturbed_one(study, monkeypatch, tmp_path):
    short(study, monkeypatch)
    arguments = "cartpole-balance", "dense", 0, STEPS
    undisturbed = study.train(*arguments, tmp_path / "one")

    class Killed(BaseException):
        pass

    on_step = study.EpisodeRecorder._on_step

    def interrupted(self):
        if self.num_timesteps == 245:
            raise Killed
        return on_step(self)

    monkeypatch.setattr(study.EpisodeRecorder, "_on_step", interrupted)
    with pytest.raises(Killed):
        study.train(*arguments, tmp_path / "other")
    assert study.checkpoints(tmp_path / "other")
    monkeypatch.setattr(study.EpisodeRecorder, "_on_step", on_step)
    monkeypatch.setattr(study, "make_model", None)
    assert study.train(*arguments, tmp_path / "other") == undisturbed
    assert [(step, phase) for step, _, phase in undisturbed] == [(250, "train"), (STEPS, "evaluate")]


def test_finished_runs_lose_their_checkpoints(study, monkeypatch, tmp_path):
    path = study.run_path(tmp_path, "cartpole-balance", "sac", 0, 10)
    study.write_csv(path, [*study.HEADER, "phase"], [["sac", "cartpole-balance", "sac", 0, 10, 5.0, "train"]])
    other = study.checkpoint_of(study.run_path(tmp_path, "cartpole-balance", "dense", 0, 10))
    for folder in (study.checkpoint_of(path), other):
        folder.mkdir()
        (folder / "file").touch()
    study.run(tmp_path, ["cartpole-balance"], ["sac"], [0], 10, 1)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([path.name, other.name])


def test_plot(study, tmp_path, capsys):
    finals = {"dense": (900, 300), "critic 4x dense": (10, 20), "critic 4x S=0.8": (850, 799), "sac": (1000, 1000)}
    for arm, values in finals.items():
        for seed, value in enumerate(values):
            rows = [["", "cartpole-balance", arm, seed, 50 * i, 2 * i, "train"] for i in range(1, 21)]
            rows += [["", "cartpole-balance", arm, seed, 1000, value + change, "evaluate"] for change in (-5, 5)]
            study.write_csv(study.run_path(tmp_path, "cartpole-balance", arm, seed, 1000), [*study.HEADER, "phase"], rows)
    study.plot(tmp_path, ["cartpole-balance"], [0, 1, 2], 1000, tmp_path / "images")
    printed = capsys.readouterr().out
    assert "| cartpole-balance, dense | 900, 300 | 600 | 1 of 2 |" in printed
    assert "| cartpole-balance, critic 4x dense | 10, 20 | 15 | 0 of 2 |" in printed
    assert "| cartpole-balance, critic 4x S=0.8 | 850, 799 | 824 | 1 of 2 |" in printed
    with (tmp_path / "images/drqv2_learning.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == 8
    assert float(table[0]["return_window_25"]) == 40
    assert (tmp_path / "images/drqv2_learning.png").stat().st_size > 1000


def test_frames_are_those_of_the_finished_agent(study, monkeypatch, tmp_path):
    from PIL import Image

    monkeypatch.setattr(study, "N_FRAMES", 3)
    monkeypatch.setattr(study, "FRAME_EVERY", 1)
    model = study.make_model("cartpole-balance", study.PIXEL_ARMS[-1], 0, 100)
    path = study.run_path(tmp_path, "cartpole-balance", study.PIXEL_ARMS[-1], 0, 100)
    model.save(study.agent_of(path))
    model.get_env().close()
    study.frames(tmp_path, ["cartpole-balance"], 0, 100, tmp_path / "images")
    with Image.open(tmp_path / "images/drqv2_frames.png") as picture:
        assert picture.size == (3 * 96, 96)
