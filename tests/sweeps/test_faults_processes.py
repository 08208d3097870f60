"""Studies in processes that are killed, stopped and started twice: all runs finish, with the same bits."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.sweeps import small

OPTIONS = ("--folder", "studies", "--no-estimate", "--backend", "processes")
ARGS = ("plan.yml", *OPTIONS, "--jobs", 2)
KILLS = 10


@pytest.fixture
def here(tmp_path):
    """A folder with a plan, whose name is not an easy one."""
    folder = tmp_path / "it's a [folder] é"
    small.write_plan(folder)
    return folder


def study_in(folder):
    return folder / "studies" / small.STUDY


def outcomes(run):
    return [each["outcome"] for each in small.status(run)["tries"]]


def test_the_driver_is_killed(four_runs, here):
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
        assert outcomes(run) == ["stopped"]
        assert not (run / "lock.json").exists()
        # One more than those of every 50 steps.
        assert "stopped: a checkpoint after" in (run / "log.txt").read_text()
    # Elsewhere, under another name: nothing in it says where it was.
    elsewhere = here / "elsewhere"
    study.parent.rename(elsewhere)
    (here / "plan.yml").unlink()
    small.sweep(Path("elsewhere") / small.STUDY, "--backend", "processes", "--jobs", 2, "--no-estimate", cwd=here)
    assert not study.parent.exists()
    for run in stopped:
        first, second = small.status(elsewhere / small.STUDY / "runs" / run.name)["tries"]
        assert second["from"] > first["from"] == 0
    small.assert_same(elsewhere / small.STUDY, four_runs, 4)


def by_terminal(driver, workers):
    # What Ctrl-C is to a group of processes.
    os.killpg(driver.pid, signal.SIGINT)


def to_the_driver(driver, workers):
    driver.send_signal(signal.SIGTERM)


def to_all(driver, workers):
    # As Slurm does it; and `timeout` sends it twice.
    for pid in (*workers, driver.pid, driver.pid):
        small.kill(pid, signal.SIGTERM)


def warned(driver, workers):
    driver.send_signal(signal.SIGUSR1)


@pytest.mark.full
def test_a_request_to_stop_ends_with_checkpoints_and_status_75(four_runs, here):
    study = study_in(here)
    for ask in (by_terminal, to_the_driver, to_all, warned):
        before = len(small.said(here))
        with small.started(*ARGS, cwd=here) as driver:
            small.wait_for(lambda: sum((run / "lock.json").exists() for run in small.runs(study)) == 2)
            time.sleep(random.Random(ask.__name__).uniform(0, 2))
            workers = small.workers(driver.pid)
            ask(driver, workers)
            assert driver.wait(timeout=60) == 75
            assert not any(map(small.is_alive, workers))
        for run in small.runs(study):
            if (run / "status.json").exists():
                assert set(outcomes(run)) <= {"stopped", "done"}, run
                assert not (run / "lock.json").exists()
        text = small.said(here)[before:]
        assert "are left, stopped: the same command goes on with them." in text
        assert "Traceback" not in text
    assert "75" not in small.sweep(*ARGS, "--max-hours", 1e-3, cwd=here, status=75).splitlines()[-1]
    assert len(small.done(study)) < 4
    small.sweep(*ARGS, cwd=here)
    small.assert_same(study, four_runs, 4)


@pytest.mark.full
def test_ten_kills_at_random(twelve_runs, here, capsys):
    """Of the command and of its processes, at any time."""
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    draw = random.Random(seed)
    small.write_plan(here, axes={**small.PLAN["axes"], "seed": 6})
    study, killed = study_in(here), {"driver": 0, "worker": 0}
    while sum(killed.values()) < KILLS:
        driver = small.start(*ARGS, cwd=here)
        try:
            while driver.poll() is None and sum(killed.values()) < KILLS:
                # All over the study, not all of them at its beginning.
                n = sum(killed.values())

                def is_time(driver=driver, n=n):
                    return (len(small.done(study)) >= n and small.workers(driver.pid)) or driver.poll() is not None

                small.wait_for(is_time, 300)
                time.sleep(draw.uniform(0, 5))
                workers = small.workers(driver.pid)
                if not workers or draw.random() < 0.3:
                    driver.kill()
                    driver.wait()
                    killed["driver"] += 1
                elif small.kill(draw.choice(workers)):
                    killed["worker"] += 1
        finally:
            driver.kill()
            driver.wait()
    with capsys.disabled():
        print(f" seed {seed}: {killed}, {len(small.done(study))} of 12 done by then")
    small.sweep(*ARGS, cwd=here)
    small.assert_same(study, twelve_runs, 12)


@pytest.mark.full
def test_two_commands_at_once_make_each_run_once(four_runs, here):
    study = study_in(here)
    with small.started(*ARGS, cwd=here) as first, small.started(*ARGS, cwd=here) as second:
        # Who ends first says that the other one still has some.
        assert {first.wait(timeout=300), second.wait(timeout=300)} <= {0, 75}
    small.assert_same(study, four_runs, 4)
    for run in small.runs(study):
        assert outcomes(run) == ["done"]
    assert "4 runs, 4 done" in small.sweep(*ARGS, cwd=here)


@pytest.mark.full
def test_jobs_of_arrays_that_want_the_same_runs(four_runs, here):
    """Twice the same, and one that has more: each run is made once. One of them is killed: another one goes on."""
    study = study_in(here)

    def job(index, count):
        return small.started("plan.yml", *OPTIONS, "--run-index", index, "--runs-per-job", count, cwd=here)

    with job(0, 2) as killed, job(0, 2) as same, job(0, 4) as larger:
        small.wait_for(lambda: small.with_checkpoints(study))
        killed.kill()
        # Who finds a run with somebody else, and still does when all others are made, leaves it.
        assert {same.wait(timeout=300), larger.wait(timeout=300)} <= {0, 75}
    small.sweep("plan.yml", *OPTIONS, "--run-index", 0, "--runs-per-job", 4, cwd=here)
    small.assert_same(study, four_runs, 4)
    for run in small.runs(study):
        assert outcomes(run) in (["done"], ["lost", "done"]), run
    assert "there are 4 runs, 3 a job" in small.sweep(
        "plan.yml", *OPTIONS, "--run-index", 2, "--runs-per-job", 3, cwd=here, status=1
    )


@pytest.mark.full
def test_a_job_of_an_array_is_stopped(four_runs, here):
    args = ("plan.yml", *OPTIONS, "--run-index", 0, "--runs-per-job", 4)
    with small.started(*args, cwd=here) as job:
        small.wait_for(lambda: small.with_checkpoints(study_in(here)))
        job.send_signal(signal.SIGTERM)
        assert job.wait(timeout=60) == 75
    small.sweep(*args, "--max-hours", 1e-3, cwd=here, status=75)
    small.sweep(*args, cwd=here)
    small.assert_same(study_in(here), four_runs, 4)


def by_kind(**kinds):
    """An axis of runs that do something else at a step."""
    common = small.PLAN["callbacks"]
    return {
        "callbacks": common,
        "axes": {"kind": {"well": None, **{name: {"callbacks": [call]} for name, call in kinds.items()}}},
        "gym_packages": ["tests.sweeps.faulty"],
    }


@pytest.mark.full
def test_runs_that_raise_or_end_their_process_do_not_stop_the_others(here):
    at = f"{small.FAULTY}."
    kinds = by_kind(
        raises={f"{at}Raises": {"at": 320, "unless": "repaired"}},
        exits={f"{at}Exits": {"at": 120}},
        breaks={f"{at}Exits": {"at": 20, "status": 7}},
        killed={f"{at}Exits": {"at": 20, "status": "killed"}},
    )
    small.write_plan(here, **kinds)
    study, text = study_in(here), small.sweep(*ARGS, cwd=here, status=1)
    runs = {json.loads((run / "run.json").read_text())["axes"]["kind"]: run for run in small.runs(study)}
    assert small.done(study) == [runs["well"]]
    assert "1 of 5 runs are done" in text
    assert "4 failed: --retry-failed tries them again." in text
    assert "Traceback" not in text
    for kind in ("raises", "exits", "breaks", "killed"):
        assert str(Path("studies") / small.STUDY / "runs" / runs[kind].name / "log.txt") in text
    assert "RuntimeError: nothing beyond 320 steps" in (runs["raises"] / "log.txt").read_text()
    assert outcomes(runs["raises"]) == ["failed"]
    # The first one got as far as a checkpoint.
    assert [each["from"] for each in small.status(runs["exits"])["tries"]] == [0, 100, 100, 100]
    for kind in ("exits", "breaks", "killed"):
        assert "its process ended 3 times without a word" in json.loads((runs[kind] / "failed.json").read_text())["error"]
    # The same command does nothing but say it again.
    assert "4 failed" in small.sweep(*ARGS, cwd=here, status=1)
    assert outcomes(runs["raises"]) == ["failed"]
    (here / "repaired").touch()
    assert "2 of 5 runs are done" in small.sweep(*ARGS, "--retry-failed", cwd=here, status=1)
    assert [each["from"] for each in small.status(runs["raises"])["tries"]] == [0, 300]
    assert not (runs["raises"] / "failed.json").exists()
    small.assert_clean(study)


@pytest.mark.full
def test_processes_that_cannot_begin_are_not_started_for_ever(here):
    script = here / "broken.py"
    script.write_text(
        "import os, sys\n"
        "from sb3_sparse import cli\n"
        "import sb3_sparse.cli.sweep\n"
        "import sb3_sparse.sweeps.backends.processes as processes\n"
        "processes.sys.executable = '/bin/false'\n"
        "cli.main(['sweep', *sys.argv[1:]])\n"
    )

    done = subprocess.run(
        [sys.executable, str(script), *map(str, ARGS)],
        cwd=here,
        env=small.environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert "processes end before they begin a run, 5 in a row (status 1)" in done.stderr
    assert "Traceback" not in done.stderr
