"""``sb3-sparse report``: the files that are written, their numbers beside plain NumPy, and what is said of odd studies."""

import csv
import json
import re
import sys

import numpy as np
import pytest

from sb3_sparse import cli
from tests.results.studies.made import CODE, MACHINE, make_study, write_run

pytest.importorskip("matplotlib")
pytest.importorskip("plotly")
FILES = [
    "report.csv",
    "report_groups.csv",
    "report_scaling.png",
    "report_learning.png",
    "report_plasticity.png",
    "report.html",
]


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def page():
    """Without the scripts and data."""
    with open("report.html", encoding="utf-8") as file:
        return re.sub(r"<script.*?</script>", "", file.read(), flags=re.DOTALL)


def page_data():
    with open("report.html", encoding="utf-8") as file:
        (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', file.read())
    return json.loads(text)


def test_files_and_their_numbers(tmp_path, capsys):
    study = tmp_path / "study"
    folders = list(make_study(study, envs=("A-v0", "B-v0"), points=(20, 150)))
    cli.main(["report", "study"])
    said = capsys.readouterr()
    assert said.out.split() == FILES
    assert said.err == "", "nothing is mixed"
    runs = rows("report.csv")
    assert sorted(row["run"] for row in runs) == sorted(folder.name for folder in folders)
    final = {}
    for folder in folders:
        (row,) = [row for row in runs if row["run"] == folder.name]
        done, run = (json.loads((folder / name).read_text()) for name in ("done.json", "run.json"))
        assert float(row["final_return"]) == pytest.approx(np.mean(done["returns"]))
        evaluations = np.load(folder / "evaluations.npz")
        values, steps = evaluations["results"].mean(axis=1), evaluations["timesteps"]
        assert float(row["best_return"]) == pytest.approx(values.max())
        area = np.sum(np.diff(steps) * (values[1:] + values[:-1]) / 2)
        assert float(row["mean_evaluation_return"]) == pytest.approx(area / (steps[-1] - steps[0]))
        assert int(row["total_parameters"]) == sum(counts["total"] for counts in done["parameters"].values())
        assert int(row["learnable_parameters"]) == sum(counts["learnable"] for counts in done["parameters"].values())
        last = (folder / "plasticity.csv").read_text().splitlines()[-1].split(",")
        assert float(row["final_critic_srank"]) == pytest.approx(float(last[1]))
        axes = run["axes"]
        final.setdefault((row["environment"], axes["width"], axes["sparsity"]), []).append(np.mean(done["returns"]))
    groups = {(r["environment"], int(r["axis:width"]), float(r["axis:sparsity"])): r for r in rows("report_groups.csv")}
    assert len(groups) == len(final) + 6, "one for each, and over both environments"
    for key, values in final.items():
        row = groups[key]
        assert int(row["runs"]) == 5
        # A quarter of five runs is one, at each end.
        assert float(row["final_return_iqm"]) == pytest.approx(np.sort(values)[1:-1].mean())
        assert float(row["final_return_iqm_low"]) <= float(row["final_return_iqm"]) <= float(row["final_return_iqm_high"])
        assert float(row["final_return_mean"]) == pytest.approx(np.mean(values))
        assert float(row["final_return_sd"]) == pytest.approx(np.std(values, ddof=1))
        dense = final[key[0], key[1], 0.0]
        if key[2]:
            wins = np.mean([[a > b for b in dense] for a in values])
            assert float(row["probability_of_improvement"]) == pytest.approx(wins)
            assert float(row["difference_of_means"]) == pytest.approx(np.mean(values) - np.mean(dense))
        else:
            assert row["probability_of_improvement"] == ""
            assert row["comparison"] == "is the baseline"
    for name in FILES[2:5]:
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_the_data_of_the_page(tmp_path):
    list(make_study(tmp_path / "study", points=(20, 150)))
    cli.main(["report", "study", "--baseline", "width=1", "sparsity=0"])
    (task,) = page_data()["tasks"]
    (row,) = [row for row in rows("report_groups.csv") if row["group"] == "width=4 sparsity=0.8"]
    assert row["baseline"] == "width=1 sparsity=0"
    (group,) = [group for group in task["groups"] if group["label"] == "width=4 sparsity=0.8"]
    assert group["x"]["total parameters"] == 64_000
    shown = [float(row[f"final_return_iqm{end}"]) for end in ("", "_low", "_high")]
    np.testing.assert_allclose(group["values"]["final"][:3], shown, rtol=1e-4)
    assert len(group["values"]["final"][3]) == 5
    assert [len(part) for part in group["curves"]["return"]] == [20] * 4
    assert [len(part) for part in group["curves"]["plasticity/critic_srank"]] == [50] * 4, "thinned"
    assert "width=1, sparsity=0; its other axes" in page()


def test_the_same_study_gives_the_same_files(tmp_path):
    list(make_study(tmp_path / "study", widths=(1,), seeds=2, points=(5, 5)))
    cli.main(["report", "study"])
    before = {name: (tmp_path / name).read_bytes() for name in FILES}
    cli.main(["report", "study"])
    assert before == {name: (tmp_path / name).read_bytes() for name in FILES}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*FILES, "study"])


