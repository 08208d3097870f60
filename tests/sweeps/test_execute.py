"""One run: made once, as `train` would make it; stopped, failed, lost, and gone on with."""

import errno
import json
import signal
import subprocess
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch as th
from stable_baselines3 import DQN
from stable_baselines3.common.save_util import load_from_zip_file

from sb3_sparse.common import files
from sb3_sparse.evaluation import evaluate_saved, find_saved
from sb3_sparse.results.runs import read_run
from sb3_sparse.resume import ExactCheckpoint
from sb3_sparse.resume.files.lease import LOCK, Lease
from sb3_sparse.resume.signals import ends_with_checkpoint
from sb3_sparse.sweeps.backends.worker import interruptible, work
from sb3_sparse.sweeps.planning.plan import make_plan
from sb3_sparse.sweeps.runs import execute as execution
from sb3_sparse.sweeps.runs.execute import DONE, FAILED, STOPPED, TAKEN, How, execute, how_of, write_run
from sb3_sparse.sweeps.runs.facts import _checkout
from sb3_sparse.sweeps.runs.run_folder import MAX_LOST, RunFolder
from sb3_sparse.zoo import train_agent
from tests.sweeps.plans import cartpole


@pytest.fixture(autouse=True)
def threads():
    before = th.get_num_threads()
    yield
    th.set_num_threads(before)


def prepared(path, **changes):
    plan = make_plan(cartpole(**changes))
    how = how_of(plan, "sb3-sparse sweep plan.yml")
    folders = [RunFolder(path / "runs" / run.name) for run in plan.runs]
    for folder, run in zip(folders, plan.runs, strict=True):
        write_run(folder, run, how)
    return plan, how, folders


def tensors(folder):
    _, found, _ = load_from_zip_file(find_saved(folder.path).path, device="cpu")
    return found


def assert_same_agent(folder, other):
    ours, theirs = tensors(folder), tensors(other)
    assert json.dumps(ours, default=repr) == json.dumps(theirs, default=repr)
    for name, value in ours["policy"].items():
        assert th.equal(value, theirs["policy"][name]), name
    assert folder.read("done.json")["returns"] == other.read("done.json")["returns"]


def test_a_run_is_that_of_train(tmp_path):
    plan, how, (folder,) = prepared(tmp_path)
    assert execute(folder, how) == (outcome := execute(folder, how))
    assert outcome.kind == DONE
    settings = plan.runs[0].settings
    model, saved = train_agent(
        *("dqn", "CartPole-v1", tmp_path / "logs"),
        hyperparams=settings["hyperparams"],
        n_timesteps=200,
        eval_freq=100,
        n_eval_episodes=2,
        device="cpu",
    )
    assert isinstance(model, DQN)
    for name, value in tensors(folder)["policy"].items():
        assert th.equal(value, model.policy.state_dict()[name]), name
    for name in ("timesteps", "results", "ep_lengths"):
        found = [np.load(each / "evaluations.npz")[name] for each in (folder.path, saved)]
        np.testing.assert_array_equal(*found)
    done = folder.read("done.json")
    assert done["timesteps"] == model.num_timesteps
    played = evaluate_saved(find_saved(saved), 3, seeds=[1000])[0]
    assert done["returns"] == played.returns
    n = sum(parameter.numel() for parameter in model.q_net.parameters())
    assert list(done["parameters"].values()) == [{"total": n, "learnable": n}]
    run = read_run(str(folder.path))
    assert len(run.returns["evaluations"].x) == 2
    assert run.settings["algo"] == "dqn"
    # Few files, no checkpoints, no lock.
    assert {path.name for path in folder.path.iterdir()} == {
        *(
            "run.json",
            "done.json",
            "status.json",
            "log.txt",
            "evaluations.npz",
            "0.monitor.csv",
            "CartPole-v1.zip",
            "CartPole-v1",
        )
    }


def test_what_a_run_is_stands_beside_it(tmp_path):
    plan, how, (folder,) = prepared(tmp_path)
    run = folder.read("run.json")
    assert run["settings"] == plan.runs[0].settings
    assert run["axes"] == {"seed": 0}
    assert run["command"] == "sb3-sparse sweep plan.yml"
    assert run["code"]["torch"] == th.__version__
    assert run["machine"]["cores"] >= 1
    # It is written once; another run does not get the folder.
    folder.write("run.json", {**run, "command": "first"})
    write_run(folder, plan.runs[0], how)
    assert folder.read("run.json")["command"] == "first"
    with pytest.raises(ValueError, match="of a run with other settings"):
        write_run(folder, make_plan(cartpole(n_timesteps=300)).runs[0], how)


