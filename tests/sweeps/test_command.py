"""`sb3-sparse sweep`."""

import json
import os
import time

import pytest
import yaml

from sb3_sparse.cli import main
from sb3_sparse.cli import sweep as command
from sb3_sparse.resume.signals import EXIT_STATUS
from sb3_sparse.sweeps.backends import processes, worker
from sb3_sparse.sweeps.planning.plan import make_plan
from sb3_sparse.sweeps.runs.execute import STOPPED, Outcome
from sb3_sparse.sweeps.study import Study
from sb3_sparse.sweeps.view import View
from tests.sweeps.plans import cartpole


@pytest.fixture
def plan(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "plan.yml"
    path.write_text(yaml.safe_dump(cartpole(study="a", axes={"gamma": [0.9, 0.99], "seed": 1}), sort_keys=False))
    return path


def status(capsys, *args):
    main(["sweep", "status", *args])
    return capsys.readouterr().out


def test_a_study_from_the_plan_to_the_last_run(plan, capsys, tmp_path):
    main(["sweep", "plan.yml", "--backend", "processes", "--jobs", "1", "--no-estimate"])
    said = capsys.readouterr().out
    assert said.startswith("a: 2 runs, 0 done, 0 failed, 2 to do, in logs/sweeps/a\n")
    assert said.endswith("2 of 2 runs are done: sb3-sparse report logs/sweeps/a\n")
    runs = sorted((tmp_path / "logs/sweeps/a/runs").iterdir())
    done = [json.loads((run / "done.json").read_text()) for run in runs]
    assert all(len(each["returns"]) == 3 for each in done)
    before = [(run / "done.json").stat().st_mtime_ns for run in runs]
    # The same command, and the folder of the study, make nothing again.
    for place in ("plan.yml", "logs/sweeps/a"):
        main(["sweep", place])
        assert "2 done, 0 failed, 0 to do" in capsys.readouterr().out
    assert [(run / "done.json").stat().st_mtime_ns for run in runs] == before
    text = status(capsys, "plan.yml")
    assert "2 runs: 2 done" in text
    assert f"{sum(done[0]['returns']) / 3:.1f}" in text
    # Another seed makes what is new.
    plan.write_text(plan.read_text().replace("seed: 1", "seed: 2"))
    main(["sweep", "plan.yml", "--dry-run", "--no-estimate"])
    assert "4 runs, 2 done, 0 failed, 2 to do" in capsys.readouterr().out
    assert len(list((tmp_path / "logs/sweeps/a/runs").iterdir())) == 2
    text = status(capsys, "plan.yml", "--only", "gamma=0.9", "gamma=0.99,seed=1")
    assert "3 runs: 1 done, 2 waiting" in text
    plan.write_text(plan.read_text().replace("seed: 2", "seed: 1").replace("0.9\n", "0.95\n"))
    assert "1 more in logs/sweeps/a/runs, of other settings" in status(capsys, "plan.yml")


@pytest.mark.parametrize(
    "how", [["--backend", "processes", "--jobs", "1", "--no-estimate"], ["--run-index", "0", "--runs-per-job", "2"]]
)
def test_runs_that_have_begun_are_made_in_their_folders_where_axes_change_their_order(plan, capsys, tmp_path, how):
    begun = Study(make_plan(yaml.safe_load(plan.read_text())), tmp_path / "logs/sweeps")
    begun.prepare(begun.plan.runs, "test")
    turned = {"seed": 1, "gamma": [0.9, 0.99]}
    plan.write_text(yaml.safe_dump(cartpole(study="a", axes=turned), sort_keys=False))
    main(["sweep", "plan.yml", *how])
    assert "2 of 2 runs are done" in capsys.readouterr().out
    assert {path.name for path in begun.runs.iterdir()} == {run.name for run in begun.plan.runs}


def test_labels_with_commas_and_equal_signs_are_chosen(tmp_path):
    arms = {name: {"hyperparams": {"gamma": gamma}} for name, gamma in (("a, b=1", 0.9), ("a", 0.8), ("c,d", 0.7))}
    study = Study(make_plan(cartpole(study="a", axes={"arm": arms, "seed": 2})), tmp_path)

    def chosen(*only):
        return [(run.axes["arm"], run.axes["seed"]) for run in study.chosen(only)]

    assert chosen("arm=a, b=1,seed=1", "seed = 0, arm=c,d") == [("c,d", 0), ("a, b=1", 1)]
    assert chosen("arm=a") == [("a", 0), ("a", 1)]


def test_a_plan_of_the_package(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["sweep", "small/figure_02", "--dry-run", "--no-estimate", "--only", "seed=0"])
    assert capsys.readouterr().out == "small_figure_02: 4 runs, 0 done, 0 failed, 4 to do, in logs/sweeps/small_figure_02\n"


def test_nothing_is_written_by_a_dry_run(plan, tmp_path, capsys):
    main(["sweep", "plan.yml", "--dry-run", "--no-estimate"])
    assert not (tmp_path / "logs").exists()


def test_parts_of_an_array_of_jobs(plan, capsys, tmp_path, monkeypatch):
    monkeypatch.delenv("SB3_SPARSE_BACKEND", raising=False)
    study = Study(make_plan(yaml.safe_load(plan.read_text())), tmp_path / "logs/sweeps")
    for index in (0, 1):
        main(["sweep", "plan.yml", "--run-index", str(index), "--runs-per-job", "1"])
        assert "1 of 1 runs are done" in capsys.readouterr().out
        assert [run.axes["gamma"] for run in study.to_do(study.plan.runs)] == [0.99][index:]
        # Decided for the runs, and not for whoever called the command.
        assert "SB3_SPARSE_BACKEND" not in os.environ
    with pytest.raises(SystemExit, match="--run-index 2: there are 2 runs, 1 a job"):
        main(["sweep", "plan.yml", "--run-index", "2"])


def test_a_dry_run_of_a_job_says_what_it_has_to_do(plan, capsys, tmp_path):
    main(["sweep", "plan.yml", "--run-index", "0", "--dry-run", "--no-estimate"])
    said = capsys.readouterr().out
    assert "--run-index 0: 1 of these runs, 1 to do\n  waiting gamma-0.9_seed-0-" in said
    assert "gamma-0.99" not in said
    assert not (tmp_path / "logs").exists()
    main(["sweep", "plan.yml", "--run-index", "1", "--dry-run"])
    assert "measuring 1 of 1: " in capsys.readouterr().out
    assert not (tmp_path / "logs/sweeps/a/runs").exists()
    with pytest.raises(SystemExit, match="--run-index 2: there are 2 runs, 1 a job"):
        main(["sweep", "plan.yml", "--run-index", "2", "--dry-run"])


def test_a_job_forgets_the_failures_of_its_own_runs_alone(plan, tmp_path):
    main(["sweep", "plan.yml", "--backend", "processes", "--jobs", "1", "--no-estimate"])
    runs = list((tmp_path / "logs/sweeps/a/runs").iterdir())
    for run in runs:
        (run / "done.json").rename(run / "failed.json")
    main(["sweep", "plan.yml", "--run-index", "0", "--retry-failed"])
    (failed,) = [run.name for run in runs if (run / "failed.json").exists()]
    assert failed.startswith("gamma-0.99_")


def test_a_limit_beyond_what_a_thread_can_wait_for(plan, capsys):
    # A warning of the thread would be an error here.
    main(["sweep", "plan.yml", "--run-index", "0", "--max-hours", "1e7"])
    assert "1 of 1 runs are done" in capsys.readouterr().out


def test_exit_status(plan, capsys, monkeypatch):
    # Whoever started it can start it again.
    monkeypatch.setattr(worker, "execute", lambda folder, how, **others: Outcome(folder.name, STOPPED))
    with pytest.raises(SystemExit) as ended:
        main(["sweep", "plan.yml", "--run-index", "0"])
    assert ended.value.code == EXIT_STATUS
    assert "1 are left, stopped: the same command goes on with them" in capsys.readouterr().err
    monkeypatch.undo()


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="a system that does not say it")
def test_as_many_at_a_time_as_there_are_cores_for_this_process(plan, monkeypatch):
    """Mistake of ours: all cores of the machine counted, of which a scheduler had given a few."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(7)))
    plan.write_text(plan.read_text() + "threads: 2\n")
    jobs = []
    monkeypatch.setattr(command, "run_in_processes", lambda runs, names, how, n, *others: jobs.append(n) or True)
    with pytest.raises(SystemExit):
        main(["sweep", "plan.yml", "--backend", "processes", "--no-estimate"])
    assert jobs == [3]


def test_a_failed_run_is_named_with_its_log(plan, capsys, monkeypatch):
    monkeypatch.chdir(plan.parent)
    plan.write_text(plan.read_text() + "callbacks: [{stable_baselines3.common.callbacks.EveryNTimesteps: {n_steps: 9}}]\n")
    with pytest.raises(SystemExit) as ended:
        main(["sweep", "plan.yml", "--run-index", "0", "--runs-per-job", "2"])
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert said.count("EveryNTimesteps") == 2
    assert "log.txt" in said
    assert "--retry-failed tries them again" in said
    with pytest.raises(SystemExit):
        main(["sweep", "plan.yml"])
    text = status(capsys, "plan.yml")
    assert "2 failed" in text
    assert "log.txt" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no.yml"], r"there is no plan 'no.yml': .*'figure_01', .*'small/agreement'"),
        (["."], r"\. has no plan.yml beside a folder runs: expected a plan"),
        (["plan.yml", "--only", "gamma=1"], r"--only 'gamma=1' fits to no run. There is \{'gamma': \[0.9, 0.99\]"),
        (["plan.yml", "--only", "x"], "--only 'x': expected AXIS=VALUE"),
        (["plan.yml", "--jobs", "0"], "--jobs=0"),
        (["plan.yml", "--max-hours", "-1"], "--max-hours=-1"),
        (["plan.yml", "--run-index", "-1"], "--run-index=-1"),
    ],
    ids=str,
)
def test_what_users_do_wrong(plan, arguments, message, capsys):
    with pytest.raises(SystemExit, match=message):
        main(["sweep", *arguments])


def test_the_folder_of_a_study_has_its_place(plan, tmp_path):
    (tmp_path / "a/runs").mkdir(parents=True)
    (tmp_path / "a/plan.yml").write_text(plan.read_text())
    for arguments in (["sweep"], ["sweep", "status"]):
        with pytest.raises(SystemExit, match="--folder elsewhere: a is the folder of a study, where"):
            main([*arguments, "a", "--folder", "elsewhere"])


def test_options_that_do_not_go_together(plan, capsys):
    with pytest.raises(SystemExit):
        main(["sweep", "plan.yml", "--backend", "processes", "--address", "auto"])
    assert "--address is for --backend ray" in capsys.readouterr().err


def test_sparse_products_do_not_depend_on_measurements(monkeypatch):
    for name in ("SB3_SPARSE_BACKEND", *processes.THREADS):
        monkeypatch.delenv(name, raising=False)
    found = processes.worker_environment(2)
    assert found["SB3_SPARSE_BACKEND"] == "deterministic"
    assert found["OMP_NUM_THREADS"] == "2"
    monkeypatch.setenv("SB3_SPARSE_BACKEND", "dense")
    assert processes.worker_environment(2)["SB3_SPARSE_BACKEND"] == "dense"


class Folder:
    """A run's status, as a file would have it."""

    def __init__(self, name, **status):
        self.name, self.status = name, status

    def read(self, name):
        return self.status


