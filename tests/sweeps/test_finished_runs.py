"""`scripts/finished_runs.py`: what is packed of a study is enough to go on from, and for its report."""

import runpy
import tarfile
from pathlib import Path

import pytest
import yaml

from sb3_sparse.cli import main
from tests.sweeps.plans import cartpole

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "finished_runs.py"))
pack, unpack = SCRIPT["pack"], SCRIPT["unpack"]


@pytest.fixture
def sweep(tmp_path, monkeypatch, capsys):
    """A function that makes the missing runs of two in a folder, and says what was said."""
    monkeypatch.chdir(tmp_path)
    plan = tmp_path / "plan.yml"
    plan.write_text(yaml.safe_dump(cartpole(study="a", axes={"gamma": [0.9, 0.99], "seed": 1}), sort_keys=False))

    def make(folder, *only):
        main(["sweep", "plan.yml", "--folder", folder, "--backend", "processes", "--jobs", "1", "--no-estimate", *only])
        return capsys.readouterr().out

    return make


def test_a_study_goes_on_somewhere_else(sweep, tmp_path):
    sweep("here", "--only", "gamma=0.9")
    assert pack(tmp_path / "here/a", tmp_path / "a.tar.xz") == 1
    first = (tmp_path / "a.tar.xz").read_bytes()
    assert pack(tmp_path / "here/a", tmp_path / "a.tar.xz") == 1
    assert (tmp_path / "a.tar.xz").read_bytes() == first
    with tarfile.open(tmp_path / "a.tar.xz") as tar:
        assert not [name for name in tar.getnames() if name.endswith(".zip")]
    # There, the other one has begun to be made, and this one has a folder that says what it is.
    there = tmp_path / "there/a"
    (there / "runs").mkdir(parents=True)
    for run in (tmp_path / "here/a/runs").iterdir():
        (there / "runs" / run.name).mkdir()
        (there / "runs" / run.name / "run.json").write_bytes((run / "run.json").read_bytes())
    assert unpack(tmp_path / "a.tar.xz", there) == 1
    assert unpack(tmp_path / "a.tar.xz", there) == 0
    assert "2 runs, 1 done, 0 failed, 1 to do" in sweep("there")
    main(["report", str(there), "-o", str(tmp_path / "report")])
    assert (tmp_path / "report.csv").is_file()
    assert pack(there, tmp_path / "a.tar.xz") == 2


def test_nothing_to_pack(tmp_path):
    with pytest.raises(ValueError, match=r"has no plan\.yml"):
        pack(tmp_path, tmp_path / "a.tar.xz")
    (tmp_path / "plan.yml").touch()
    with pytest.raises(ValueError, match="no finished run"):
        pack(tmp_path, tmp_path / "a.tar.xz")
    assert [path.name for path in tmp_path.iterdir()] == ["plan.yml"]


def test_a_study_without_its_plan_is_not_packed(sweep, tmp_path):
    sweep("here", "--only", "gamma=0.9")
    (tmp_path / "here/a/plan.yml").unlink()
    with pytest.raises(ValueError, match=r"has no plan\.yml"):
        pack(tmp_path / "here/a", tmp_path / "a.tar.xz")
    assert not (tmp_path / "a.tar.xz").exists()


def test_what_cannot_be_unpacked_leaves_nothing(tmp_path):
    archive, study = tmp_path / "a.tar.xz", tmp_path / "there/a"
    with pytest.raises(ValueError, match=r"there is no .*a\.tar\.xz"):
        unpack(archive, study)
    archive.write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"a\.tar\.xz cannot be read"):
        unpack(archive, study)
    with tarfile.open(archive, "w:xz"):
        pass
    with pytest.raises(ValueError, match=r"a\.tar\.xz has no plan\.yml"):
        unpack(archive, study)
    assert not (tmp_path / "there").exists()
