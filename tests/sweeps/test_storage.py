"""Runs that are kept elsewhere: what is brought here, what is taken there, and what stays."""

import fsspec
import pytest
import yaml
from fsspec.implementations.memory import MemoryFileSystem

from sb3_sparse.cli import main
from sb3_sparse.sweeps.planning.plan import make_plan
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
