"""Disks that are full or read-only: an error that says so, what is older stays whole, and training goes on."""

import errno
import os
import warnings

import pytest
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback

from sb3_sparse import cli
from sb3_sparse.resume import ExactCheckpoint, load_safe, resume_exact, save_safe
from sb3_sparse.resume.checkpoint import StoppedOnRequest
from sb3_sparse.resume.files.folder import checkpoints, newest_whole
from sb3_sparse.resume.files.whole_files import goes_on_without_saving, saves_whole_files
from tests.resume.cases import sac
from tests.resume.comparing import differences, everything
from tests.resume.faults import at_disk_calls, fill, in_child, remount, small_disk, status_of

TOTAL = 200


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path / "disk", "1m") as folder:
        yield folder


class At(BaseCallback):
    """Something happens at a step, which a checkpoint knows nothing of."""

    def __init__(self, **what):
        super().__init__()
        self.what = {int(step.strip("_")): call for step, call in what.items()}

    def _on_step(self):
        self.what.get(self.num_timesteps, lambda: None)()
        return True

    def get_state(self):
        return None

    def set_state(self, state):
        pass


def whole(folder):
    checkpoint = newest_whole(folder)
    for name in (*checkpoint.manifest["parts"], *checkpoint.manifest["rows"]):
        checkpoint.read(name)
    return checkpoint.manifest["timesteps"]


def hidden(folder):
    return [path for path in folder.rglob("*") if path.name.startswith(".")]


@pytest.fixture(scope="module")
def undisturbed():
    model = sac()
    model.learn(TOTAL)
    return everything(model)


@pytest.mark.parametrize("but", [0, 20_000, 60_000])
def test_a_checkpoint_that_does_not_fit_is_a_warning_and_the_next_one_is_written(but, disk, undisturbed):
    run, seen = disk / "run", []

    def look():
        seen.append((whole(run), hidden(run), len(checkpoints(run))))

    at = At(_110=lambda: fill(disk, but), _160=look, _170=(disk / "full").unlink)
    model, says = (
        sac(),
        r"cannot write to .*/disk/run \(No space left on device\) after (120|150) steps: free some space there",
    )
    with pytest.warns(UserWarning, match=says) as warned:
        model.learn(TOTAL, callback=[ExactCheckpoint(run, every=30), at])
    assert len([each for each in warned if "No space left" in str(each.message)]) == 2
    # While it was full: the last one before, nothing half-written, and none of the older ones was given up.
    assert seen == [(90, [], 2)]
    assert whole(run) == 180
    assert not hidden(run)
    assert not differences(everything(model), undisturbed)
    assert not differences(everything(resume_exact(run, callback=At())), undisturbed)


def test_who_is_asked_to_stop_does_not_say_that_there_is_a_checkpoint(disk):
    run = disk / "run"
    checkpoint = ExactCheckpoint(run, every=60)
    at = At(_110=lambda: fill(disk), _150=lambda: setattr(checkpoint, "stop_requested", True))
    with (
        pytest.warns(UserWarning, match="No space left on device"),
        pytest.raises(StoppedOnRequest, match=r"no checkpoint after 150 steps could be written; the newest in .*run is an ea"),
    ):
        sac().learn(TOTAL, callback=[checkpoint, at])
    assert whole(run) == 60


def test_a_run_that_cannot_begin_to_write_says_so(disk):
    fill(disk)
    with pytest.raises(OSError, match=r"cannot write to .*disk/run \(No space left on device\): expected a folder"):
        sac().learn(TOTAL, callback=ExactCheckpoint(disk / "run"))
    remount(disk, "ro")
    with pytest.raises(OSError, match=r"cannot write to .*disk/run \(Read-only file system\): expected a folder"):
        sac().learn(TOTAL, callback=ExactCheckpoint(disk / "run"))
    remount(disk, "rw")
    assert not hidden(disk)
    (disk / "full").unlink()
    sac().learn(100, callback=ExactCheckpoint(disk / "run", every=40))
    assert whole(disk / "run") == 80


def test_a_disk_that_becomes_read_only_meanwhile(disk):
    at = At(_70=lambda: remount(disk, "ro"), _110=lambda: remount(disk, "rw"))
    with pytest.warns(UserWarning, match=r"cannot write to .*disk/run \(Read-only file system\) after 90 steps"):
        sac().learn(TOTAL, callback=[ExactCheckpoint(disk / "run", every=45), at])
    assert whole(disk / "run") == 180


