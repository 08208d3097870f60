"""Runs that go on have the hyperparameters that they began with, wherever these are read from."""

import json
from pathlib import Path

import pytest
import yaml

from sb3_sparse import zoo
from sb3_sparse.resume.checkpoint import StoppedOnRequest
from sb3_sparse.resume.files.folder import checkpoints
from sb3_sparse.zoo.commands import prepare_command
from sb3_sparse.zoo.exact_runs import _CheckpointOfRun

pytest.importorskip("rl_zoo3")

FOLDER = Path("logs/sac/Pendulum-v1_1")
ENTRY = dict(
    n_timesteps=200,
    policy="MlpPolicy",
    policy_kwargs="dict(net_arch=[8])",
    learning_starts=50,
    buffer_size=500,
    gamma=0.99,
    train_freq=[2, "step"],
)
PYTHON = "from torch import nn\nhyperparams = {'default': dict(%r, policy_kwargs=dict(net_arch=[8], activation_fn=nn.%s))}"


@pytest.fixture(autouse=True)
def _stops(monkeypatch, tmp_path):
    """Each run ends with its next checkpoint, and closes its files, which rl-zoo3 leaves to the end of the process."""

    def save(self):
        super(_CheckpointOfRun, self).save()
        self.training_env.close()
        raise StoppedOnRequest

    monkeypatch.setattr(_CheckpointOfRun, "save", save, raising=False)
    monkeypatch.chdir(tmp_path)


def train(exact):
    prepare_command("train", exact.args, "Pendulum-v1", exact)()


def begin(config):
    args = ["--algo", "sac", "--env", "Pendulum-v1", "-conf", config, "-f", "logs", "--eval-freq", "-1", "--seed", "1"]
    with pytest.raises(StoppedOnRequest):
        train(zoo.ExactRun(args, every=60))


def files():
    return {path: path.read_bytes() for path in Path("logs").rglob("*") if path.is_file()}


def as_yaml(**changes):
    entry = {name: value for name, value in {**ENTRY, **changes}.items() if value is not None}
    # Entries of others are nobody's business.
    return yaml.safe_dump({"default": entry, "Other-v0": {"gamma": len(changes)}})


CHANGES = {
    "a number": ("c.yml", as_yaml(), as_yaml(gamma=0.9), r"gamma=0\.9 instead of 0\.99\. Put back"),
    "inside": (
        "c.yml",
        as_yaml(),
        as_yaml(policy_kwargs="dict(net_arch=[16])", train_freq=[4, "step"]),
        r"policy_kwargs='dict\(net_arch=\[16\]\)' instead of .*, train_freq=\[4, step\] instead of \[2, step\]",
    ),
    "new and missing": (
        *("c.yml", as_yaml(), as_yaml(gamma=None, tau=0.1)),
        r"gamma=\(missing\) instead of 0\.99, tau=0\.1 instead of \(missing\)",
    ),
    "a file of Python": (
        "c.py",
        PYTHON % (ENTRY, "ReLU"),
        PYTHON % (ENTRY, "Tanh"),
        r"policy_kwargs=.*Tanh.* instead of .*ReLU",
    ),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_file_that_was_edited_is_refused_before_anything_is_written(kind):
    name, before, after, says = CHANGES[kind]
    Path(name).write_text(before)
    begin(name)
    written = files()
    Path(name).write_text(after)
    with pytest.raises(zoo.WrongSettingError, match=rf"Pendulum-v1_1 was begun with other .* in {name} now: {says}") as caught:
        train(zoo.recorded_run(FOLDER))
    assert "\n" not in str(caught.value)
    assert files() == written
    Path(name).write_text(before)
    with pytest.raises(StoppedOnRequest):
        train(zoo.recorded_run(FOLDER))
    assert len(checkpoints(FOLDER / "exact")) == 2
    assert (FOLDER / "Pendulum-v1/config.yml").read_bytes() == written[FOLDER / "Pendulum-v1/config.yml"]


def test_other_entries_may_change_and_runs_that_did_not_write_them_down_go_on():
    Path("c.yml").write_text(as_yaml())
    begin("c.yml")
    command = FOLDER / "exact/command.json"
    recorded = json.loads(command.read_text())
    del recorded["hyperparameters"]
    Path("c.yml").write_text(yaml.safe_dump({"default": ENTRY, "Other-v0": {"gamma": 3}}))
    with pytest.raises(StoppedOnRequest):
        train(zoo.recorded_run(FOLDER))
    command.write_text(json.dumps(recorded))
    with pytest.raises(StoppedOnRequest):
        train(zoo.recorded_run(FOLDER))
    assert checkpoints(FOLDER / "exact")[0].name.endswith("-at-180")
