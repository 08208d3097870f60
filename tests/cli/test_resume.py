"""``sb3-sparse train`` that is stopped and goes on."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from stable_baselines3 import SAC

from sb3_sparse.cli.train_tune_enjoy import train
from sb3_sparse.resume.files.folder import checkpoints
from tests.cli.running import run
from tests.resume.comparing import differences

pytest.importorskip("rl_zoo3")

TRAIN = (
    *("train", "--algo", "sac", "--env", "Pendulum-v1", "-n", "600", "--seed", "3", "--eval-freq", "250"),
    *("--eval-episodes", "1", "--save-freq", "200", "-f", "logs", "-params", "learning_starts:50", "buffer_size:2000"),
    *("policy:'MlpPolicy'", "policy_kwargs:dict(net_arch=[8])"),
)
FOLDER = Path("logs/sac/Pendulum-v1_1")


def agent(folder: Path):
    return SAC.load(folder / FOLDER / "Pendulum-v1.zip").get_parameters()


def stopped_by(number: int, cwd: Path, *options: str, session: bool = False) -> subprocess.Popen:
    """A training that gets a signal after its first checkpoint."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sb3_sparse.cli", *TRAIN, "--exact-checkpoint-freq", "150", *options],
        cwd=cwd,
        env={**os.environ, "SB3_SPARSE_BACKEND": "deterministic"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=session,
    )
    while process.poll() is None and not checkpoints(cwd / FOLDER / "exact"):
        time.sleep(0.05)
    process.send_signal(number)
    return process


@pytest.fixture(autouse=True)
def _deterministic(monkeypatch):
    monkeypatch.setenv("SB3_SPARSE_BACKEND", "deterministic")


def test_a_signal_ends_it_with_a_checkpoint_and_resume_is_the_run_that_was_not_stopped(tmp_path):
    undisturbed, stopped = tmp_path / "undisturbed", tmp_path / "stopped"
    for folder in (undisturbed, stopped):
        folder.mkdir()
    run(*TRAIN, cwd=undisturbed)
    process = stopped_by(signal.SIGUSR1, stopped)
    out, _ = process.communicate()
    assert process.returncode == 75, out
    assert "ended on request" in out
    assert not (stopped / FOLDER / "Pendulum-v1.zip").exists()
    run("train", "--resume", str(FOLDER), cwd=stopped)
    assert not differences(agent(undisturbed), agent(stopped))
    with (
        np.load(undisturbed / FOLDER / "evaluations.npz") as ours,
        np.load(stopped / FOLDER / "evaluations.npz") as theirs,
    ):
        assert not differences(dict(ours), dict(theirs))
    names = [sorted(path.name for path in (folder / FOLDER).glob("rl_model_*")) for folder in (undisturbed, stopped)]
    assert names[0] == names[1]
    assert not list((stopped / "logs").rglob(".*"))
    rows = [(folder / FOLDER / "0.monitor.csv").read_text().splitlines() for folder in (undisturbed, stopped)]
    assert [row.split(",")[:2] for row in rows[0][1:]] == [row.split(",")[:2] for row in rows[1][1:]]


@pytest.mark.full
def test_ctrl_c_is_not_for_the_environments_processes(tmp_path):
    process = stopped_by(0, tmp_path, "--vec-env", "subproc", session=True)
    # As a terminal does.
    os.killpg(process.pid, signal.SIGINT)
    out, _ = process.communicate()
    assert process.returncode == 75, out
    run("train", "--resume", str(FOLDER), cwd=tmp_path)
    assert (tmp_path / FOLDER / "Pendulum-v1.zip").exists()


