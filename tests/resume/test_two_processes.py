"""Two runs that start in one folder at the same moment: one of them wins, and what it writes is its own."""

import os
import random
import shutil
import time
import warnings

import pytest

from sb3_sparse.resume import ExactCheckpoint, resume_exact
from sb3_sparse.resume.files.folder import checkpoints, newest_whole
from sb3_sparse.resume.files.lease import FolderInUse
from tests.resume.cases import sac
from tests.resume.comparing import differences, everything
from tests.resume.faults import in_child, status_of

# Exit statuses.
REFUSED, TOTAL, EVERY = 7, 160, 50


def model(seed):
    return sac(buffer_size=70, learning_starts=30, learning_rate=1e-3 * (1 + seed))


def both(work, delays):
    """Run something in two children that begin at the same moment, each with a delay of its own."""
    read, write = os.pipe()

    def child(which):
        os.close(write)
        # Until the other end is closed, by whoever has started both.
        os.read(read, 1)
        time.sleep(delays[which])
        work(which)

    children = [in_child(lambda which=which: child(which)) for which in range(2)]
    os.close(read)
    os.close(write)
    return [status_of(child) for child in children]


def refused(error, *messages):
    assert any(message in str(error) for message in messages), error
    raise SystemExit(REFUSED) from error


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What each of the runs is where it is alone."""
    found = []
    for which in range(2):
        agent = model(which)
        agent.learn(TOTAL, callback=ExactCheckpoint(tmp_path_factory.mktemp("alone") / "run", every=EVERY))
        found.append(everything(agent))
    return found


def whole_run(folder, which):
    """Of a folder with the checkpoints of one run: all of them are whole, and this run's."""
    for path in checkpoints(folder):
        checkpoint = newest_whole(path)
        for name in (*checkpoint.manifest["parts"], *checkpoint.manifest["rows"]):
            checkpoint.read(name)
    assert not [path for path in folder.rglob("*") if path.name.startswith(".") or path.name == "lock.json"]
    needed = {name for path in checkpoints(folder) for name in newest_whole(path).manifest["rows"]}
    assert {f"rows/{path.name}" for path in (folder / "rows").iterdir()} == needed


def test_two_new_runs_in_one_folder(alone, tmp_path, request):
    draw, winners = random.Random(0), set()
    for trial in range(50 if request.config.getoption("--full") else 4):
        folder = tmp_path / str(trial) / "run"

        def start(which, folder=folder):
            try:
                model(which).learn(TOTAL, callback=ExactCheckpoint(folder, every=EVERY, lease=0.4))
            except (FolderInUse, ValueError) as error:
                # In use, or already over.
                refused(error, f"{folder} is in use by", f"{folder} holds checkpoints of another run")

        # Of these the last is about as long as a run takes: then the first has just ended, or is about to.
        longest = (0, 0.002, 0.05, 0.6)[trial % 4]
        statuses = both(start, [draw.uniform(0, longest), draw.uniform(0, longest)])
        assert sorted(statuses) == [0, REFUSED]
        winner = statuses.index(0)
        winners.add(winner)
        whole_run(folder, winner)
        assert [path.name.partition("-at-")[2] for path in checkpoints(folder)] == ["150", "100"]
        again = resume_exact(folder)
        assert not differences(everything(again), alone[winner])
    if trial > 20:
        assert winners == {0, 1}


def test_two_that_go_on_with_one_run(alone, tmp_path, request):
    """Also where the second has read its checkpoint, and waits for the first, which ends meanwhile."""

    class Stopped(ExactCheckpoint):
        def save(self):
            super().save()
            raise KeyboardInterrupt

    begun = tmp_path / "begun"
    with pytest.raises(KeyboardInterrupt):
        model(0).learn(TOTAL, callback=Stopped(begun, every=EVERY, keep=1, lease=0.5))
    draw = random.Random(1)
    for trial in range(50 if request.config.getoption("--full") else 3):
        folder = tmp_path / f"run {trial}"
        shutil.copytree(begun, folder)

        def go_on(which, folder=folder):
            warnings.simplefilter("ignore")
            try:
                agent = resume_exact(folder)
            except (FolderInUse, ValueError) as error:
                refused(error, str(folder))
            # The second may begin where the first has ended, which is the same run.
            assert not differences(everything(agent), alone[0])

        longest = (0, 0.01, 0.3)[trial % 3]
        statuses = both(go_on, [draw.uniform(0, longest), draw.uniform(0, longest)])
        assert 0 in statuses
        assert set(statuses) <= {0, REFUSED}
        whole_run(folder, 0)
        assert not differences(everything(resume_exact(folder)), alone[0])
