"""What SB3's own callbacks save is whole or not there."""

import os
import signal
import zipfile

import pytest
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import CheckpointCallback

from sb3_sparse.resume.files.whole_files import saves_whole_files, sweep_beside
from tests.resume.cases import sac


def killed_in_the_second_save(nth_write, folder):
    child = os.fork()
    if child == 0:
        try:
            written, real = [0], zipfile.ZipFile.writestr

            def counted(self, *args, **kwargs):
                written[0] += 1
                real(self, *args, **kwargs)
                if written[0] == nth_write:
                    self.fp.flush()
                    os.kill(os.getpid(), signal.SIGKILL)

            zipfile.ZipFile.writestr = counted
            with saves_whole_files():
                sac().learn(100, callback=CheckpointCallback(30, str(folder), save_replay_buffer=True))
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("nth_write", [1, 2, 3, 5, 7, 8, 9])
def test_killed_while_saving_every_file_there_is_loads(nth_write, tmp_path):
    assert killed_in_the_second_save(nth_write, tmp_path)
    for path in tmp_path.glob("rl_model_*.zip"):
        SAC.load(path)
    assert list(tmp_path.glob(".*"))
    sweep_beside(tmp_path)
    assert not list(tmp_path.glob(".*"))


def test_names_are_those_of_sb3(tmp_path):
    model = sac()
    with saves_whole_files():
        model.save(tmp_path / "agent")
        model.save(str(tmp_path / "v1.5"))
        model.save_replay_buffer(tmp_path / "buffer")
        with (tmp_path / "open.zip").open("wb") as file:
            model.save(file)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["agent.zip", "buffer.pkl", "open.zip", "v1.5"]
    for name in ("agent", "open.zip", "v1.5"):
        SAC.load(tmp_path / name)
    assert model.save.__func__ is SAC.save