def test_what_is_mixed_is_said_first(tmp_path, capsys):
    study = tmp_path / "study"
    write_run(study, {"width": 1, "seed": 0}, [1.0])
    write_run(study, {"width": 1, "seed": 1}, [1.0], done_code={**CODE, "torch": "2.14.0"})
    write_run(study, {"width": 1, "seed": 2}, [1.0], machine={**MACHINE, "cores": 64}, commit=None, modified=True)
    write_run(study, {"width": 2, "seed": 0}, [1.0], settings={"n_timesteps": 5})
    write_run(study, {"width": 2, "seed": 1}, [1.0], settings={"hyperparams": {}})
    # What has not finished is not compared.
    write_run(study, {"width": 2, "seed": 3}, code={"torch": "1.0"})
    cli.main(["report", "study"])
    said = capsys.readouterr().err
    expected = [
        "Mixed settings of sac, Pendulum-v1, width=2: ",
        "Mixed n_timesteps within sac, Pendulum-v1: 1000 (4 run(s)); 5 (1 run(s)).",
        "Mixed torch: 2.13.0 (5 run(s)); 2.14.0 (1 run(s)).",
        "Mixed commit: 9710cc1 (4 run(s)); unknown (1 run(s)).",
        "Mixed machine: A processor, 2 cores, Linux 6.1 (4 run(s)); A processor, 64 cores, Linux 6.1 (1 run(s)).",
        "Uncommitted changes: 1 run(s) were made with code that their commit does not have.",
        "1 run(s) unfinished: in no number and no curve.",
    ]
    for sentence in expected:
        assert said.count(sentence) == 1, (sentence, said)
        assert page().split("<h2>")[0].count(sentence) == 1
    assert "Mixed sb3_sparse" not in said
    assert len(said.splitlines()) == len(expected)


def test_an_axis_that_is_a_setting_is_not_mixed(tmp_path, capsys):
    for steps in (5, 10):
        write_run(tmp_path / "study", {"n_timesteps": steps, "seed": 0}, [1.0], settings={"n_timesteps": steps})
    cli.main(["report", "study"])
    assert capsys.readouterr().err == ""


def test_failed_unfinished_and_damaged_runs(tmp_path, capsys):
    study = tmp_path / "study"
    write_run(study, {"width": 1, "seed": 0}, [7.0])
    write_run(study, {"width": 1, "seed": 1}, failed="out of <memory>", log="first\n<script>alert('log')</script>\nlast\n")
    write_run(study, {"width": 1, "seed": 2}, log="still & running\n")
    (write_run(study, {"width": 1, "seed": 3}, [9.0], folder="damaged") / "done.json").write_text("{")
    cli.main(["report", "study"])
    said = capsys.readouterr()
    assert "1 run(s) failed" in said.err
    assert "Left out: 'study/runs/damaged/done.json' cannot be read" in said.err
    assert "3 runs: 1 finished, 1 unfinished, 1 failed; 1 more cannot be read." in page()
    assert "out of &lt;memory&gt;" in page()
    assert "<pre>first\n&lt;script&gt;alert(&#x27;log&#x27;)&lt;/script&gt;\nlast</pre>" in page()
    assert "<pre>still &amp; running</pre>" in page()
    (group,) = rows("report_groups.csv")
    assert (group["runs"], float(group["final_return_iqm"])) == ("1", 7.0)
    assert {row["state"]: row["final_return"] for row in rows("report.csv")} == {
        "finished": "7.0",
        "failed": "",
        "unfinished": "",
    }


def test_a_study_of_which_nothing_has_finished(tmp_path, capsys):
    list(make_study(tmp_path / "done", widths=(1,), seeds=1, points=(5, 5)))
    cli.main(["report", "done"])
    write_run(tmp_path / "study", {"width": 1, "seed": 0}, failed="no room")
    capsys.readouterr()
    cli.main(["report", "study"])
    assert capsys.readouterr().out.split() == ["report.csv", "report.html"]
    assert "No run has finished yet." in page()
    assert "no room" in page()
    # Nothing of the other study stays beside it.
    assert sorted(path.name for path in tmp_path.glob("report*")) == ["report.csv", "report.html"]


def test_a_study_without_curves_has_no_pictures_of_them(tmp_path, capsys):
    write_run(tmp_path / "study", {"width": 1, "seed": 0}, [7.0])
    cli.main(["report", "study", "-o", "new/r.html"])
    assert capsys.readouterr().out.split() == ["new/r.csv", "new/r_groups.csv", "new/r_scaling.png", "new/r.html"]


def test_names_are_text_everywhere(tmp_path):
    evil = "</script><img src=x onerror=alert(1)>$x$&amp;"
    for seed in range(2):
        write_run(
            tmp_path / "study",
            {evil: evil, "width": 1 + seed, "seed": 0},
            [1.0],
            name=evil,
            algo=evil,
            env=evil,
            folder=f"run{seed}",
            code={evil: evil},
            evaluations=([1, 2], [1.0, 2.0]),
            plasticity={"timesteps": [1, 2], evil: [1, 2]},
        )
    cli.main(["report", "study", "-o", "report"])
    with open("report.html", encoding="utf-8") as file:
        whole = file.read()
    assert "<img" not in whole.replace(next(iter(re.findall(r"<script>/\*\*.*?</script>", whole, re.DOTALL))), "")
    assert page_data()["tasks"][0]["name"] == f"{evil}, {evil}"
    assert "&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;$x$&amp;amp;" in page()
    # Only the scripts of the page may run, and nothing is fetched.
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', whole)
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy.split(";")[1]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["study"], "'study' has no folder 'runs'"),
        (["made", "--baseline", "depth=1"], "no group has it"),
        (["made", "-o", "file/x"], "its folder is a file"),
    ],
)
def test_errors_are_sentences(tmp_path, args, said):
    list(make_study(tmp_path / "made", widths=(1,), seeds=1, points=(3, 3)))
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match=said):
        cli.main(["report", *args])
    assert not list(tmp_path.glob("report*"))


@pytest.mark.parametrize(
    ("module", "said"), [("plotly.offline", r"sb3-sparse\[sweeps\]"), ("matplotlib.figure", "matplotlib")]
)
def test_what_is_missing_is_named(tmp_path, monkeypatch, module, said):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SystemExit, match=said):
        cli.main(["report", "study"])
