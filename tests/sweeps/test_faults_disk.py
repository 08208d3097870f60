"""Disks that are full or read-only, and kills at any call by which a run gets to the disk."""

import errno
import os
import shutil
import warnings

import pytest

from sb3_sparse.sweeps.backends.processes import worker_environment
from sb3_sparse.sweeps.planning.plan import make_plan
from sb3_sparse.sweeps.runs.execute import DONE, FAILED, execute
from sb3_sparse.sweeps.study import Study
from tests.resume.comparing import differences
from tests.resume.faults import at_disk_calls, fill, in_child, remount, small_disk, status_of
from tests.sweeps import small

OPTIONS = ("plan.yml", "--no-estimate", "--jobs", 2)


@pytest.fixture
def here(tmp_path):
    """A folder with a plan, in which a small disk can be mounted."""
    small.write_plan(tmp_path)
    return tmp_path


@pytest.fixture
def disk(here):
    with small_disk(here / "disk", "4m") as folder:
        yield folder


def assert_said(text, *parts):
    for part in parts:
        assert part in text, text
    assert "Traceback" not in text


@pytest.mark.full
@pytest.mark.parametrize("backend", ["processes", "ray"])
def test_a_disk_that_becomes_full(backend, four_runs, here, disk):
    if backend == "ray":
        pytest.importorskip("ray")
    args = (*OPTIONS, "--backend", backend, "--folder", "disk/studies")
    study = disk / "studies" / small.STUDY
    with small.started(*args, cwd=here) as driver:
        small.wait_for(lambda: small.done(study))
        fill(disk)
        assert driver.wait(timeout=100) == 1
    assert_said(small.said(here), "stopped by the disk: ", "No space left on device", "the same command goes on with them")
    finished = small.done(study)
    assert 1 <= len(finished) < 4
    for run in finished:
        assert not differences(small.made(run), small.made(four_runs / "runs" / run.name))
    # Still: it is no failure of runs.
    text = small.sweep(*args, cwd=here, status=1)
    assert_said(text, "No space left on device", "ree some space in ", "disk/studies/small")
    assert "0 failed" in text
    assert small.done(study) == finished
    (disk / "full").unlink()
    small.sweep(*args, cwd=here)
    small.assert_same(study, four_runs, 4)


@pytest.mark.full
def test_a_disk_that_is_read_only(four_runs, here, disk):
    args = (*OPTIONS, "--backend", "processes", "--folder", "disk/studies")
    remount(disk, "ro")
    assert_said(small.sweep(*args, cwd=here, status=1), "disk/studies/small/plan.yml' (Read-only file system)", "name another")
    remount(disk, "rw")
    small.sweep(*args, "--only", "seed=0", cwd=here)
    study = disk / "studies" / small.STUDY
    finished = small.done(study)
    assert len(finished) == 2
    remount(disk, "ro")
    assert_said(small.sweep(*args, cwd=here, status=1), "disk/studies/small/plan.yml' (Read-only file system)", "name another")
    job = ("plan.yml", "--folder", "disk/studies", "--run-index", 3)
    assert_said(small.sweep(*job, cwd=here, status=1), "disk/studies/small/plan.yml' (Read-only file system)", "name another")
    # What is there can be looked at, and is not made again.
    small.sweep(*args, "--only", "seed=0", cwd=here)
    remount(disk, "rw")
    assert small.done(study) == finished
    small.sweep(*args, cwd=here)
    small.assert_same(study, four_runs, 4)


# Not in the middle of a file, but at any other call: in children of this process, one run each.


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Makes the folder of one short run, and how it is made."""
    for name, value in worker_environment(1).items():
        monkeypatch.setenv(name, value)
    short = {"n_timesteps": 220, "evaluation": {"every": 100, "episodes": 1, "final_episodes": 1}}
    plan = make_plan({**small.PLAN, **short, "axes": {"learning_rate": [1e-2]}})

    def make(name):
        study = Study(plan, tmp_path / name)
        return study.folder(plan.runs[0]), study.prepare(plan.runs, "")

    return make


def undisturbed(run):
    """A finished run, and how many calls of it changed something in its folder."""
    folder, how = run("undisturbed")
    counted = folder.path.parent / "counted"

    def child():
        at_disk_calls(lambda name: name.startswith(str(folder.path)), lambda n: counted.write_text(str(n)))
        assert execute(folder, how).kind == DONE

    assert status_of(in_child(child)) == 0
    return folder.path, int(counted.read_text())


def goes_on(folder, how, undisturbed):
    """Another process finishes the run, with the same bits."""

    def child():
        outcome = execute(folder, how)
        assert outcome.kind == DONE, outcome

    assert status_of(in_child(child)) == 0
    assert not differences(small.made(folder.path), small.made(undisturbed))
    small.assert_clean(folder.path.parents[1])


def some(n_calls, request):
    return range(1, n_calls + 1, 3 if request.config.getoption("--full") else n_calls // 2)


def test_killed_at_any_call(run, request):
    whole, n_calls = undisturbed(run)
    assert n_calls > 50
    for call in some(n_calls, request):
        folder, how = run(f"killed {call}")

        def child(folder=folder, how=how, call=call):
            def act(n):
                if n == call:
                    os.kill(os.getpid(), 9)

            at_disk_calls(lambda name: name.startswith(str(folder.path)), act)
            execute(folder, how)

        assert status_of(in_child(child)) == -9, call
        goes_on(folder, how, whole)
        shutil.rmtree(folder.path.parents[2])


def test_full_at_any_call(run, request):
    whole, n_calls = undisturbed(run)
    for call in some(n_calls, request):
        folder, how = run(f"full {call}")

        def child(folder=folder, how=how, call=call):
            def act(n):
                if n >= call:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            at_disk_calls(lambda name: name.startswith(str(folder.path)), act)
            # Of checkpoints, without which training goes on.
            warnings.simplefilter("ignore")
            outcome = execute(folder, how)
            if outcome.kind == FAILED:
                assert outcome.is_of_disk, outcome
                assert "No space left on device" in outcome.error, outcome
            else:
                assert outcome.kind == DONE, outcome

        assert status_of(in_child(child)) == 0, call
        assert not (folder.path / "failed.json").exists()
        goes_on(folder, how, whole)
        shutil.rmtree(folder.path.parents[2])
