"""Tables and numbers in the docs are those of the records that benchmarks left."""

import csv
import json
import re
import runpy
import subprocess
from pathlib import Path

import numpy as np
import pytest

from sb3_sparse.cli import main
from tests.results.studies.made import make_study

ROOT = Path(__file__).parent.parent
tables = runpy.run_path(str(ROOT / "scripts" / "tables.py"))
rendered, PAGES = tables["rendered"], tables["PAGES"]

RECORD = {
    "command": "python benchmarks/conv.py",
    "machine": "x86_64",
    "tables": [
        {"title": "A layer", "header": ["", "ms", "times dense"], "rows": [["dense", "4.0", "1.00"], ["ours", "1.0", "4.00"]]}
    ],
}


@pytest.fixture
def records(tmp_path):
    (tmp_path / "conv.json").write_text(json.dumps(RECORD))
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_pages_say_what_the_records_say(page):
    text = page.read_text()
    assert rendered(text) == text, "python scripts/tables.py write"


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_no_line_of_a_paragraph_begins_with_a_comment(page):
    # To Markdown, the rest of such a line would be HTML: no links, and a paragraph of its own.
    assert not re.findall(r"^ *<!-- (?:value|command|machine) .*", page.read_text(), re.MULTILINE)


def test_a_table(records):
    page = "before\n<!-- table conv: A layer -->\nold\n<!-- end -->\nbehind"
    table = "|  | ms | times dense |\n| --- | ---: | ---: |\n| dense | 4.0 | 1.00 |\n| ours | 1.0 | 4.00 |"
    assert rendered(page, records) == f"before\n<!-- table conv: A layer -->\n{table}\n<!-- end -->\nbehind"


def test_numbers_command_and_machine(records):
    page = (
        "<!-- value conv: A layer: ours: times dense -->3<!-- end --> times, by <!-- command conv --><!-- end --> "
        "on <!-- machine conv -->another one<!-- end -->."
    )
    expected = (
        "<!-- value conv: A layer: ours: times dense -->4.00<!-- end --> times, by "
        "<!-- command conv -->`python benchmarks/conv.py`<!-- end --> on <!-- machine conv -->x86_64<!-- end -->."
    )
    assert rendered(page, records) == expected
    assert rendered(expected, records) == expected


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("table nothing: A layer", "no record .*nothing.json"),
        ("table conv: Another layer", "no table of conv 'Another layer'"),
        ("value conv: A layer: theirs: ms", "no row 'theirs'"),
        ("value conv: A layer: ours: seconds", "no column 'seconds'"),
    ],
)
def test_what_does_not_exist(what, says, records):
    with pytest.raises(ValueError, match=says):
        rendered(f"<!-- {what} --><!-- end -->", records)


def recorded(tmp_path, monkeypatch, code):
    """What is kept of a script."""
    (tmp_path / "script.py").write_text(f"import sys\nsys.path.insert(0, {str(ROOT / 'benchmarks')!r})\n{code}")
    monkeypatch.setitem(tables["record"].__globals__, "RECORDS", tmp_path / "records")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("SB3_SPARSE_BACKEND", raising=False)
    tables["record"]("name", [str(tmp_path / "script.py"), "--quick"])
    return json.loads((tmp_path / "records" / "name.json").read_text())


def test_a_script_leaves_the_tables_that_it_prints(tmp_path, monkeypatch):
    kept = recorded(
        tmp_path,
        monkeypatch,
        "from common import machine, print_table\nprint(machine())\n"
        "for title in 'ab': print_table(title, ['', 'ms', ''], [['ours', '1.0', ''], ['-', '2.0', 'x']])\n"
        "print('some words')",
    )
    assert [table["title"] for table in kept["tables"]] == ["a", "b"]
    assert kept["tables"][0] == {"title": "a", "header": ["", "ms", ""], "rows": [["ours", "1.0", ""], ["-", "2.0", "x"]]}
    assert "threads" in kept["machine"]
    assert kept["command"].startswith("OMP_NUM_THREADS=1 python ")
    assert kept["command"].endswith("script.py --quick")
    assert kept["commit"] == tables["_git"]("rev-parse", "HEAD")
    assert kept["modified"] == bool(tables["_git"]("status", "--porcelain", "--untracked-files=no", "sb3_sparse"))


