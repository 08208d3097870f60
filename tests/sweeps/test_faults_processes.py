"""Studies in processes that are killed, stopped and started twice: all runs finish, with the same bits."""

import json
import os
import random
import shutil
import signal

import pytest

from tests.sweeps import small

N_RUNS = 4


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A study of which nobody killed anything. One job."""
    folder = tmp_path_factory.mktemp("undisturbed")
    small.write_plan(folder)
    small.sweep("plan.yml", "--folder", "studies", "--backend", "processes", "--jobs", 1, "--no-estimate", cwd=folder)
    study = folder / "studies" / small.STUDY
    assert len(small.done(study)) == N_RUNS
    small.assert_clean(study)
    return study


@pytest.fixture
def here(tmp_path):
    """A folder with a plan, whose name is not an easy one."""
    folder = tmp_path / "it's a [folder] é"
    small.write_plan(folder)
    return folder


ARGS = ("plan.yml", "--folder", "studies", "--backend", "processes", "--jobs", 2, "--no-estimate")


def study_in(folder):
    return folder / "studies" / small.STUDY


def test_the_driver_is_killed(undisturbed, here):
    """Its processes write checkpoints and end by themselves; the same command goes on with what they left."""
    study = study_in(here)
    with small.started(*ARGS, cwd=here) as driver:
        small.wait_for(lambda: len(small.with_checkpoints(study)) >= 2)
        workers = small.workers(driver.pid)
        assert len(workers) == 2
        driver.kill()
        small.wait_for(lambda: not any(map(small.is_alive, workers)), 30)
    stopped = small.with_checkpoints(study)
    assert len(stopped) == 2
    for run in stopped:
        assert [each["outcome"] for each in small.status(run)["tries"]] == ["stopped"]
        assert not (run / "lock.json").exists()
        # One more than those of every 50 steps.
        assert "stopped: a checkpoint after" in (run / "log.txt").read_text()
    small.sweep(*ARGS, cwd=here)
    for run in stopped:
        first, second = small.status(run)["tries"]
        assert second["from"] > first["from"] == 0
    small.assert_same(study, undisturbed, N_RUNS)
