"""Runs whose folders are kept elsewhere: anything that fsspec knows by a URL, such as ``s3://bucket/studies``."""

import os
import shutil
from pathlib import Path
from typing import Any

from sb3_sparse.results.studies.reading import DONE_FILE, FAILED_FILE, RUN_FILE
from sb3_sparse.resume.files.folder import MANIFEST
from sb3_sparse.resume.files.lease import LOCK
from sb3_sparse.sweeps.runs.run_folder import STATUS_FILE, RunFolder
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
            from fsspec.implementations.local import LocalFileSystem
        except ImportError as error:
            raise ImportError('--storage needs fsspec: pip install "sb3-sparse[sweeps]"') from error
        try:
            self._fs, self._root = url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise ValueError(f"--storage {url!r}: {error}") from error
        self._local = LocalFileSystem
        # Of what was sent: time and size of each file.
        self._sent: dict[str, tuple[int, int]] = {}

    def fetch(self, name: str, folder: Path, whole: bool = True) -> None:
        """
        Bring the folder of a run here, in place of what is here.

        :param name: Of the run.
        :param folder: Here.
        :param whole: With checkpoints; else all that stays of a run.
        """
        place = self._place(name)
        found = self._list(place)
        shutil.rmtree(folder, ignore_errors=True)
        for path in sorted(found, key=_place_in_order):
            if whole or not path.startswith(f"{CHECKPOINTS}/"):
                target = folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                self._fs.get_file(f"{place}/{path}", str(target))

    def fetch_marks(self, name: str, folder: Path) -> None:
        """
        Bring what says how far a run is, and of one that is done all that stays. A run that is done here, or is not there,
        stays as it is here.

        :param name: Of the run.
        :param folder: Here.
        """
        place = self._place(name)
        if (folder / DONE_FILE).is_file() or not self._fs.exists(f"{place}/{RUN_FILE}"):
            return
        if self._fs.exists(f"{place}/{DONE_FILE}"):
            self.fetch(name, folder, whole=False)
            return
        for mark in _MARKS:
            if self._fs.exists(f"{place}/{mark}"):
                folder.mkdir(parents=True, exist_ok=True)
                self._fs.get_file(f"{place}/{mark}", str(folder / mark))
            else:
                (folder / mark).unlink(missing_ok=True)

    def state(self, name: str, folder: Path) -> str:
        """
        How far a run would be after :meth:`fetch_marks`, of which nothing is done.

        :param name: Of the run.
        :param folder: Here.
        :return: As :meth:`~sb3_sparse.sweeps.runs.run_folder.RunFolder.state` says it.
        """
        place, here = self._place(name), RunFolder(folder).state()
        if here == "done" or not self._fs.exists(f"{place}/{RUN_FILE}"):
            return here
        marks = {DONE_FILE: "done", FAILED_FILE: "failed", STATUS_FILE: "stopped"}
        return next((state for mark, state in marks.items() if self._fs.exists(f"{place}/{mark}")), "waiting")

    def offer(self, name: str, folder: Path) -> None:
        """
        Take a run there that is to be made: all of it, or of one that is there, that it is to be tried again. So is one
        taken there that was finished here.

        :param name: Of the run.
        :param folder: Here, where there is less of it: what is there is what a run goes on with.
        :raises OSError: If it cannot be written there.
        """
        place = self._place(name)
        is_new = not self._fs.exists(f"{place}/{RUN_FILE}")
        if is_new or ((folder / DONE_FILE).is_file() and not self._fs.exists(f"{place}/{DONE_FILE}")):
            self.send(name, folder)
        elif self._fs.exists(f"{place}/{FAILED_FILE}") and not (folder / FAILED_FILE).is_file():
            self._put(folder / STATUS_FILE, f"{place}/{STATUS_FILE}")
            self._fs.rm_file(f"{place}/{FAILED_FILE}")

    def send(self, name: str, folder: Path) -> None:
        """
        Take the folder of a run there: first what is new, the done mark last of all, then what is no longer here goes away.

        A checkpoint of which only a part has arrived is none, and the one before it is still there. It comes after the files
        that were written beside it: a run that goes on shortens those that are too long.

        :param name: Of the run.
        :param folder: Here.
        :raises OSError: If it cannot be written there.
        """
        place = self._place(name)
        here = {
            path.relative_to(folder).as_posix(): path.stat()
            for path in sorted(folder.rglob("*"))
            if path.is_file() and not path.name.startswith(".") and path.name != LOCK
        }
        for path, found in sorted(here.items(), key=lambda entry: _place_in_order(entry[0])):
            stamp = (found.st_mtime_ns, found.st_size)
            if self._sent.get(path) != stamp:
                self._put(folder / path, f"{place}/{path}")
                self._sent[path] = stamp
        for path in self._list(place):
            if path not in here:
                self._fs.rm_file(f"{place}/{path}")
        if DONE_FILE in here and self._fs.exists(f"{place}/{CHECKPOINTS}"):
            # Where folders are more than parts of names, they are still there.
            self._fs.rm(f"{place}/{CHECKPOINTS}", recursive=True)

    def _place(self, name: str) -> str:
        """The folder of a run there. Some file systems answer from lists of files that others have changed since then."""
        self._fs.invalidate_cache()
        return f"{self._root}/{name}"

    def _put(self, path: Path, target: str) -> None:
        parent, _, name = target.rpartition("/")
        self._fs.makedirs(parent, exist_ok=True)
        if not isinstance(self._fs, self._local):
            # Stores of objects have a new one when all of it is there.
            self._fs.put_file(str(path), target)
            return
        beside = f"{parent}/.{name}"
        self._fs.put_file(str(path), beside)
        os.replace(beside, target)

    def _list(self, place: str) -> list[str]:
        """Files in a folder there, by their paths in it."""
        try:
            found: Any = self._fs.find(place)
        except FileNotFoundError:
            return []
        start = self._fs._strip_protocol(place).rstrip("/") + "/"
        names = [path.removeprefix(start) for path in found if path.startswith(start)]
        # What a kill has left of a file is none.
        return [name for name in names if not name.rpartition("/")[2].startswith(".")]


def _place_in_order(path: str) -> int:
    """Of a file in a folder: a checkpoint after what is beside it, its manifest after its parts, the done mark at the end."""
    if path == DONE_FILE:
        return 3
    return (1 + path.endswith(MANIFEST)) if path.startswith(f"{CHECKPOINTS}/") else 0
