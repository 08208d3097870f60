"""What is read of a study's folder, and what is said of a damaged one."""

import json
import re

import numpy as np
import pytest

from sb3_sparse.results.statistics import Series
from sb3_sparse.results.studies.reading import FAILED, FINISHED, UNFINISHED, log_end, read_study, thinned
from tests.results.studies.made import write_run


def test_a_finished_run(tmp_path):
    write_run(
        tmp_path,
        {"width": 2, "sparsity": 0.75, "seed": 3},
        [10.0, 30.0],
        evaluations=([100, 200, 400], [1.0, 5.0, 3.0]),
        plasticity={"timesteps": [10, 20], "critic_srank": [4.0, 2.5]},
    )
    (run,) = read_study(tmp_path).runs
    assert (run.state, run.algo, run.env, run.seed) == (FINISHED, "sac", "Pendulum-v1", 3)
    assert run.result.parameters == {"actor": (4000, 1000), "critic": (12000, 3000)}
    # The area under the curve: 100 steps at 3 on average, 200 at 4, of 300.
    assert run.values == {"final": 20.0, "best": 5.0, "area": 1100 / 300, "plasticity/critic_srank": 2.5}
    assert run.origins[0] == run.origins[1]
    assert run.origins[0].machine == "A processor, 2 cores, Linux 6.1"


def test_states(tmp_path):
    write_run(tmp_path, {"seed": 0}, [1.0])
    write_run(tmp_path, {"seed": 1})
    write_run(tmp_path, {"seed": 2}, failed="MemoryError")
    # An earlier try of a run that went well later.
    write_run(tmp_path, {"seed": 3}, [1.0], failed="killed")
    study = read_study(tmp_path)
    states = {run.seed: run.state for run in study.runs}
    assert states == {0: FINISHED, 1: UNFINISHED, 2: FAILED, 3: FINISHED}
    assert study.in_state(FAILED)[0].error.startswith("MemoryError (2 tries")
    assert study.in_state(UNFINISHED)[0].values == {}


def test_long_curves_are_thinned():
    x = np.arange(1000.0)
    kept = thinned(Series(x, x**2), 11)
    assert kept.x.tolist() == [0, 100, 200, 300, 400, 500, 599, 699, 799, 899, 999]
    assert (kept.y == kept.x**2).all()
    assert thinned(kept, 11) is kept


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("run.json", b"{", "cannot be read"),
        ("run.json", b"[]", "expected names and values"),
        ("run.json", b"\xff\xfe", "cannot be read"),
        ("run.json", b"[" * 100_000, "cannot be read"),
        ("run.json", {"format": 2}, "format 2: this version reads 1"),
        ("run.json", {"axes": {"width": [1]}}, r"axes=\{'width': \[1\]\}"),
        ("run.json", {"axes": {"width": float("nan")}}, "axes="),
        ("run.json", {"axes": {"width": 10**400}}, "axes="),
        ("run.json", {"settings": {"algo": "sac"}}, "'algo' and 'env'"),
        ("done.json", b"", "cannot be read"),
        ("done.json", {"returns": []}, r"returns=\[\]"),
        ("done.json", {"returns": [1, float("nan")]}, "returns="),
        ("done.json", {"returns": [True]}, "returns="),
        ("done.json", {"parameters": {"actor": {"total": 3}}}, "parameters="),
        ("done.json", {"seconds": None}, "seconds=None"),
        ("evaluations.npz", b"PK", "evaluations.npz"),
        ("plasticity.csv", b"timesteps,a\n1,x\n2,3\n", "plasticity.csv"),
    ],
)
def test_a_damaged_file_is_named_and_its_run_left_out(tmp_path, file, change, said):
    whole = write_run(tmp_path, {"seed": 0}, [1.0])
    damaged = write_run(tmp_path, {"seed": 1}, [1.0])
    path = damaged / file
    if isinstance(change, dict):
        change = json.dumps({**json.loads(path.read_text()), **change}).encode()
    path.write_bytes(change)
    study = read_study(tmp_path)
    assert [run.folder for run in study.runs] == [whole]
    (problem,) = study.damaged
    assert re.search(said, problem), problem
    assert str(damaged) in problem


def test_a_folder_without_a_run_is_named(tmp_path):
    write_run(tmp_path, {"seed": 0}, [1.0])
    (tmp_path / "runs/copying").mkdir()
    (tmp_path / "runs/.writing").mkdir()
    (tmp_path / "runs/a_file").write_text("")
    study = read_study(tmp_path)
    assert len(study.runs) == 1
    assert len(study.damaged) == 1
    assert "copying" in study.damaged[0]


def test_what_is_no_study_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no folder 'runs'"):
        read_study(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(ValueError, match="no run has begun"):
        read_study(tmp_path)
    (write_run(tmp_path, {"seed": 0}, [1.0]) / "run.json").write_text("")
    with pytest.raises(ValueError, match=r"run\.json.*cannot be read"):
        read_study(tmp_path)


def test_the_end_of_a_log(tmp_path):
    lines = "".join(f"line {i}\n" for i in range(40))
    write_run(tmp_path, {"seed": 0}, log=lines + "10%\r20%\r30%\n\x1b[31mred\x1b[0m \x07<b>\r\n" + "x" * 1000 + "\n\n")
    (run,) = read_study(tmp_path).runs
    end = log_end(run).split("\n")
    assert len(end) == 15
    assert end[-4:] == ["line 39", "30%", "red <b>", "x" * 300]
    (run.folder / "log.txt").unlink()
    assert log_end(run) == ""


def test_a_large_log_is_read_from_its_end(tmp_path):
    folder = write_run(tmp_path, {"seed": 0}, log="")
    with (folder / "log.txt").open("wb") as file:
        # A sparse file: reading all of it would take its size in memory.
        file.seek(3 * 2**30)
        file.write(b"\nthe end\n")
    (run,) = read_study(tmp_path).runs
    assert log_end(run) == "the end"
