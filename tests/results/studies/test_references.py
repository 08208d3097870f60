"""Groups of a study beside published returns."""

import csv
import json

import numpy as np
import pytest
from scipy import stats

from sb3_sparse import cli
from sb3_sparse.results.statistics import Summarized, difference_of_means, student_quantile
from sb3_sparse.results.studies.grouping import group_study
from sb3_sparse.results.studies.reading import read_study
from sb3_sparse.results.studies.references import beside_references, read_references, task_of
from sb3_sparse.results.studies.summary import summarize
from tests.results.studies.made import write_run

CSV = """algorithm,task,frames,mean_return,sd,seeds
sac_simba,cheetah_run,2000,429.0,58.1,10
sac_simba,cheetah_run,4000,600.0,10.0,10
sac_mlp,cheetah_run,2000,178.6,52.5,10
sac_mlp,dog_run,2000,8.7,3.7,10
"""
REPEATED = {"env_wrapper": [{"sb3_sparse.dmc.DMCWrapper": {"action_repeat": 2}}]}


def make(study, returns, env_wrapper=REPEATED["env_wrapper"], **axes):
    for seed, value in enumerate(returns):
        settings = {"n_timesteps": 1000, "hyperparams": {"env_wrapper": env_wrapper, "policy_kwargs": axes}}
        write_run(study, {**axes, "seed": seed}, [value], env="dm_control/cheetah-run-v0", settings=settings)


@pytest.mark.parametrize("degrees", [1.0, 1.7, 2.0, 5.5, 30.0, 1e4])
@pytest.mark.parametrize("probability", [0.5, 0.9, 0.975, 0.999])
def test_quantiles_are_those_of_scipy(degrees, probability):
    expected = stats.t.ppf(probability, degrees)
    assert student_quantile(probability, degrees) == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_the_interval_is_welchs():
    rng = np.random.default_rng(0)
    for n, m in ((2, 2), (3, 10), (10, 3), (50, 7)):
        first, second = rng.normal(3, 1, n), rng.normal(2, 5, m)
        found = difference_of_means(*(Summarized(x.mean(), x.std(ddof=1), len(x)) for x in (first, second)))
        expected = stats.ttest_ind(first, second, equal_var=False).confidence_interval(0.95)
        np.testing.assert_allclose(found, [first.mean() - second.mean(), *expected], rtol=1e-4)


def test_nothing_varies():
    assert difference_of_means(Summarized(2.0, 0.0, 3), Summarized(1.0, 0.0, 3)) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("wrong", [Summarized(1.0, 1.0, 1), Summarized(1.0, float("nan"), 3), Summarized(1.0, -1.0, 3)])
def test_what_says_nothing_of_a_mean(wrong):
    with pytest.raises(ValueError, match="expected two runs at least"):
        difference_of_means(Summarized(1.0, 1.0, 3), wrong)


def test_groups_stand_beside_what_was_published_for_as_many_frames(tmp_path):
    path = tmp_path / "published.csv"
    path.write_text(CSV)
    make(tmp_path / "study", [400.0, 440.0, 450.0], sparsity=0.0)
    make(tmp_path / "study", [200.0], sparsity=0.8)
    groups = group_study(read_study(tmp_path / "study")).groups
    found = beside_references(groups, read_references(path)[0])
    # 1,000 decisions are 2,000 frames; of a single run no interval is known.
    assert [(each.group.axes["sparsity"], each.published.algorithm) for each in found] == [
        (0.0, "sac_simba"),
        (0.0, "sac_mlp"),
    ]
    assert [each.verdict for each in found] == ["may be equal", "differs"]
    assert found[0].own == Summarized(430.0, pytest.approx(26.457513), 3)
    assert found[1].difference == pytest.approx(430.0 - 178.6)


def test_runs_that_ended_early_do_not_stand_beside_others(tmp_path):
    """Mistake of ours: they counted as trained for n_timesteps."""
    path = tmp_path / "published.csv"
    path.write_text(CSV)
    make(tmp_path / "study", [400.0, 440.0, 450.0], sparsity=0.0)
    place = next((tmp_path / "study").rglob("done.json"))
    place.write_text(place.read_text().replace('"timesteps": 1000', '"timesteps": 200'))
    study = read_study(tmp_path / "study")
    assert beside_references(group_study(study).groups, read_references(path)[0]) == []
    assert any(
        "1 run(s) ended before the steps of the plan, by stop_at, stop_after or a callback, after 200 steps" in line
        for line in summarize(study).warnings
    )