def test_the_commit_is_that_of_a_checkout_of_this_package(tmp_path):
    """Mistake of ours: installed into somebody's project, it was that of the project."""

    def git(*args):
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        return subprocess.run(["git", "-C", str(tmp_path), *who, *args], check=True, capture_output=True, text=True).stdout

    git("init")
    for name in ("ours", "venv"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    assert _checkout(tmp_path / "ours") == {"commit": None, "modified": None}
    git("add", "ours")
    git("commit", "-m", "first")
    assert _checkout(tmp_path / "ours") == {"commit": git("rev-parse", "HEAD").strip(), "modified": False}
    assert _checkout(tmp_path / "venv") == {"commit": None, "modified": None}
    (tmp_path / "ours" / "__init__.py").write_text("pass\n")
    assert _checkout(tmp_path / "ours")["modified"] is True


def test_a_run_that_was_stopped_goes_on_bit_by_bit(tmp_path):
    mark = tmp_path / "mark"
    mark.touch()
    callbacks = [
        {"tests.sweeps.misbehaving.Stops": {"unless": str(mark)}},
        {"sb3_sparse.PlasticityCallback": {"log_freq": 80, "n_samples": 16}},
    ]
    _, how, (whole,) = prepared(tmp_path / "whole", callbacks=callbacks)
    assert execute(whole, how).kind == DONE
    mark.unlink()
    _, how, (stopped,) = prepared(tmp_path / "stopped", callbacks=callbacks)
    assert execute(stopped, how).kind == STOPPED
    assert stopped.state() == "stopped"
    assert stopped.read("status.json")["tries"][0]["outcome"] == STOPPED
    assert execute(stopped, how).kind == DONE
    assert [each["from"] for each in stopped.read("status.json")["tries"]] == [0, 120]
    assert_same_agent(stopped, whole)
    assert (stopped.path / "plasticity.csv").read_text() == (whole.path / "plasticity.csv").read_text()
    assert not (stopped.path / "exact").exists()


def test_files_of_tensorboard_are_where_the_run_is(tmp_path):
    """Mistake of ours: they were where the study is on the machine of the command."""
    mark = tmp_path / "mark"
    stops = [{"tests.sweeps.misbehaving.Stops": {"unless": str(mark)}}]
    _, how, (folder,) = prepared(tmp_path / "here", callbacks=stops, tensorboard=True)
    assert execute(folder, how).kind == STOPPED
    (tmp_path / "here").rename(tmp_path / "there")
    folder = RunFolder(tmp_path / "there" / "runs" / folder.name)
    assert execute(folder, how).kind == DONE
    assert not (tmp_path / "here").exists()
    assert len(list(folder.path.glob("tensorboard/**/events.out.tfevents*"))) == 2
    # What was printed before is no file of the logger, which would write it anew.
    assert "stopped: a checkpoint after 120 steps" in folder.log.read_text()


def test_a_failed_run_says_why_and_others_go_on(tmp_path):
    mark = tmp_path / "mark"
    raises = [{"tests.sweeps.misbehaving.Raises": {"unless": str(mark)}}]
    plan, how, (bad, good) = prepared(tmp_path, axes={"arm": {"bad": {"callbacks": raises}, "good": {}}})
    told = []
    assert work(tmp_path / "runs", [bad.name, good.name], how, told.append) is None
    assert [(event.get("kind"), event.get("error")) for event in told if "ends" in event] == [
        (FAILED, "ZeroDivisionError: a mistake in two lines"),
        (DONE, ""),
    ]
    failed = bad.read("failed.json")
    assert failed["error"] == "ZeroDivisionError: a mistake in two lines"
    assert failed["tries"] == 1
    assert "Traceback" in bad.log.read_text()
    assert "misbehaving.py" in bad.log.read_text()
    assert bad.state() == FAILED
    # It is not tried again, unless somebody says so.
    assert work(tmp_path / "runs", [bad.name], how, told.append) is None
    assert bad.read("status.json")["tries"][0]["outcome"] == FAILED
    mark.touch()
    bad.forget_failure()
    assert execute(bad, how).kind == DONE
    assert bad.state() == DONE
    assert not (bad.path / "failed.json").exists()
    assert len(plan.runs) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"callbacks": ["os.system"]}, "callback: 'os.system' is no class of"),
        ({"callbacks": ["no_such.Callback"]}, "'no_such.Callback' cannot be imported"),
        ({"hyperparams": {"policy": "os.system"}}, "policy: 'os.system' is no class of"),
        ({"hyperparams": {"env_wrapper": ["subprocess.Popen"]}}, "env_wrapper: 'subprocess.Popen' is no class of"),
        ({"hyperparams": {"policy_kwargs": "print(1)"}}, "'print(1)' is no literal"),
        ({"hyperparams": {"gama": 1}}, "unknown hyperparameter 'gama'"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_wrong_settings_are_failures_with_a_sentence(tmp_path, changes, message):
    _, how, (folder,) = prepared(tmp_path, **changes)
    outcome = execute(folder, how)
    assert outcome.kind == FAILED
    assert message in outcome.error


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
def test_returns_that_are_not_finite_are_no_result(tmp_path, monkeypatch, value):
    _, how, (folder,) = prepared(tmp_path)
    real = evaluate_saved

    def play(*args, **kwargs):
        played = real(*args, **kwargs)
        played[0].returns[1] = value
        return played

    monkeypatch.setattr(execution, "evaluate_saved", play)
    outcome = execute(folder, how)
    assert (outcome.kind, outcome.error) == (FAILED, "ValueError: the finished agent's returns are not finite")
    assert (folder.state(), folder.is_done) == ("failed", False)
    # What a second try needs is there.
    monkeypatch.setattr(execution, "evaluate_saved", real)
    assert execute(folder, how).kind == DONE


def test_one_process_at_a_time(tmp_path):
    _, how, (folder,) = prepared(tmp_path)
    lock, ended = folder.path / "lock.json", threading.Event()

    def lives():
        """As another process that has the run, and gives signs of life."""
        count = 0
        while not ended.wait(0.05):
            beside = folder.path / ".beside"
            beside.write_text(json.dumps({"host": "elsewhere", "pid": 1, "token": "a", "seconds": 5, "sign": count}))
            beside.replace(lock)
            count += 1

    thread = threading.Thread(target=lives)
    thread.start()
    try:
        while not lock.exists():
            time.sleep(0.01)
        assert folder.state() == "running"
        assert execute(folder, how).kind == TAKEN
        assert not folder.log.exists()
    finally:
        ended.set()
        thread.join()
    # It gives none any more.
    lock.write_text(json.dumps({**json.loads(lock.read_text()), "seconds": 0.2}))
    assert execute(folder, how).kind == DONE


def test_a_run_that_ends_its_process_again_and_again_is_given_up(tmp_path):
    _, how, (folder,) = prepared(tmp_path)
    for _ in range(MAX_LOST):
        # As a process leaves it that is killed.
        folder.begin_try(0, 200)
    outcome = execute(folder, how)
    assert outcome.kind == FAILED
    assert "ended 3 times without a word after 0 steps" in outcome.error
    folder.forget_failure()
    assert execute(folder, how).kind == DONE


def test_a_run_that_gets_further_each_time_is_not_given_up(tmp_path):
    _, how, (folder,) = prepared(tmp_path)
    for steps in range(0, 10 * MAX_LOST, 10):
        folder.begin_try(steps, 200)
    folder.begin_try(0, 200)
    assert execute(folder, how).kind == DONE


def test_seconds_of_all_tries_count(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.begin_try(0, 10)
    folder.end_try(STOPPED, 2.5)
    folder.begin_try(5, 10)
    folder.end_try(DONE, 1.0)
    assert folder.seconds() == 3.5


def test_what_cannot_be_read_for_a_moment_is_not_written_anew(tmp_path, monkeypatch):
    """Mistake of ours: the tries before were lost, and with them how often the process had been."""
    plan, how, (folder,) = prepared(tmp_path)
    folder.begin_try(0, 10)
    folder.end_try(STOPPED, 2.5)
    folder.begin_try(5, 10)
    before = {name: folder.read(name) for name in ("run.json", "status.json")}
    monkeypatch.setattr(files, "_PAUSES", ())
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", lambda path: (_ for _ in ()).throw(OSError(errno.ESTALE, "Stale file handle")))
        folder.sign(1.0, timesteps=7)
        for change in (
            lambda: folder.end_try(DONE, 1.0),
            lambda: folder.begin_try(5, 10),
            folder.forget_failure,
            lambda: write_run(folder, plan.runs[0], how),
        ):
            with pytest.raises(OSError, match="Stale"):
                change()
    assert {name: folder.read(name) for name in before} == before
    folder.sign(1.0, timesteps=7)
    assert [each.get("seconds") for each in folder.read("status.json")["tries"]] == [2.5, 1.0]
    assert folder.read("status.json")["timesteps"] == 7


def test_a_run_is_done_whose_status_could_not_be_written(tmp_path, monkeypatch):
    """Mistake of ours: what the done mark says came by way of the status."""
    _, how, (folder,) = prepared(tmp_path)
    monkeypatch.setattr(RunFolder, "sign", lambda *args, **kwargs: None)
    assert execute(folder, how).kind == DONE
    assert folder.read("done.json")["timesteps"] == 200


def test_a_lock_that_cannot_be_read_costs_a_checkpoint_and_not_the_run(tmp_path, monkeypatch):
    _, how, (folder,) = prepared(tmp_path, checkpoint_every=50)
    check, failed = Lease.check, []

    def fails_once(lease):
        if not failed and not lease._ended.is_set():
            failed.append(lease)
            raise OSError(errno.ESTALE, "Stale file handle")
        check(lease)

    monkeypatch.setattr(Lease, "check", fails_once)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert execute(folder, how).kind == DONE
    assert len(failed) == 1
    assert any("Stale file handle" in str(each.message) for each in said)


def test_a_damaged_status_is_none(tmp_path):
    _, how, (folder,) = prepared(tmp_path)
    (folder.path / "status.json").write_text('{"tries": [')
    assert execute(folder, how).kind == DONE


def test_how_goes_to_another_process():
    how = How("a", "b", "5%", 2, True, ("x", "y"), 3.0)
    assert How.from_json(how.to_json()) == how


@pytest.mark.parametrize(
    ("stops", "steps"), [({}, 200), ({"stop_at": -1.0}, 50), ({"stop_at": 1e6}, 200), ({"stop_after": 1}, 100)], ids=str
)
def test_a_run_ends_early_only_if_asked_for(tmp_path, stops, steps):
    # A learning rate of nothing: the second evaluation plays as the first, and is no better.
    evaluation = {"every": 50, "episodes": 3, **stops}
    _, how, (folder,) = prepared(tmp_path, evaluation=evaluation, n_timesteps=200, callbacks=[{CONSTANT: {}}])
    assert execute(folder, how).kind == DONE
    assert folder.read("done.json")["timesteps"] == steps
    assert len(np.load(folder.path / "evaluations.npz")["timesteps"]) == steps // 50


CONSTANT = "tests.sweeps.misbehaving.SameSeed"


class Freed:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)
        # Python looks for signals between two steps of a loop.
        for _ in range(1000):
            pass


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_request_that_comes_while_garbage_is_collected_is_not_lost(tmp_path):
    """Mistake of ours: Python ignores the exception there, and the next run began."""
    _, how, folders = prepared(tmp_path)
    told = []
    with interruptible():
        Freed()
        with pytest.raises(KeyboardInterrupt):
            work(tmp_path / "runs", [folder.name for folder in folders], how, told.append)
        # Nor is another one trained that had begun.
        with pytest.raises(KeyboardInterrupt), ends_with_checkpoint(None, 1):
            pass
    assert told == []
    with interruptible():
        assert work(tmp_path / "runs", [folders[0].name], how, told.append) is None
    assert len(told) == 2


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no SIGHUP")
@pytest.mark.parametrize("numbers", [("SIGTERM", "SIGHUP"), ("SIGHUP", "SIGTERM"), ("SIGINT", "SIGHUP")])
def test_a_session_that_is_ended_asks_once(numbers):
    """Mistake of ours: the second one of the pair killed the processes of a study before they had written checkpoints."""
    first, second = (getattr(signal, name) for name in numbers)
    with interruptible():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(first)
        signal.raise_signal(second)


def test_a_request_in_the_last_rollout_is_for_the_study(tmp_path):
    """Mistake of ours: training came to its end, and the next run began."""
    _, how, folders = prepared(tmp_path)
    checkpoint = ExactCheckpoint(tmp_path / "exact")
    with interruptible():
        with ends_with_checkpoint(checkpoint, 60):
            signal.raise_signal(signal.SIGTERM)
        assert checkpoint.stop_requested
        with pytest.raises(KeyboardInterrupt):
            work(tmp_path / "runs", [folder.name for folder in folders], how, print)
    # One that ends alone, such as that of `train`, has its agent.
    with ends_with_checkpoint(checkpoint, 60):
        signal.raise_signal(signal.SIGTERM)


def test_a_request_between_two_runs_leaves_no_claim(tmp_path, monkeypatch):
    _, how, (folder,) = prepared(tmp_path)
    release = Lease.release

    def asked_and_release(lease):
        if lease._path == folder.path / LOCK:
            signal.raise_signal(signal.SIGTERM)
        release(lease)

    monkeypatch.setattr(Lease, "release", asked_and_release)
    with interruptible(), pytest.raises(KeyboardInterrupt):
        execute(folder, how)
    assert not (folder.path / LOCK).exists()
