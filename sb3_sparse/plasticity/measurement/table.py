"""A CSV file of one row per moment of training, complete at any time."""

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from sb3_sparse.common.files import check_writable, written_beside


class CsvTable:
    """
    Rows of numbers by ``timesteps``. The file is written beside and renamed, so a reader never sees half of it.

    A run that is continued keeps the rows up to where it starts and their columns; later ones are dropped. One that
    starts anew replaces the table.

    Nothing is written before :meth:`begin` or :meth:`append`.

    :param path: The file.
    :param columns: Names of the numbers, without ``timesteps``.
    :param start: Timesteps at which training starts or goes on.
    :raises ValueError: If the file exists and is not such a table, is damaged, or cannot be written.
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
            check_writable(self.path)
        except OSError as error:
            raise self._unwritable(error) from error

    def begin(self) -> None:
        """
        Write what there is so far, in place of what was there.

        :raises ValueError: If the file cannot be written.
        """
        try:
            self._write(self.rows)
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> ValueError:
        return ValueError(f"{self.path} cannot be written ({error}): choose another csv_path.")

    def _continue(self, start: int) -> None:
        line = 1
        try:
            with self.path.open(newline="") as file:
                reader = csv.reader(file)
                header = next(reader, [])
                if header[:1] != ["timesteps"]:
                    raise ValueError(f"{self.path} is not a table of plasticity metrics: its first column is not 'timesteps'.")
                for cells in reader if start else ():
                    line = reader.line_num
                    if cells:
                        row = self._row(header, cells, line)
                        self.rows += [row] if int(row["timesteps"]) <= start else []
        except (csv.Error, UnicodeDecodeError) as error:
            raise self._damaged(line, str(error)) from error
        if not start:
            return
        # Columns of a run that logged others stay in their place.
        self.header = header + [column for column in self.header if column not in header]

    def _row(self, header: list[str], cells: list[str], line: int) -> dict[str, str]:
        if len(cells) != len(header):
            raise self._damaged(line, f"{len(cells)} cells, and {len(header)} columns")
        for column, cell in zip(header, cells, strict=True):
            if column == "timesteps" and not cell.isdecimal():
                raise self._damaged(line, f"timesteps is {cell!r}, which is no whole number")
            try:
                float(cell or "nan")
            except ValueError as error:
                raise self._damaged(line, f"{column} is {cell!r}, which is no number") from error
        return dict(zip(header, cells, strict=True))

    def _damaged(self, line: int, problem: str) -> ValueError:
        return ValueError(
            f"{self.path}, line {line}: {problem}. The file is damaged: repair or remove it, or choose another csv_path."
        )

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
        with written_beside(self.path) as beside, beside.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.header, restval="")
            writer.writeheader()
            writer.writerows(rows)
