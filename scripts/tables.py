"""
Tables and numbers of benchmarks in the docs: read from the record of a run, so that text and data cannot part.

    python scripts/tables.py record conv benchmarks/conv.py --threads 1
    python scripts/tables.py write
    python scripts/tables.py age

The first runs a script and keeps the Markdown tables that it prints, each with the heading ``###`` above it, in
``docs/data/benchmarks/conv.json``; the second puts what is kept into the pages. The tests check that it is there. The third
says how many commits changed the package or the script since each record was made.

In a page, the name of a record and the title of a table, with the lines in between made anew:

    <!-- table conv: Convolution 96-96-3-1-1-21 -->
    <!-- end -->

and one number, by its row and column:

    <!-- value conv: Convolution 96-96-3-1-1-21: S=0.9 ours, shifted: times nn.Conv2d -->4.06<!-- end -->

``<!-- command conv -->`` stands for the command that made the record, ``<!-- machine conv -->`` for the machine.
"""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from sb3_sparse.common.files import written_beside
from sb3_sparse.sweeps.runs.facts import run_facts

ROOT = Path(__file__).parent.parent
RECORDS = ROOT / "docs" / "data" / "benchmarks"
# How benchmarks name the machine, in their first line.
_MACHINE = re.compile(r"\d+ cores, (\d+ threads|Linux)")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_MARKED = re.compile(r"(<!-- (table|value|command|machine) ([^>]*?) -->)(.*?)(<!-- end -->)", re.DOTALL)


def record(name: str, command: list[str]) -> None:
    """
    Run a script and keep the tables that it prints.

    :param name: Of the record.
    :param command: Script and arguments.
    :raises subprocess.CalledProcessError: If the script fails; then nothing is kept.
    :raises ValueError: If it prints no table.
    """
    settings = [f"{key}={os.environ[key]}" for key in ("OMP_NUM_THREADS", "SB3_SPARSE_BACKEND") if key in os.environ]
    # Before: another commit may come meanwhile.
    made_of = {key: run_facts()[key] for key in ("commit", "modified")}
    lines = []
    with subprocess.Popen([sys.executable, "-u", *command], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    if not (tables := read_tables(lines)):
        raise ValueError(f"{shlex.join(command)} printed no table with a heading ### above it.")
    machine = next((line.strip() for line in lines if _MACHINE.search(line)), "")
    content = {"command": shlex.join([*settings, "python", *command]), "machine": machine, **made_of, "tables": tables}
    with written_beside(RECORDS / f"{name}.json") as beside:
        beside.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_tables(lines: list[str]) -> list[dict[str, Any]]:
    """
    The tables in what a script printed, each with title, header and rows.

    :param lines: All of it.
    """
    tables: list[dict[str, Any]] = []
    title, inside = "", False
    for line in map(str.strip, lines):
        if line.startswith("### "):
            title = line.removeprefix("### ")
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if title and cells and not inside:
            tables.append({"title": title, "header": cells, "rows": []})
        elif title and cells and not all(set(cell) <= set("-:") for cell in cells):
            tables[-1]["rows"].append(cells)
        inside = bool(cells)
    return tables


def rendered(text: str, records: Path = RECORDS) -> str:
    """
    A page with its tables and numbers as the records have them.

    :param text: The page.
    :param records: Folder of the records.
    :raises ValueError: If a record, table, row or column does not exist, or two are called so.
    """
    return _MARKED.sub(lambda found: found[1] + _content(found[2], found[3], records) + found[5], text)


def _content(kind: str, what: str, records: Path) -> str:
    name, *path = (part.strip() for part in what.split(":"))
    file = records / f"{name}.json"
    if not file.is_file():
        raise ValueError(f"there is no record {file}: make it by `python scripts/tables.py record {name} ...`.")
    content: dict[str, Any] = json.loads(file.read_text())
    if kind in ("command", "machine"):
        if not content[kind]:
            raise ValueError(f"{file} has no {kind}: the script printed no line about the machine.")
        return f"`{content[kind]}`" if kind == "command" else content[kind]
    table = _one(f"table of {name}", path[0], [(entry["title"], entry) for entry in content["tables"]])
    header, rows = table["header"], table["rows"]
    if kind == "value":
        row = _one("row", path[1], [(row[0], row) for row in rows])
        return row[_one("column", path[2], [(column, i) for i, column in enumerate(header)])]
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _one(what: str, name: str, among: list[tuple[str, Any]]) -> Any:
    found = [value for each, value in among if each == name]
    if len(found) != 1:
        number = "no" if not found else f"{len(found)} times the"
        raise ValueError(f"there is {number} {what} {name!r}: expected one of {[each for each, _ in among]}.")
    return found[0]


def ages() -> list[tuple[int, str, str]]:
    """
    How old each record is, oldest first: commits since then that changed the package or the scripts, its name, and the commit
    that it is of. Records from before they kept it are of the last commit that changed them.
    """
    found = []
    for file in RECORDS.glob("*.json"):
        content = json.loads(file.read_text())
        # A benchmark may run another one.
        scripts = [word for word in shlex.split(content["command"]) if word.endswith(".py")]
        commit = content.get("commit") or _git("log", "-1", "--format=%H", "--", str(file))
        since = _git("rev-list", "--count", f"{commit}..HEAD", "--", "sb3_sparse", "benchmarks/common.py", *scripts)
        found.append((int(since), file.stem, commit[:9] + (" with changes" if content.get("modified") else "")))
    return sorted(found, reverse=True)


def _git(*args: str) -> str:
    return subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record", help="run a benchmark and keep its tables")
    recording.add_argument("name")
    recording.add_argument("benchmark", nargs=argparse.REMAINDER, help="script and arguments")
    commands.add_parser("write", help="put what is kept into the pages")
    commands.add_parser("age", help="how many commits each record is behind")
    options = parser.parse_args()
    if options.command == "record":
        record(options.name, options.benchmark)
        return
    if options.command == "age":
        if _git("rev-parse", "--is-shallow-repository") == "true":
            sys.exit("tables.py age: this clone is shallow, and lacks the commits that are counted: git fetch --unshallow")
        print(*(f"{since:4d}  {name}  {commit}" for since, name, commit in ages()), sep="\n")
        return
    for page in PAGES:
        text = page.read_text()
        new = rendered(text)
        if new != text:
            page.write_text(new)
            print(page.relative_to(ROOT))


if __name__ == "__main__":
    main()