@pytest.mark.parametrize("but", [0, 8_000, 30_000])
def test_save_safe(but, disk):
    path = disk / "agent.safetensors"
    model = PPO("MlpPolicy", "Pendulum-v1", n_steps=16, batch_size=8, device="cpu")
    save_safe(model, path)
    fill(disk, but)
    before, model.num_timesteps = path.read_bytes(), 1
    says = (
        r"cannot write '.*agent\.safetensors' \(No space left on device\): free some space in '.*disk', or name another file"
    )
    with pytest.raises(OSError, match=says):
        save_safe(model, path)
    assert path.read_bytes() == before
    assert load_safe(path, device="cpu").num_timesteps == 0
    remount(disk, "ro")
    with pytest.raises(OSError, match=r"cannot write '.*agent\.safetensors' \(Read-only file system\): name another file"):
        save_safe(model, path)
    remount(disk, "rw")
    (disk / "full").unlink()
    save_safe(model, path)
    assert load_safe(path, device="cpu").num_timesteps == 1
    assert os.listdir(disk) == [path.name]


@pytest.mark.parametrize("but", [0, 10_000])
def test_what_callbacks_save_as_train_does(but, disk):
    says = r"cannot write '.*/rl_model_80_steps\.zip' \(No space left on device\): free some space in .* training goes on"
    saving, at = CheckpointCallback(40, str(disk)), At(_70=lambda: fill(disk, but), _110=(disk / "full").unlink)
    with saves_whole_files():
        with pytest.warns(UserWarning, match=says), goes_on_without_saving():
            model = sac().learn(130, callback=[saving, at])
        fill(disk, but)
        # What is saved at the end is no less than an error.
        with pytest.raises(OSError, match=r"cannot write '.*last\.zip' \(No space left on device\)"):
            model.save(disk / "last")
    assert sorted(os.listdir(disk)) == ["full", "rl_model_120_steps.zip", "rl_model_40_steps.zip"]
    for steps in (40, 120):
        assert SAC.load(disk / f"rl_model_{steps}_steps", device="cpu").num_timesteps == steps


def test_the_command_says_it_in_a_sentence(disk, monkeypatch):
    pytest.importorskip("rl_zoo3")
    monkeypatch.chdir(disk)
    args = ["train", "--algo", "sac", "--env", "Pendulum-v1", "-n", "60", "--eval-freq", "-1", "-f", "logs"]
    small = ["-params", "policy:'MlpPolicy'", "policy_kwargs:dict(net_arch=[8])", "learning_starts:30", "buffer_size:100"]
    fill(disk)
    with pytest.raises(SystemExit, match=r"sb3-sparse train: .*No space left on device"):
        cli.main([*args, "--exact-checkpoint-freq", "30", *small])
    remount(disk, "ro")
    with pytest.raises(SystemExit, match=r"sb3-sparse train: .*Read-only file system"):
        cli.main([*args, *small])
    remount(disk, "rw")


# Where a disk is full, besides in the middle of a file: at any other call.


def full_between(first, last, folder):
    def act(n):
        if first <= n < last:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    at_disk_calls(lambda name: name.startswith(str(folder)), act)


def test_full_at_any_call(undisturbed, tmp_path, request):
    """Of each call for a checkpoint the run goes on, and the next checkpoint is whole."""
    step = 1 if request.config.getoption("--full") else 16
    # The lock and the first checkpoint are there.
    for call in range(0, 45, step):
        folder = tmp_path / str(call) / "run"

        def run(folder=folder, call=call):
            class Later(ExactCheckpoint):
                def save(self):
                    if self.model.num_timesteps == 100:
                        full_between(call + 1, call + 4, folder)
                    return super().save()

            warnings.simplefilter("always")
            with warnings.catch_warnings(record=True) as found:
                model = sac().learn(TOTAL, callback=Later(folder, every=50, keep=1))
            # Files that other tests left open are closed at any time.
            says = [str(each.message) for each in found if not issubclass(each.category, ResourceWarning)]
            assert all(f"cannot write to {folder} (No space left on device)" in each for each in says), says
            # Beyond the calls of the two checkpoints nothing fails.
            assert says or call > 15, call
            assert not differences(everything(model), undisturbed)

        assert status_of(in_child(run)) == 0
        # The last at 150 may be one of those that failed.
        assert whole(folder) >= 50
        assert not differences(everything(resume_exact(folder)), undisturbed)
        assert not hidden(folder)
