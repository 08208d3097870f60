"""Checkpoints that are not what was written, or do not fit: one sentence each, and what is older is taken where it can be."""

import json
import os
import shutil

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3 import SAC

from sb3_sparse import ResetCallback
from sb3_sparse.resume import ExactCheckpoint, resume_exact
from sb3_sparse.resume.checkpoint import StoppedOnRequest
from sb3_sparse.resume.files.checksum import DamagedCheckpoint, checksum_of
from sb3_sparse.resume.files.folder import checkpoints, newest_whole
from sb3_sparse.resume.files.lease import Lease
from sb3_sparse.resume.state import machine
from tests.resume.cases import sac


class StopAtSecond(ExactCheckpoint):
    """Ends the run with its second checkpoint."""

    n_saved = 0

    def save(self) -> None:
        super().save()
        self.n_saved += 1
        if self.n_saved == 2:
            raise StoppedOnRequest


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written") / "run"
    with pytest.raises(StoppedOnRequest):
        sac().learn(300, callback=StopAtSecond(folder, every=60))
    return folder


@pytest.fixture
def run(written, tmp_path):
    shutil.copytree(written, tmp_path / "run")
    return tmp_path / "run"


def truncate(path):
    path.write_bytes(path.read_bytes()[:-7])


def empty(path):
    path.write_bytes(b"")


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def remove(path):
    path.unlink()


DAMAGES = {truncate: "has [0-9]+ bytes: expected", empty: "is empty: expected", flip_a_bit: "is damaged", remove: "is missing"}


@pytest.mark.parametrize("part", ["manifest.json", "model.zip", "run.pkl", "recipe.pkl"])
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_part_is_named_and_the_checkpoint_before_is_taken(run, part, damage):
    newest, older = checkpoints(run)
    damage(newest / part)
    message = "(is damaged|is missing)" if part == "manifest.json" else DAMAGES[damage]
    with pytest.raises(DamagedCheckpoint, match=f"{newest / part} {message}"):
        newest_whole(newest).check_parts()
    with pytest.warns(UserWarning, match=f"{newest / part} {message}.* An older checkpoint is taken"):
        assert newest_whole(run).path == older
    with pytest.warns(UserWarning, match="An older checkpoint is taken"):
        assert resume_exact(run).num_timesteps == 300


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damaged_rows_of_the_buffer_are_named(run, damage):
    # Both checkpoints need them.
    rows = min((run / "rows").iterdir())
    damage(rows)
    with pytest.raises(DamagedCheckpoint, match=f"{rows} {DAMAGES[damage]}"):
        resume_exact(checkpoints(run)[0])


