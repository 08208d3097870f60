"""Commands whose output nobody reads any more, or that cannot be written: nothing that they made is lost."""

import csv
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from stable_baselines3 import SAC

from sb3_sparse.cli import UNREAD
from sb3_sparse.resume.signals import EXIT_STATUS
from tests.sweeps.plans import cartpole

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals and terminals of Unix")

SETTINGS = """
Pendulum-v1: {n_timesteps: 1000000, policy: MlpPolicy, policy_kwargs: 'dict(net_arch=[4])', learning_starts: 100,
              train_freq: 50, gradient_steps: 1}
CartPole-v1: {n_timesteps: 1000000, policy: MlpPolicy, n_steps: 256, n_epochs: 1}
"""
SAC_TRAINS = ("train", "--algo", "sac", "--env", "Pendulum-v1", "-conf", "my.yml", "--eval-freq", "-1")
PPO_TRAINS = ("train", "--algo", "ppo", "--env", "CartPole-v1", "-conf", "my.yml", "--eval-freq", "-1")


@pytest.fixture
def begun(tmp_path):
    """Begins a command, and returns it with what its output is read by."""
    pytest.importorskip("rl_zoo3")
    (tmp_path / "my.yml").write_text(SETTINGS)
    processes = []

    def begin(*args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, unbuffered="1", **options):
        environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
        command = [sys.executable, "-m", "sb3_sparse.cli", *args]
        processes.append(
            subprocess.Popen(
                command, cwd=tmp_path, env=environment, stdout=stdout, stderr=stderr, text=True, errors="replace", **options
            )
        )
        return processes[-1]

    yield begin
    for process in processes:
        # Sweeps have processes of their own, which end with their input.
        process.kill()
        process.wait()
        for pipe in filter(None, (process.stdout, process.stderr)):
            pipe.close()


def unread_after(process, text, ctrl_c=False):
    """Nobody reads what comes after a line with a text, as where Ctrl-C ended `tee` as well. Returns status and errors."""
    assert any(text in line for line in process.stdout), process.stderr.read()
    process.stdout.close()
    process.stdout = None
    if ctrl_c:
        process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=120)[1]
    return process.returncode, said or ""


@pytest.mark.parametrize(("unbuffered", "options"), [("", ()), ("1", ("-P",)), pytest.param("1", (), marks=pytest.mark.full)])
def test_an_agent_is_saved(unbuffered, options, begun, tmp_path):
    """Mistake of ours, as of rl-zoo3: it was lost; with a progress bar without a word."""
    if options:
        pytest.importorskip("rich")
    status, said = unread_after(begun(*SAC_TRAINS, *options, unbuffered=unbuffered), "total_timesteps")
    assert status == UNREAD
    found = re.search(
        r"nobody reads the output any more: training has ended, the agent after (\d+) steps is in (\S+)\.\n", said
    )
    saved = tmp_path / found[2] / "Pendulum-v1.zip"
    assert SAC.load(saved).num_timesteps == int(found[1]) >= 800


def test_nor_errors(begun, tmp_path):
    """Mistake of ours: with `2>&1 | head` the status was one of Python's own."""
    status, _ = unread_after(begun(*SAC_TRAINS, stderr=subprocess.STDOUT), "total_timesteps")
    assert status == UNREAD
    assert list(tmp_path.glob("logs/sac/Pendulum-v1_1/Pendulum-v1.zip"))


def test_before_training_begins_there_is_nothing_to_keep(begun, tmp_path):
    process = begun(*SAC_TRAINS)
    process.stdout.close()
    process.stdout = None
    assert process.communicate(timeout=120)[1].endswith("nobody reads the output any more: nothing was trained.\n")
    assert process.returncode == UNREAD
    assert not list(tmp_path.glob("logs/sac/*"))


