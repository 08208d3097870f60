"""Tables and numbers in the docs are those of the records that benchmarks left."""

import csv
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

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


def test_a_benchmark_leaves_its_tables(tmp_path):
    file = tmp_path / "record.json"
    code = "from common import print_table\nfor title in 'ab': print_table(title, ['', 'ms'], [['ours', '1.0']])"
    subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "benchmarks", env={"PATH": "", "SB3_SPARSE_RECORD": str(file)}, check=True
    )
    kept = json.loads(file.read_text())
    assert [table["title"] for table in kept["tables"]] == ["a", "b"]
    assert kept["tables"][0]["rows"] == [["ours", "1.0"]]
    assert "threads" in kept["machine"]


def test_the_picture_of_the_readme_is_drawn_from_the_records():
    headline = runpy.run_path(str(ROOT / "scripts" / "headline.py"))
    with headline["PICTURE"].with_suffix(".csv").open(newline="") as file:
        drawn = list(csv.reader(file))
    assert drawn == [headline["HEADER"], *headline["numbers"]()], "python scripts/headline.py"