@pytest.mark.full
def test_a_yaml_says_it_too_and_a_run_without_a_checkpoint_begins_anew(tmp_path):
    entry = {"n_timesteps": 200, "policy": "MlpPolicy", "learning_starts": 50, "exact_checkpoint_freq": 90, "buffer_size": 500}
    (tmp_path / "my.yml").write_text(yaml.safe_dump({"default": entry}))
    run(
        *("train", "--algo", "sac", "--env", "Pendulum-v1", "-conf", "my.yml", "--eval-freq", "-1"),
        *("-f", "logs"),
        cwd=tmp_path,
    )
    found = checkpoints(tmp_path / FOLDER / "exact")
    assert [path.name.partition("-at-")[2] for path in found] == ["180", "90"]
    for path in found:
        shutil.rmtree(path)
    # Killed before its first checkpoint, it has none either.
    (tmp_path / FOLDER / "Pendulum-v1.zip").unlink()
    run("train", "--resume", str(FOLDER), cwd=tmp_path)
    assert [path.name.partition("-at-")[2] for path in checkpoints(tmp_path / FOLDER / "exact")] == ["180", "90"]
    assert not (tmp_path / "logs/sac/Pendulum-v1_2").exists()


def test_resume_says_what_is_wrong(tmp_path):
    out = run("train", "--resume", "nowhere", cwd=tmp_path, check=False)
    assert out.returncode == 1
    assert "command.json is missing: expected the folder of a run" in out.stderr
    out = run("train", "--resume", "nowhere", "--algo", "sac", cwd=tmp_path, check=False)
    assert "leave out ['--algo', 'sac']" in out.stderr


def test_the_second_signal_ends_it_at_once(tmp_path):
    # Nothing is an exact point of one long rollout.
    process = stopped_by(signal.SIGSTOP, tmp_path)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGUSR1)
    process.send_signal(signal.SIGCONT)
    process.communicate()
    assert process.returncode in (-signal.SIGTERM, -signal.SIGUSR1)


def test_a_refused_resume_leaves_the_run_as_it_is(tmp_path):
    """Its tables were emptied, and its settings had another seed, before it was asked whether somebody trains it."""
    process = stopped_by(signal.SIGSTOP, tmp_path, "-n", "100000")
    try:
        before = {
            path: path.read_bytes() for path in (tmp_path / FOLDER).rglob("*") if path.is_file() and "exact" not in path.parts
        }
        assert before[tmp_path / FOLDER / "0.monitor.csv"]
        # It renews its claim while it lives, and is alive: a stopped one would lose it after a while.
        process.send_signal(signal.SIGCONT)
        out = run("train", "--resume", str(FOLDER), cwd=tmp_path, check=False)
        process.send_signal(signal.SIGSTOP)
        assert out.returncode == 1
        assert "in use by process" in out.stderr
        for path, content in before.items():
            # Evaluations and the best agent are written anew by the run itself, which goes on.
            assert path.suffix in (".npz", ".zip") or path.read_bytes().startswith(content), path
    finally:
        process.kill()
        process.communicate()


@pytest.mark.full
def test_a_run_without_a_seed_goes_on_with_the_one_that_was_drawn(tmp_path):
    without = [each for i, each in enumerate(TRAIN) if "--seed" not in TRAIN[max(i - 1, 0) : i + 1]]
    run(*without, "-n", "200", "--exact-checkpoint-freq", "90", cwd=tmp_path)
    seeds = lambda: yaml.unsafe_load((tmp_path / FOLDER / "Pendulum-v1/args.yml").read_text())["seed"]  # noqa: E731
    drawn = seeds()
    (tmp_path / FOLDER / "Pendulum-v1.zip").unlink()
    run("train", "--resume", str(FOLDER), cwd=tmp_path)
    assert seeds() == drawn


@pytest.mark.parametrize("option", ["--exact-checkpoint-keep", "--exact-checkpoint-patience", "--exact-checkpoint-freq"])
def test_no_option_beside_resume_is_ignored(option):
    with pytest.raises(ValueError, match="--resume nowhere repeats the options of the run"):
        train(["--resume", "nowhere", option, "5"])


def test_a_run_that_has_ended_is_not_trained_anew(tmp_path):
    out = run(*TRAIN, "-n", "100", "--exact-checkpoint-freq", "100", cwd=tmp_path)
    assert "a checkpoint every 100 steps is none in a run of 100" in out.stderr
    before = {path: path.read_bytes() for path in (tmp_path / FOLDER).rglob("*") if path.is_file()}
    out = run("train", "--resume", str(FOLDER), cwd=tmp_path, check=False)
    assert out.returncode == 1
    assert "has ended, with the agent" in out.stderr
    assert before == {path: path.read_bytes() for path in (tmp_path / FOLDER).rglob("*") if path.is_file()}