def test_exact_runs_end_with_a_checkpoint(begun, tmp_path):
    """Mistake of ours: a print ended them before, also where they had gone on, and with Ctrl-C."""
    status, said = unread_after(begun(*PPO_TRAINS, "--exact-checkpoint-freq", "100000"), "total_timesteps", ctrl_c=True)
    assert (status, "ended on request" in said) == (EXIT_STATUS, True), said
    run = tmp_path / "logs" / "ppo" / "CartPole-v1_1"
    newest = newest_checkpoint(run)
    status, said = unread_after(begun("train", "--resume", str(run.relative_to(tmp_path))), "total_timesteps")
    assert (status, "ended on request" in said) == (EXIT_STATUS, True), said
    assert newest_checkpoint(run) > newest


def test_a_run_that_goes_on_keeps_its_folder(begun, tmp_path):
    """Mistake of ours: where it had no checkpoint yet, all that it had was deleted."""
    begins = begun(*PPO_TRAINS, "--exact-checkpoint-freq", "100000", "--save-freq", "100")
    assert any("total_timesteps" in line for line in begins.stdout)
    begins.kill()
    begins.communicate()
    before = {path for path in tmp_path.glob("logs/ppo/CartPole-v1_1/**/*") if path.name != "lock.json"}
    process = begun("train", "--resume", "logs/ppo/CartPole-v1_1")
    process.stdout.close()
    process.stdout = None
    assert "nothing was trained" in process.communicate(timeout=120)[1]
    assert process.returncode == UNREAD
    assert {path for path in before if "rl_model" in path.name}
    assert before <= {*tmp_path.glob("logs/ppo/CartPole-v1_1/**/*")}


def newest_checkpoint(run: Path) -> int:
    return max(int(path.name.rpartition("-")[2]) for path in (run / "exact").glob("checkpoint-*"))


@pytest.mark.parametrize("ctrl_c", [False, pytest.param(True, marks=pytest.mark.full)])
def test_a_study_ends_with_checkpoints(ctrl_c, begun, tmp_path):
    """Mistake of ours: the processes of the runs were killed."""
    plan = cartpole(study="a", n_timesteps=10_000_000)
    (tmp_path / "plan.yml").write_text(yaml.safe_dump(plan, sort_keys=False))
    process = begun("sweep", "plan.yml", "--backend", "processes", "--jobs", "1", "--no-estimate", start_new_session=True)
    assert any("begins" in line for line in process.stdout)
    while not list(tmp_path.glob("logs/sweeps/a/runs/*/exact/lock.json")):
        assert process.poll() is None
        time.sleep(0.1)
    process.stdout.close()
    process.stdout = None
    if ctrl_c:
        process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == EXIT_STATUS, said
    assert "1 are left, stopped: the same command goes on" in said
    (exact,) = tmp_path.glob("logs/sweeps/a/runs/*/exact")
    assert list(exact.glob("checkpoint-*"))
    assert not (exact / "lock.json").exists()


def test_a_search_writes_its_report(begun, tmp_path):
    pytest.importorskip("optuna")
    options = ("--n-trials", "200", "-n", "600", "--n-startup-trials", "1", "--n-evaluations", "1", "--no-optim-plots")
    process = begun("tune", *PPO_TRAINS[1:-2], *options)
    status, said = unread_after(process, "Sampler")
    assert status == UNREAD, said
    assert {path.suffix for path in tmp_path.glob("logs/ppo/report_*")} == {".csv", ".pkl"}
    (report,) = tmp_path.glob("logs/ppo/report_*.csv")
    with report.open(newline="") as file:
        assert 1 <= len(list(csv.DictReader(file))) < 5


def test_output_that_cannot_be_written_is_said_after_the_work(begun, tmp_path):
    """Mistake of ours: the agent was lost."""
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    with open("/dev/full", "w") as full:
        process = begun(*SAC_TRAINS, "-n", "1000", stdout=full, unbuffered="")
        said = process.stderr.read()
    assert process.wait() == 1
    assert said.splitlines()[-1].startswith("sb3-sparse train: [Errno 28] No space left on device"), said
    assert SAC.load(tmp_path / "logs/sac/Pendulum-v1_1/Pendulum-v1.zip").num_timesteps == 1000


