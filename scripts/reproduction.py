"""
The tables of a study in docs/reproduction.md, from the CSVs that ``sb3-sparse report`` wrote into docs/data/studies/.

    sb3-sparse report logs/sweeps/agreement -o docs/data/studies/agreement --reference docs/data/simba_returns.csv
    python scripts/tables.py record agreement scripts/reproduction.py agreement
"""

import argparse
import csv
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import mean

from sb3_sparse.results.studies.tables import duration

STUDIES = Path(__file__).parent.parent / "docs" / "data" / "studies"
RETURNS = ["group", "final return of each seed", "IQM", "difference of means to the baseline", "learnable parameters", "time"]
PUBLISHED = ["group", "mean ± sd (runs)", "published", "mean ± sd (seeds)", "difference [95 % interval]", "verdict"]
INTERFERENCE = "interference_abs"
# Plasticity at the end of training: columns of the report's groups, and what they are called.
PLASTICITY = {
    "dormant_redo": "dormant ratio",
    "srank": "srank",
    "gradient_norm": "gradient norm",
    "parameter_norm": "parameter norm",
    INTERFERENCE: "interference",
}
# Figure 9 compares before and after training: the column beside it, a mean over runs.
BEFORE = "interference at first"
# Studies that measured untrained agents on observations as they come, and trained ones on normalised observations.
RAW_AT_FIRST = {"small_figure_01"}


def read(name: str) -> list[dict[str, str]]:
    """The lines of one CSV; none if the report had no such table."""
    path = STUDIES / f"{name}.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def interval(row: dict[str, str], name: str, form: str) -> str:
    """An estimate, and its interval if it has one."""
    if not row.get(name):
        return ""
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return f"{float(row[name]):{form}}" + (f" [{float(low):{form}}, {float(high):{form}}]" if low else "")


def task(row: dict[str, str], study: str) -> str:
    """The environment as tables name it, and the algorithm if the study has several: no two tables have one title."""
    several = len({run["algorithm"] for run in read(study)}) > 1
    named = {
        env: re.sub(r"-v\d+$", "", env.removeprefix("dm_control/")) for env in {run["environment"] for run in read(study)}
    }
    # Without its version, unless there is another one of this name.
    short, env = named[row["environment"]], row["environment"]
    name = short if [*named.values()].count(short) == 1 else env
    return f"{name} by {row['algorithm']}" if several else name


def of_one_task(study: str, table: str) -> list[dict[str, str]]:
    """The lines of a table that are not about several environments put together."""
    known = {run["environment"] for run in read(study)}
    return [row for row in read(f"{study}_{table}") if row["environment"] in known]


def print_table(title: str, header: list[str], rows: Iterable[list[str]]) -> None:
    """A Markdown table with the heading that ``scripts/tables.py`` looks for."""
    print(f"\n### {title}\n")
    for line in (header, ["---"] * len(header), *rows):
        print("| " + " | ".join(line) + " |")


def print_returns(study: str) -> None:
    """Final returns of each group; a table for each task."""
    finals = defaultdict(list)
    for run in read(study):
        if run["final_return"]:
            finals[run["algorithm"], run["environment"], run["group"]].append(float(run["final_return"]))
    tables = defaultdict(list)
    for row in of_one_task(study, "groups"):
        own = finals[row["algorithm"], row["environment"], row["group"]]
        difference = interval(row, "difference_of_means", "+.0f")
        tables[task(row, study)].append(
            [
                *(row["group"], ", ".join(f"{value:.0f}" for value in own), interval(row, "final_return_iqm", ".0f")),
                *(difference, f"{float(row['learnable_parameters']):,.0f}", duration(float(row["seconds_mean"]))),
            ]
        )
    for name, rows in tables.items():
        print_table(f"Returns on {name}", RETURNS, rows)


def print_published(study: str) -> None:
    """Groups beside published returns; a table for each task."""
    tables = defaultdict(list)
    for row in read(f"{study}_references"):
        if row["published"].partition("_")[0] != row["algorithm"]:
            # Of another algorithm on the same task.
            continue
        own, other = (
            f"{float(row[f'{kind}mean']):.0f} ± {float(row[f'{kind}sd']):.0f} ({row[f'{kind}runs']})"
            for kind in ("", "published_")
        )
        difference = f"{float(row['difference']):+.0f} [{float(row['low']):+.0f}, {float(row['high']):+.0f}]"
        tables[task(row, study)].append([row["group"], own, row["published"], other, difference, row["verdict"]])
    for name, rows in tables.items():
        print_table(f"Published beside ours on {name}", PUBLISHED, rows)


def print_plasticity(study: str) -> None:
    """What was measured at the end of training, and interference at first; a table for each network on each task."""
    groups = of_one_task(study, "groups")
    with_first = study not in RAW_AT_FIRST
    header = ["group", *PLASTICITY.values(), *([BEFORE] if with_first else [])]
    for network in ("critic", "actor"):
        columns = {f"final_{network}_{key}_iqm": name for key, name in PLASTICITY.items()}
        tables = defaultdict(list)
        for row in groups:
            before = [first(study, row, f"{network}_{INTERFERENCE}")] if with_first else []
            tables[task(row, study)].append([row["group"], *(interval(row, column, ".3g") for column in columns), *before])
        for name, rows in tables.items():
            if any(any(row[1:]) for row in rows):
                print_table(f"Plasticity of the {network} on {name}", header, rows)


def first(study: str, group: dict[str, str], name: str) -> str:
    """The mean over the runs of a group of what was measured first; empty if it was not."""
    same = ("algorithm", "environment", "group")
    runs = [run for run in read(study) if all(run[key] == group[key] for key in same) and run.get(f"first_{name}")]
    return f"{mean(float(run[f'first_{name}']) for run in runs):.3g}" if runs else ""


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="what the files in docs/data/studies/ are called")
    study = parser.parse_args().study
    if not (runs := read(study)):
        raise SystemExit(f"{STUDIES / study}.csv is not there: sb3-sparse report logs/sweeps/{study} -o {STUDIES / study}")
    print(", ".join(sorted({run["machine"] for run in runs if run["machine"]})))
    for show in (print_returns, print_published, print_plasticity):
        show(study)


if __name__ == "__main__":
    main()