def test_the_live_view(capsys):
    folders = [Folder("a", timesteps=50, n_timesteps=100, mean_return=2.5), Folder("[b]<x>")]
    with View(folders, {"a": 3.0, "[b]<x>": 1.0}, live=True) as view:
        view({"begins": "a"})
        view({"begins": "[b]<x>"})
        view._looked -= 100
        view({})
        assert view._progress().startswith("0 of 2 runs, 38 %")
        view({"ends": "[b]<x>", "kind": "failed", "error": "no [such] thing"})
        view({"lost": "a", "status": 9})
    said = capsys.readouterr().out
    assert "failed  [b]<x>  1 of 2 runs, 62 %" in said
    assert "no [such] thing" in said
    assert "50 (50 %)" in said
    assert view.outcomes == {"failed": {"[b]<x>": "no [such] thing"}}


def test_what_was_done_before_is_not_taken_for_the_speed_of_now(monkeypatch):
    """A run of hours that goes on at 90 % seemed to be over in seconds."""
    folder, now = Folder("a", timesteps=90, n_timesteps=100), [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with View([folder], {"a": 10.0}, live=False) as view:
        view({"begins": "a"})
        now[0], folder.status["timesteps"] = 60.0, 91
        view._look()
        assert view._progress() == "0 of 1 runs, 91 %, 60 s, about 9 min left"


@pytest.mark.parametrize("how", [["--dry-run", "--no-estimate"], ["--run-index", "0"], ["--run-index", "0", "--dry-run"], []])
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (dict(callbacks=["sb3_sparse.PlasticityCalback"]), "callback: 'sb3_sparse.PlasticityCalback' cannot be imported"),
        (dict(callbacks=[{"sb3_sparse.SAC": {}}]), "'sb3_sparse.SAC'"),
        (dict(hyperparams={"env_wrapper": "gymnasium.wrappers.Nowhere"}), "env_wrapper: 'gymnasium.wrappers.Nowhere'"),
        (dict(hyperparams={"policy_kwargs": {"net_arch": [4], "width_scale": 2}}), "MlpPolicy has no keyword width_scale in"),
        (dict(hyperparams={"policy_kwargs": "dict(net_arch=[4], width_scale=2)"}), "MlpPolicy has no keyword width_scale in"),
    ],
)
def test_what_is_named_by_its_place_is_looked_for_before_anything_begins(plan, wrong, said, how, tmp_path, capsys):
    content = yaml.safe_load(plan.read_text())
    hyperparams = {**content.get("hyperparams", {}), **wrong.get("hyperparams", {})}
    plan.write_text(yaml.safe_dump({**content, **wrong, "hyperparams": hyperparams}))
    with pytest.raises(SystemExit) as end:
        main(["sweep", "plan.yml", "--backend", "processes", *how])
    assert said in str(end.value.code)
    assert not (tmp_path / "logs").exists()
    # Who reads the plan needs not have it.
    assert "2 runs: 2 waiting" in status(capsys, "plan.yml")
