"""A run in a process of its own: ``python -m tests.resume.program FOLDER CASE [STEP TO BE KILLED AT, or "resume"]``."""

import os
import signal
import sys
from pathlib import Path

import torch as th
from stable_baselines3.common.logger import configure

from sb3_sparse.resume import ExactCheckpoint, resume_exact
from sb3_sparse.resume.files.folder import checkpoints
from tests.resume.cases import CASES
from tests.resume.comparing import as_bytes


class Killed(ExactCheckpoint):
    """As kill -9 does, at some step after the first checkpoint."""

    def __init__(self, *args, at: int, **kwargs):
        super().__init__(*args, **kwargs)
        self.at = at

    def _on_step(self) -> bool:
        if self.model.num_timesteps >= self.at and checkpoints(self.path):
            os.kill(os.getpid(), signal.SIGKILL)
        return True


def main(folder: Path, name: str, what: str = "") -> None:
    th.set_num_threads(1)
    case = CASES[name]
    if what == "resume":
        model = resume_exact(folder / "run", callback=case.callbacks(folder))
    else:
        model = case.make(folder)
        model.set_logger(configure(str(folder), ["csv"]))
        checkpoint = [Killed(folder / "run", case.every, at=int(what))] if what else []
        model.learn(case.total, callback=[*checkpoint, *case.callbacks(folder)], log_interval=2)
    (folder / "everything").write_bytes(as_bytes(model))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
