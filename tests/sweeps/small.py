"""A small study for tests of faults: made by the command in processes of its own, killed, and compared."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import yaml
from stable_baselines3.common.save_util import load_from_zip_file

from sb3_sparse.sweeps.backends.processes import worker_environment
from sb3_sparse.sweeps.backends.worker import work
from sb3_sparse.sweeps.planning.plan import make_plan
from sb3_sparse.sweeps.study import Study
from tests.resume.comparing import differences
from tests.sweeps.faulty import SLOW

ROOT = Path(__file__).parents[2]
STUDY, FAULTY = "small", "tests.sweeps.faulty"
# Sparse networks, evaluations, plasticity: all that a run leaves.
PLAN = {
    "study": STUDY,
    "algo": "dqn",
    "env": "CartPole-v1",
    "n_timesteps": 600,
    "checkpoint_every": 50,
    "device": "cpu",
    "evaluation": {"every": 150, "episodes": 2, "final_episodes": 3},
    "hyperparams": {
        "policy": "SparseSimBaPolicy",
        "policy_kwargs": {"net_arch": [16], "sparsity": 0.5},
        **{"learning_starts": 50, "buffer_size": 400, "batch_size": 16, "train_freq": 4, "gradient_steps": 1},
    },
    "callbacks": [
        {"sb3_sparse.plasticity.PlasticityCallback": {"log_freq": 200, "n_samples": 32}},
        f"{FAULTY}.Slow",
    ],
    "axes": {"learning_rate": [1e-2, 1e-3], "seed": 2},
}


def write_plan(folder, **changes):
    """A file with :data:`PLAN`, some of it changed."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "plan.yml"
    path.write_text(yaml.safe_dump({**PLAN, **changes}))
    return path


def environment():
    """Of a process that finds this package and these tests, wherever it is called; in it, a run takes some seconds."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, SLOW: "0.003"}


def start(*args, cwd):
    """The command in a process group of its own, as one that a shell has started; what it says goes to ``said.txt``."""
    with (cwd / "said.txt").open("ab") as said:
        return subprocess.Popen(
            [sys.executable, "-m", "sb3_sparse.cli", "sweep", *map(str, args)],
            cwd=cwd,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )


def sweep(*args, cwd, status=0):
    """The command, to its end: what it said."""
    before = len(said(cwd))
    process = start(*args, cwd=cwd)
    try:
        process.wait(timeout=400)
    finally:
        process.kill()
    text = said(cwd)[before:]
    assert process.returncode == status, f"status {process.returncode}: {text}"
    return text


def said(cwd):
    path = cwd / "said.txt"
    return path.read_text() if path.exists() else ""


def wait_for(what, seconds=120.0):
    """The first true answer to a question."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := what():
            return found
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds:g} seconds: {what}")


def children(pid):
    """Processes that a process has started and that are alive."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent, *_ = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(parent) == pid and state not in "ZX":
            found.append(int(path.parent.name))
    return sorted(found)


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def workers(pid):
    """Of a process of the command: the processes that make runs."""
    return [each for each in children(pid) if b"sb3_sparse.sweeps.backends.worker" in command_of(each)]


def command_of(pid):
    """The command line of a process; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def kill(pid, number=signal.SIGKILL):
    """If it is still there."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


@contextmanager
def started(*args, cwd):
    """:func:`start`, and nothing of it is left behind."""
    process = start(*args, cwd=cwd)
    try:
        yield process
    finally:
        left = workers(process.pid)
        process.kill()
        process.wait()
        for each in left:
            kill(each)


def runs(study):
    """Folders of runs."""
    return sorted(path.parent for path in study.glob("runs/*/run.json"))


def with_checkpoints(study):
    return [run for run in runs(study) if any(run.glob("exact/checkpoint-*"))]


def done(study):
    return [run for run in runs(study) if (run / "done.json").is_file()]


def undisturbed(folder, seeds):
    """A study of which nobody killed anything: one run after the other, in this process."""
    # Slow ones would give the same.
    study = Study(make_plan({**PLAN, "axes": {**PLAN["axes"], "seed": seeds}}), folder)
    how = study.prepare(study.plan.runs, "")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in worker_environment(1).items():
            patch.setenv(name, value)
        work(study.runs, [run.name for run in study.plan.runs], how, lambda event: None)
    assert len(done(study.path)) == 2 * seeds
    assert_clean(study.path)
    return study.path


def status(run):
    return json.loads((run / "status.json").read_text())


def made(run):
    """What a finished run is, but for clocks and machines."""
    env = json.loads((run / "run.json").read_text())["settings"]["env"]
    data, weights, variables = load_from_zip_file(run / f"{env}.zip", device="cpu")
    assert set(weights) == {"policy", "policy.optimizer"}
    finished = json.loads((run / "done.json").read_text())
    with np.load(run / "evaluations.npz") as evaluations:
        return {
            "weights": weights,
            "variables": variables,
            "steps": data["num_timesteps"],
            "evaluations": dict(evaluations),
            "plasticity": (run / "plasticity.csv").read_text(),
            **{name: finished[name] for name in ("returns", "timesteps", "parameters")},
        }


def assert_same(study, undisturbed, n_runs):
    """All runs have finished with what those of another study have, bit by bit, and nothing else is left behind."""
    assert len(runs(study)) == len(done(study)) == n_runs
    for run in runs(study):
        assert not differences(made(run), made(undisturbed / "runs" / run.name)), run.name
    assert_clean(study)


def assert_clean(study):
    """No halves of files; of what is done no locks and no checkpoints."""
    left = [path for path in study.rglob("*") if path.name.startswith(".")]
    left += [run / name for run in done(study) for name in ("exact", "lock.json") if (run / name).exists()]
    assert not left
