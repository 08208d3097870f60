"""Runs that are kept elsewhere: what is brought here, what is taken there, and what stays."""

import tempfile
import warnings

import fsspec
import pytest
import yaml
from fsspec.implementations.memory import MemoryFileSystem

from sb3_sparse.cli import main
from sb3_sparse.sweeps.backends import ray_cluster
from sb3_sparse.sweeps.planning.plan import make_plan
from sb3_sparse.sweeps.runs.execute import DONE
from sb3_sparse.sweeps.runs.storage import Storage
from sb3_sparse.sweeps.study import Study
from tests.sweeps.plans import cartpole


class Listing(MemoryFileSystem):
    """Answers from a list of files, as those of object stores do, until it is told to forget it."""

    protocol = "listing"
    listed = None

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("listing://", "memory://"))

    def _files(self):
        if self.listed is None:
            self.listed = dict(self.store)
        return self.listed

    def exists(self, path, **kwargs):
        return self._strip_protocol(path) in self._files()

    def find(self, path, **kwargs):
        return [name for name in self._files() if name.startswith(self._strip_protocol(path) + "/")]

    def invalidate_cache(self, path=None):
        self.listed = None


def a_run(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    return folder


def files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_run_that_was_finished_here_stays_done_and_is_taken_there(tmp_path):
    """Mistake of ours: its done mark went away, since the storage had none, and it was trained again."""
    there, here = tmp_path / "there", tmp_path / "here" / "x"
    storage = Storage(f"file://{there}")
    storage.send("x", a_run(here, "run.json", "status.json", "exact/checkpoint-1/a"))
    (here / "exact/checkpoint-1/a").unlink()
    a_run(here, "done.json", "agent.zip")
    finished = files(here)
    another = Storage(f"file://{there}")
    another.fetch_marks("x", here)
    assert files(here) == finished
    assert another.state("x", here) == "done"
    another.offer("x", here)
    assert files(there / "x") == finished


def test_what_a_dry_run_learns_from_a_storage_is_not_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    content = cartpole(study="a", axes={"gamma": [0.9, 0.95, 0.97, 0.99], "seed": 1})
    (tmp_path / "plan.yml").write_text(yaml.safe_dump(content, sort_keys=False))
    study = Study(make_plan(content), tmp_path / "logs/sweeps")
    storage = Storage(f"file://{tmp_path}/there/a/runs")
    of_runs = zip(("done.json", "failed.json", "status.json", "exact/checkpoint-1/a"), study.plan.runs, strict=True)
    for mark, run in of_runs:
        storage.send(run.name, a_run(tmp_path / "made" / run.name, "run.json", mark))
    # What is here knows less, and is behind in one.
    a_run(study.runs / study.plan.runs[2].name, "run.json", "failed.json")
    before = files(tmp_path)
    main(["sweep", "plan.yml", "--storage", f"file://{tmp_path}/there", "--dry-run", "--no-estimate"])
    assert "a: 4 runs, 1 done, 1 failed, 2 to do" in capsys.readouterr().out
    assert files(tmp_path) == before


@pytest.fixture
def listing():
    fsspec.register_implementation("listing", Listing, clobber=True)
    Listing.store.clear()
    yield "listing://runs"
    Listing.store.clear()


def test_what_others_have_written_since_the_last_look_is_seen(tmp_path, listing):
    """Mistake of ours: the fifth time that a run was lost, it seemed not to have got further since the first one."""
    storage, folder = Storage(listing), tmp_path / "here"
    storage.fetch_marks("x", folder)
    # By another process, on another machine.
    other = MemoryFileSystem()
    for name in ("run.json", "status.json"):
        other.pipe_file(f"/runs/x/{name}", b"{}")
    assert storage.state("x", folder) == "stopped"
    storage.fetch_marks("x", folder)
    assert files(folder) == {"run.json", "status.json"}
    other.pipe_file("/runs/x/failed.json", b"{}")
    storage.offer("x", folder)
    assert not other.exists("/runs/x/failed.json")
    other.pipe_file("/runs/x/evaluations.npz", b"")
    storage.fetch("x", folder)
    assert "evaluations.npz" in files(folder)
    other.pipe_file("/runs/x/old", b"")
    storage.send("x", folder)
    other.pipe_file("/runs/x/new", b"")
    storage.send("x", folder)
    assert not other.exists("/runs/x/new")


class Away(Exception):
    """Of a storage, whose errors have kinds of their own."""


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """
    A function that makes a run as a task of Ray does, if the storage does not take what it is given while ``is_away`` says
    so; its folder in the storage, and the one on its machine.
    """
    (tmp_path / "machine").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "machine"))
    monkeypatch.setattr(ray_cluster, "PAUSES", (0, 0))
    plan = make_plan(cartpole(checkpoint_every=50, hyperparams={**cartpole()["hyperparams"], "learning_starts": 190}))
    study, (run,) = Study(plan, tmp_path / "studies"), plan.runs
    how, send, url = study.prepare(plan.runs, ""), Storage.send, f"file://{tmp_path}/there"
    Storage(url).offer(run.name, study.folder(run).path)

    def make(is_away):
        def send_or_not(storage, name, folder):
            if is_away(folder):
                raise Away("for a moment")
            send(storage, name, folder)

        monkeypatch.setattr(Storage, "send", send_or_not)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            return ray_cluster._run_stored(run.name, how, url), [str(each.message) for each in said]

    def machine():
        return next((tmp_path / "machine").glob(f"*/*/{run.name}"), None)

    return make, tmp_path / "there" / run.name, machine


def test_a_storage_that_is_away_for_a_moment_costs_nothing(stored):
    """Mistake of ours: what it raised at a checkpoint was a failure of the run, and at the end all of it was thrown away."""
    make, there, machine = stored
    n_tries = []

    def is_away(folder):
        is_done = (folder / "done.json").exists()
        n_tries.extend([is_done] * is_done)
        return not is_done or len(n_tries) < 3

    outcome, said = make(is_away)
    assert outcome.kind == DONE
    assert len([line for line in said if "the storage does not take what there is (Away('for a moment'))" in line]) >= 3
    assert {"done.json", "CartPole-v1.zip"} <= files(there)
    assert not any(name.startswith("exact") for name in files(there))
    assert machine() is None


def test_what_a_storage_never_took_stays_and_is_taken_there_with_the_next_try(stored, monkeypatch):
    make, there, machine = stored
    with pytest.raises(Away):
        make(lambda folder: True)
    assert {"done.json", "CartPole-v1.zip"} <= files(machine())
    assert "done.json" not in files(there)
    # Which trains nothing.
    monkeypatch.setattr(ray_cluster, "execute", None)
    assert make(lambda folder: False)[0].kind == DONE
    assert {"done.json", "CartPole-v1.zip"} <= files(there)
    assert machine() is None