@pytest.mark.parametrize("code", ["print('nothing')", "print('### a\\n| b |\\n|---|')\nsys.exit(3)"])
def test_a_script_that_fails_or_has_no_table_leaves_nothing(code, tmp_path, monkeypatch):
    with pytest.raises((ValueError, subprocess.CalledProcessError), match=r"no table|exit status 3"):
        recorded(tmp_path, monkeypatch, code)
    assert not (tmp_path / "records").exists()


def test_the_picture_of_sizes_is_of_the_groups_of_a_study(tmp_path, monkeypatch):
    script = runpy.run_path(str(ROOT / "scripts" / "size_picture.py"))
    header = ["axis:sparsity", *script["SIZES"], *script["RETURN"]]
    groups = [("0.8", 400, 80, 8, 7, 9), ("0.8", 100, 20, 4, 3, 5), ("0", 100, 100, 5, 4, 6), ("0.9", 400, 40, 9, 8, 9.5)]
    with (tmp_path / "made_groups.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *groups])
    for name, value in (("STUDIES", tmp_path), ("PICTURE", tmp_path / "size.png")):
        monkeypatch.setitem(script["main"].__globals__, name, value)
    monkeypatch.setattr("sys.argv", ["size_picture.py", "made"])
    script["main"]()
    assert (tmp_path / "size.png").stat().st_size > 10_000
    with (tmp_path / "size.csv").open(newline="") as file:
        _, *drawn = csv.reader(file)
    assert [row[1:] for row in drawn] == [
        ["dense", "100", "5.0", "4.0", "6.0"],
        ["ours, S = 0.8", "100", "4.0", "3.0", "5.0"],
        ["ours, S = 0.8", "400", "8.0", "7.0", "9.0"],
        ["ours, S = 0.9", "400", "9.0", "8.0", "9.5"],
        ["dense", "100", "5.0", "4.0", "6.0"],
        ["ours, S = 0.8", "20", "4.0", "3.0", "5.0"],
        ["ours, S = 0.8", "80", "8.0", "7.0", "9.0"],
        ["ours, S = 0.9", "40", "9.0", "8.0", "9.5"],
    ]


def test_the_picture_of_the_readme_is_drawn_from_the_records():
    headline = runpy.run_path(str(ROOT / "scripts" / "headline.py"))
    with headline["PICTURE"].with_suffix(".csv").open(newline="") as file:
        drawn = list(csv.reader(file))
    assert drawn == [headline["HEADER"], *headline["numbers"]()], "python scripts/headline.py"


def test_the_picture_of_sizes_is_drawn_from_the_study():
    size_picture = runpy.run_path(str(ROOT / "scripts" / "size_picture.py"))
    with size_picture["PICTURE"].with_suffix(".csv").open(newline="") as file:
        drawn = list(csv.reader(file))
    study = "small_figure_01"
    assert drawn == [size_picture["HEADER"], *size_picture["numbers"](study)], f"python scripts/size_picture.py {study}"


def test_what_has_two_rows_of_a_name_or_no_machine_cannot_be_told(tmp_path):
    table = RECORD["tables"][0]
    (tmp_path / "twice.json").write_text(
        json.dumps({**RECORD, "machine": "", "tables": [{**table, "rows": table["rows"] * 2}]})
    )
    with pytest.raises(ValueError, match="there is 2 times the row 'ours'"):
        rendered("<!-- value twice: A layer: ours: ms --><!-- end -->", tmp_path)
    with pytest.raises(ValueError, match="has no machine"):
        rendered("<!-- machine twice --><!-- end -->", tmp_path)


def test_versions_of_an_environment_are_told_apart(monkeypatch):
    """Mistake of ours: those of Hopper-v4 and Hopper-v5 stood in one table."""
    task = runpy.run_path(str(ROOT / "scripts" / "reproduction.py"))["task"]
    rows = [{"environment": name, "algorithm": "sac"} for name in ("Hopper-v4", "Hopper-v5", "dm_control/dog-run-v0", "Mine")]
    monkeypatch.setitem(task.__globals__, "read", lambda study: rows)
    assert [task(row, "study") for row in rows] == ["Hopper-v4", "Hopper-v5", "dog-run", "Mine"]


def test_a_record_is_as_old_as_every_script_in_its_command(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setitem(tables["ages"].__globals__, "RECORDS", tmp_path)
    monkeypatch.setitem(tables["ages"].__globals__, "_git", lambda *args: asked.append(args) or "3")
    content = {"command": "python benchmarks/best_dense.py benchmarks/conv.py", "commit": "0123456789", "modified": True}
    (tmp_path / "conv.json").write_text(json.dumps(content))
    assert tables["ages"]() == [(3, "conv", "012345678 with changes")]
    assert asked[0][2] == "0123456789..HEAD"
    assert {"sb3_sparse", "benchmarks/best_dense.py", "benchmarks/conv.py"} <= set(asked[0])


def test_a_shallow_clone_knows_no_age(tmp_path, monkeypatch, capsys):
    """Mistake of ours: every record was 0 commits behind there."""
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.example"]
    subprocess.run(["git", "init", "--quiet", tmp_path / "whole"], check=True)
    for message in ("one", "two"):
        commit = [*git, "commit", "--quiet", "--allow-empty", "-m", message]
        subprocess.run(commit, cwd=tmp_path / "whole", check=True)
    for depth in ([], ["--depth", "1"]):
        clone = ["git", "clone", "--quiet", *depth, f"file://{tmp_path}/whole", tmp_path / f"clone{len(depth)}"]
        subprocess.run(clone, check=True)
    monkeypatch.setattr("sys.argv", ["tables.py", "age"])
    monkeypatch.setitem(tables["ages"].__globals__, "RECORDS", tmp_path)
    monkeypatch.setitem(tables["ages"].__globals__, "ROOT", tmp_path / "clone0")
    tables["main"]()
    assert capsys.readouterr().out == "\n"
    monkeypatch.setitem(tables["ages"].__globals__, "ROOT", tmp_path / "clone2")
    with pytest.raises(SystemExit, match=r"^tables.py age: this clone is shallow, .*: git fetch --unshallow$"):
        tables["main"]()


def test_tables_of_a_study(tmp_path, monkeypatch, capsys):
    """Mistake of ours: groups of several tasks stood in one table of plasticity, under the same names."""
    tasks = ("dm_control/cheetah-run-v0", "dm_control/dog-run-v0")
    list(make_study(tmp_path / "study", widths=(1,), seeds=3, envs=tasks, series=5))
    (tmp_path / "published.csv").write_text(
        "algorithm,task,frames,mean_return,sd,seeds\nsac_simba,cheetah_run,1000,300,20,10\n"
        # Stands beside nothing of another algorithm.
        "ddpg_simba,cheetah_run,1000,400,20,10\n"
    )
    main(["report", str(tmp_path / "study"), "-o", str(tmp_path / "width"), "--reference", str(tmp_path / "published.csv")])
    capsys.readouterr()
    script = runpy.run_path(str(ROOT / "scripts" / "reproduction.py"))
    monkeypatch.setitem(script["read"].__globals__, "STUDIES", tmp_path)
    monkeypatch.setattr("sys.argv", ["reproduction.py", "width"])
    script["main"]()
    out = capsys.readouterr().out.splitlines()
    found = {table["title"]: table["rows"] for table in tables["read_tables"](out)}
    assert list(found) == [
        *("Returns on cheetah-run", "Returns on dog-run", "Published beside ours on cheetah-run"),
        *("Plasticity of the critic on cheetah-run", "Plasticity of the critic on dog-run"),
    ]
    assert tables["_MACHINE"].search(out[0])
    rows = list(csv.DictReader((tmp_path / "width.csv").read_text().splitlines()))
    for name, env in zip(("cheetah-run", "dog-run"), tasks, strict=True):
        for row, sparsity in zip(found[f"Returns on {name}"], ("0.0", "0.8"), strict=True):
            of_group = [run for run in rows if run["axis:sparsity"] == sparsity and run["environment"] == env]
            finals = [f"{float(run['final_return']):.0f}" for run in of_group]
            assert len(finals) == 3
            assert row[1] == ", ".join(finals)
            # Interference before and after training.
            before, after = (
                f"{np.mean([float(run[f'{when}_critic_interference_abs']) for run in of_group]):.3g}"
                for when in ("first", "final")
            )
            plasticity = next(line for line in found[f"Plasticity of the critic on {name}"] if line[0] == row[0])
            assert plasticity[-1] == before
            assert plasticity[-2].startswith(f"{after} [")
            assert sparsity != "0.0" or float(before) < float(after)
        assert len(found[f"Plasticity of the critic on {name}"]) == 2
    of_cheetah = [run for run in rows if run["axis:sparsity"] == "0.8" and run["environment"] == tasks[0]]
    ours = np.mean([float(run["final_return"]) for run in of_cheetah])
    published = found["Published beside ours on cheetah-run"]
    assert published[1][4].startswith(f"{ours - 300:+.0f} [")
    assert [row[2] for row in published] == ["sac_simba", "sac_simba"]