def test_where_there_is_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is no folder: expected one that ExactCheckpoint has written"):
        resume_exact(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        resume_exact(tmp_path)


def edit_manifest(run, without=(), **changes):
    path = checkpoints(run)[0] / "manifest.json"
    manifest = {**json.loads(json.loads(path.read_text())["manifest"]), **changes}
    manifest = {name: value for name, value in manifest.items() if name not in without}
    body = json.dumps(manifest)
    path.write_text(json.dumps({"checksum": checksum_of(body.encode()), "manifest": body}))


@pytest.mark.parametrize("number", [1, 3])
def test_another_format_is_refused(number, run):
    edit_manifest(run, format=number)
    with pytest.raises(ValueError, match=rf"manifest\.json has format {number}: expected 2"):
        resume_exact(run)


def test_a_manifest_that_lacks_something_is_damaged(run):
    names = json.loads(json.loads((checkpoints(run)[0] / "manifest.json").read_text())["manifest"]).keys() - {"format"}
    assert len(names) >= 14
    for name in names:
        kept = checkpoints(run)[0] / "manifest.json"
        before = kept.read_bytes()
        for changes in ({}, {name: 1.5}):
            edit_manifest(run, **changes, without=() if changes else (name,))
            with pytest.raises(DamagedCheckpoint, match=rf"manifest\.json is damaged: {name} is "):
                resume_exact(checkpoints(run)[0])
        kept.write_bytes(before)


@pytest.mark.parametrize("part", ["../secret", "/etc/passwd"])
def test_a_manifest_names_no_files_elsewhere(run, part):
    edit_manifest(run, parts={"model.zip": [1, "a"], part: [1, "a"]})
    with pytest.raises(DamagedCheckpoint, match="parts is"):
        resume_exact(checkpoints(run)[0])


def test_what_was_written_while_the_folder_was_waited_for_is_noticed(run, tmp_path, monkeypatch):
    class Late(Lease):
        """Whoever held the folder until now writes a checkpoint just before it lets go."""

        def __init__(self, folder, *args):
            super().__init__(folder, *args)
            shutil.copytree(run, folder, dirs_exist_ok=True)

    monkeypatch.setattr("sb3_sparse.resume.checkpoint.Lease", Late)
    folder = tmp_path / "other"
    with pytest.raises(ValueError, match="other holds checkpoints of another run"):
        sac().learn(100, callback=ExactCheckpoint(folder, every=60))
    monkeypatch.undo()
    # It is free again.
    Lease(folder, 60.0).release()
    assert len(checkpoints(folder)) == 2


def test_an_algorithm_that_is_not_there_is_named(run):
    edit_manifest(run, algorithm="stable_baselines3:SOC")
    with pytest.raises(ValueError, match="is of a SOC of stable_baselines3, which cannot be imported"):
        resume_exact(run)


def test_another_environment_and_other_callbacks_are_refused(run):
    with pytest.raises(ValueError, match=r"the environment has the spaces .* expected Box\(\[-1"):
        resume_exact(run, env=gym.make("MountainCarContinuous-v0"))
    with pytest.raises(ValueError, match=r"callback: \['ResetCallback'\] given, the checkpoint is of a run with none"):
        resume_exact(run, callback=ResetCallback(at=[3]))


def test_another_machine_is_warned_about(run, monkeypatch):
    monkeypatch.setattr(machine, "host_cpu", lambda: "another")
    with pytest.warns(UserWarning, match="The checkpoint was written elsewhere: here is processor 'another' instead of"):
        resume_exact(run)


def test_threads_are_those_of_the_run(run):
    facts = newest_whole(run).manifest["machine"]
    edit_manifest(run, machine={**facts, "threads": 2})
    try:
        resume_exact(run)
        assert th.get_num_threads() == 2
    finally:
        th.set_num_threads(1)


def test_a_folder_with_another_run_is_refused(run):
    with pytest.raises(ValueError, match="holds checkpoints of another run: resume_exact"):
        sac().learn(100, callback=ExactCheckpoint(run))


def test_a_full_disk_is_a_warning_and_the_older_checkpoint_stays(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    real = os.fsync
    calls = [0]

    def full_after_the_first(number):
        calls[0] += 1
        # The first checkpoint needs some of these.
        if 9 <= calls[0] < 14:
            raise OSError(28, "No space left on device")
        real(number)

    monkeypatch.setattr(os, "fsync", full_after_the_first)
    with pytest.warns(UserWarning, match=r"cannot write to .*No space left on device.*training goes on"):
        model = sac().learn(300, callback=ExactCheckpoint(folder, every=60, keep=1))
    assert model.num_timesteps == 300
    checkpoint = newest_whole(folder)
    checkpoint.check_parts()
    assert not [path for path in folder.rglob(".*")]


class Opaque(gym.Wrapper):
    """Its place is where pickle does not get to."""

    def __init__(self, env):
        super().__init__(env)
        place = [0]

        def bonus():
            place[0] += 1
            return float(place[0] % 7)

        self.bonus = bonus

    def step(self, action):
        obs, reward, terminated, truncated, info = self.env.step(action)
        return obs, reward + self.bonus(), terminated, truncated, info


def test_an_environment_that_cannot_be_captured_is_named_and_goes_on_from_a_fresh_episode(tmp_path):
    folder = tmp_path / "run"
    with (
        pytest.warns(UserWarning, match=r"not exact: .* of Opaque of .*; what cannot be pickled: Opaque\.bonus"),
        pytest.raises(StoppedOnRequest),
    ):
        sac(Opaque(gym.make("Pendulum-v1"))).learn(300, callback=StopAtSecond(folder, every=60))
    with pytest.warns(UserWarning, match="Not exact: .* The run goes on with a new episode"):
        model = resume_exact(folder, env=Opaque(gym.make("Pendulum-v1")))
    assert model.num_timesteps == 300
    assert np.isfinite(model.replay_buffer.observations).all()


def test_a_files_algorithm_is_that_of_the_checkpoint(run):
    assert type(resume_exact(run)) is SAC
