"""Runs whose folders are kept elsewhere: anything that fsspec knows by a URL, such as ``s3://bucket/studies``."""

import shutil
from pathlib import Path
from typing import Any

from sb3_sparse.results.studies.reading import DONE_FILE, FAILED_FILE, RUN_FILE
from sb3_sparse.resume.files.lease import LOCK
from sb3_sparse.sweeps.runs.run_folder import STATUS_FILE
from sb3_sparse.zoo.exact_runs import FOLDER as CHECKPOINTS

# What says how far a run is.
_MARKS = (RUN_FILE, STATUS_FILE, FAILED_FILE, DONE_FILE)


class Storage:
    """
    Where folders of runs are kept.

    One process at a time writes the folder of a run there: the one that a scheduler gave it to.

    :param url: Of the folder of all runs.
    :raises ValueError: If nothing there is known, or the package for such a URL is missing.
    """

    def __init__(self, url: str):
        try:
            from fsspec.core import url_to_fs
        except ImportError as error:
            raise ImportError('--storage needs fsspec: pip install "sb3-sparse[sweeps]"') from error
        try:
            self._fs, self._root = url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise ValueError(f"--storage {url!r}: {error}") from error
        self._url = url
        # Of what was sent: time and size of each file.
        self._sent: dict[str, tuple[int, int]] = {}

    def fetch(self, name: str, folder: Path, whole: bool = True) -> None:
        """
        Bring the folder of a run here, in place of what is here.

        :param name: Of the run.
        :param folder: Here.
        :param whole: With checkpoints; else all that stays of a run.
        """
        place = f"{self._root}/{name}"
        found = self._list(place)
        shutil.rmtree(folder, ignore_errors=True)
        for path in found:
            if whole or not path.startswith(f"{CHECKPOINTS}/"):
                target = folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                self._fs.get_file(f"{place}/{path}", str(target))

    def fetch_marks(self, name: str, folder: Path) -> None:
        """
        Bring what says how far a run is.

        :param name: Of the run.
        :param folder: Here.
        """
        place = f"{self._root}/{name}"
        for mark in _MARKS:
            if self._fs.exists(f"{place}/{mark}"):
                folder.mkdir(parents=True, exist_ok=True)
                self._fs.get_file(f"{place}/{mark}", str(folder / mark))
            else:
                (folder / mark).unlink(missing_ok=True)

    def send(self, name: str, folder: Path) -> None:
        """
        Take the folder of a run there: first what is new, the done mark last of all, then what is no longer here goes away.

        A checkpoint of which only a part has arrived is a damaged one, beside which the one before it is still there.

        :param name: Of the run.
        :param folder: Here.
        :raises OSError: If it cannot be written there.
        """
        place = f"{self._root}/{name}"
        here = {
            path.relative_to(folder).as_posix(): path.stat()
            for path in sorted(folder.rglob("*"))
            if path.is_file() and not path.name.startswith(".") and path.name != LOCK
        }
        for path, found in sorted(here.items(), key=lambda entry: entry[0] == DONE_FILE):
            stamp = (found.st_mtime_ns, found.st_size)
            if self._sent.get(path) != stamp:
                target = f"{place}/{path}"
                self._fs.makedirs(target.rpartition("/")[0], exist_ok=True)
                self._fs.put_file(str(folder / path), target)
                self._sent[path] = stamp
        for path in self._list(place):
            if path not in here:
                self._fs.rm_file(f"{place}/{path}")
        if DONE_FILE in here and self._fs.exists(f"{place}/{CHECKPOINTS}"):
            # Where folders are more than parts of names, they are still there.
            self._fs.rm(f"{place}/{CHECKPOINTS}", recursive=True)

    def _list(self, place: str) -> list[str]:
        """Files in a folder there, by their paths in it."""
        try:
            found: Any = self._fs.find(place)
        except FileNotFoundError:
            return []
        start = self._fs._strip_protocol(place).rstrip("/") + "/"
        return [path.removeprefix(start) for path in found if path.startswith(start)]