def test_a_run_that_stays_when_its_terminal_goes(begun, tmp_path):
    """Mistake of ours: as after `disown`, whose runs read like those of a broken disk."""
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    process = begun(
        *(*SAC_TRAINS, "-n", "3000"),
        stdout=theirs,
        stderr=theirs,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    os.close(theirs)
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        assert terminal.read(1)
    assert process.wait() == 0
    assert SAC.load(tmp_path / "logs/sac/Pendulum-v1_1/Pendulum-v1.zip").num_timesteps == 3000


PARTS = [pytest.param(closed, marks=pytest.mark.full) for closed in (">&-", "2>&-", ">&- 2>&-")]


@pytest.mark.parametrize("closed", ["<&- >&- 2>&-", *PARTS])
def test_streams_that_are_closed_from_the_beginning(closed, tmp_path):
    """Mistake of ours: a traceback, and with `2>&-` a file of the run had the number that libraries print their errors to."""
    pytest.importorskip("rl_zoo3")
    (tmp_path / "my.yml").write_text(SETTINGS)
    (tmp_path / "plan.yml").write_text(yaml.safe_dump(cartpole(study="a", n_timesteps=300), sort_keys=False))
    prints = tmp_path / "prints.py"
    prints.write_text("import ctypes, sys\nfrom sb3_sparse.cli import main\n" + PRINTS_FROM_C)
    sweeps = ("-m", "sb3_sparse.cli", "sweep", "plan.yml", "--backend", "processes", "--jobs", "1", "--no-estimate")
    for command in ((prints, *SAC_TRAINS, "-n", "600"), sweeps):
        process = subprocess.run(
            ["sh", "-c", f'"$@" {closed}', "sh", sys.executable, *command], cwd=tmp_path, capture_output=True, timeout=200
        )
        assert (process.returncode, b"Traceback" in process.stderr) == (0, False), process.stderr
    assert SAC.load(tmp_path / "logs/sac/Pendulum-v1_1/Pendulum-v1.zip").num_timesteps == 600
    with (tmp_path / "logs/sac/Pendulum-v1_1/0.monitor.csv").open(newline="") as file:
        next(file)
        assert {len(row) for row in csv.reader(file)} == {3}
    assert len(list(tmp_path.glob("logs/sweeps/a/runs/*/done.json"))) == 1


PRINTS_FROM_C = """
from stable_baselines3.common.monitor import Monitor
step = Monitor.step
def loud(*args):
    ctypes.CDLL(None).perror(b"a library warns")
    return step(*args)
Monitor.step = loud
main()
"""


def test_a_job_of_an_array_ends_with_a_checkpoint(begun, tmp_path):
    """Mistake of ours: while a run had a log of its own, nobody asked who reads the output of the command."""
    (tmp_path / "plan.yml").write_text(yaml.safe_dump(cartpole(study="a", n_timesteps=10_000_000), sort_keys=False))
    process = begun("sweep", "plan.yml", "--run-index", "0")
    while not list(tmp_path.glob("logs/sweeps/a/runs/*/exact/lock.json")):
        assert process.poll() is None
        time.sleep(0.1)
    process.stdout.close()
    process.stdout = None
    said = process.communicate(timeout=120)[1]
    assert process.returncode == EXIT_STATUS, said
    assert list(tmp_path.glob("logs/sweeps/a/runs/*/exact/checkpoint-*"))


def test_an_algorithm_that_does_not_ask_callbacks(begun, tmp_path):
    """sb3-contrib's ARS goes on whatever they answer."""
    (tmp_path / "ars.yml").write_text("CartPole-v1: {n_timesteps: 100000000, policy: LinearPolicy, n_delta: 2}")
    process = begun("train", "--algo", "ars", "--env", "CartPole-v1", "-conf", "ars.yml", "--eval-freq", "-1")
    status, said = unread_after(process, "total_timesteps")
    assert (status, "the agent after" in said) == (UNREAD, True), said
    assert list(tmp_path.glob("logs/ars/CartPole-v1_1/CartPole-v1.zip"))
