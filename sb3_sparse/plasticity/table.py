"""A CSV file of one row per moment of training, complete at any time."""

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path


class CsvTable:
    """
    Rows of numbers by ``timesteps``. The file is written beside and renamed, so a reader never sees half of it.

    A run that is continued keeps the rows up to where it starts and their columns; later ones are dropped. One that
    starts anew replaces the table.

    :param path: The file.
    :param columns: Names of the numbers, without ``timesteps``.
    :param start: Timesteps at which training starts or goes on.
    :raises ValueError: If the file exists and is not such a table, or cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], columns: Sequence[str], start: int = 0):
        self.path = Path(path).expanduser()
        if self.path.is_dir():
            raise ValueError(f"{self.path} is a folder: expected the name of a CSV file.")
        self.rows: list[dict[str, str]] = []
        self.header = ["timesteps", *columns]
        try:
            if self.path.is_file() and self.path.stat().st_size:
                self._continue(start)
            self._write(self.rows)
        except OSError as error:
            raise ValueError(f"{self.path} cannot be written ({error}): choose another csv_path.") from error

    def _continue(self, start: int) -> None:
        with self.path.open(newline="") as file:
            reader = csv.DictReader(file)
            header = list(reader.fieldnames or ())
            if header[:1] != ["timesteps"]:
                raise ValueError(f"{self.path} is not a table of plasticity metrics: its first column is not 'timesteps'.")
            self.rows = [row for row in reader if int(row["timesteps"]) <= start] if start else []
        if not start:
            return
        # Columns of a run that logged others stay in their place.
        self.header = header + [column for column in self.header if column not in header]

    def append(self, timesteps: int, values: Mapping[str, float]) -> None:
        """
        Add a row. What is missing in ``values`` stays empty; a row of the same timesteps is replaced.

        :param timesteps: When.
        :param values: Numbers by column.
        """
        row = {"timesteps": str(timesteps), **{column: f"{values[column]:.8g}" for column in self.header if column in values}}
        self.rows = [*(known for known in self.rows if known["timesteps"] != row["timesteps"]), row]
        self._write(self.rows)

    def _write(self, rows: Sequence[Mapping[str, str]]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_name(self.path.name + ".tmp")
        with beside.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.header, restval="")
            writer.writeheader()
            writer.writerows(rows)
        os.replace(beside, self.path)