@pytest.mark.parametrize(
    "written", ["{0}", ["{0}"], [{"{0}": {}}], [{"{0}": None}], [{"{0}": {"action_repeat": None}}]], ids=str
)
def test_frames_are_as_many_where_the_default_of_a_wrapper_says_so(tmp_path, written):
    path = tmp_path / "published.csv"
    path.write_text(CSV)
    wrapper = json.loads(json.dumps(written).replace("{0}", "sb3_sparse.dmc.DMCWrapper"))
    make(tmp_path / "study", [400.0, 440.0], env_wrapper=wrapper, sparsity=0.0)
    found = beside_references(group_study(read_study(tmp_path / "study")).groups, read_references(path)[0])
    assert [each.published.frames for each in found] == [2000, 2000]


def test_the_command_writes_them_down(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "published.csv"
    path.write_text(CSV.replace("sac_mlp", "<i>sac</i>"))
    make(tmp_path / "study", [400.0, 440.0, 450.0], sparsity=0.0)
    cli.main(["report", "study", "--reference", "published.csv"])
    assert "report_references.csv" in capsys.readouterr().out
    with open("report_references.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["verdict"] for row in rows] == ["may be equal", "differs"]
    assert float(rows[0]["difference"]) == pytest.approx(1.0)
    text = (tmp_path / "report.html").read_text()
    assert "Beside published returns" in text
    assert "&lt;i&gt;sac&lt;/i&gt;" in text
    assert "<i>sac</i>" not in text
    # Without it, what an earlier report wrote goes away.
    cli.main(["report", "study"])
    assert not (tmp_path / "report_references.csv").exists()
    path.write_text(CSV.replace("cheetah_run", "cheetah_walk"))
    cli.main(["report", "study", "--reference", "published.csv"])
    assert "nothing in published.csv has the tasks and frames of the study" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "columns algorithm, task, frames"),
        (CSV.replace("429.0", "x"), r"published.csv, line 2: expected a CSV.*mean_return='x'"),
        (CSV.replace("58.1", "nan"), r"line 2: .*sd=nan: expected a number that is not negative"),
        (CSV.replace("52.5", "-2"), r"line 4: .*sd=-2"),
        (CSV.replace("178.6", "inf"), r"line 4: .*mean_return=inf"),
        (CSV.replace("4000", "0"), r"line 3: .*frames=0"),
        (CSV.replace("3.7,10", "3.7,0"), r"line 5: .*seeds=0"),
        (CSV.replace("3.7,10", "3.7"), r"line 5: .*seeds=None"),
        (CSV.replace("3.7,10", "3,7,10"), r"line 5: .*as many cells as columns"),
        (CSV + "x" * 140_000, "line 6: field larger than field limit"),
        (CSV.partition("\n")[0] + "\n", "no line below"),
        ("", "there is no algorithm, task"),
        (CSV.encode("utf-16"), "expected a CSV in UTF-8"),
        (None, "No such file"),
    ],
)
def test_files_that_are_something_else(tmp_path, text, message):
    path = tmp_path / "published.csv"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message):
        read_references(path)


def test_a_line_of_one_seed_is_left_out_with_a_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "published.csv").write_text(CSV + "der,cheetah_run,2000,500.0,nan,1\n", encoding="utf-8-sig")
    make(tmp_path / "study", [400.0, 440.0, 450.0], sparsity=0.0)
    cli.main(["report", "study", "--reference", "published.csv"])
    assert "sb3-sparse report: published.csv, line 6: one seed, of which no interval is known." in capsys.readouterr().err
    with open("report_references.csv", newline="") as file:
        assert [row["published"] for row in csv.DictReader(file)] == ["sac_simba", "sac_mlp"]


def test_names_of_tasks():
    assert task_of("dm_control/ball_in_cup-catch-v0") == "ball_in_cup_catch"
    assert task_of("Pendulum-v1") == "Pendulum"
