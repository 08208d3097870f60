"""
A folder of checkpoints: each of them whole or not there.

::

    run/lock.json                           who writes here (lease.py)
    run/rows/rows-0-5000-<checksum>.npz     of the replay buffer, shared by checkpoints, never changed (rows.py)
    run/checkpoint-000001-at-5000/          manifest.json, and the parts that it lists
"""

import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sb3_sparse.common.warn import warn_user
from sb3_sparse.resume.files.checksum import (
    DamagedCheckpoint,
    Written,
    checksum_of,
    read_bytes,
    sync_folder,
    write_bytes,
)

# 2: what users add to their objects, what could not be written.
FORMAT = 2
MANIFEST = "manifest.json"
_PREFIX, BESIDE = "checkpoint-", ".beside-"


class Checkpoint:
    """
    One that is on the disk. Its manifest is read and checked; its parts are when they are asked for.

    :param path: Its folder.
    :raises DamagedCheckpoint: If the manifest is missing or damaged, or a part has not the size that it should have.
    :raises ValueError: If a later version of this package wrote it.
    """

    def __init__(self, path: Path):
        self.path = path
        self.manifest = _read_manifest(path / MANIFEST)
        for name in (*self.manifest["parts"], *self.manifest["rows"]):
            part, expected = self._place(name), self._expected(name)
            size = part.stat().st_size if part.is_file() else None
            if size != expected.size:
                # Says what is wrong.
                read_bytes(part, expected)

    def read(self, name: str) -> bytes:
        """
        A part, or rows of the replay buffer.

        :raises DamagedCheckpoint: If it is not what was written.
        """
        return read_bytes(self._place(name), self._expected(name))

    def check_parts(self) -> None:
        """
        Read everything but the rows of the replay buffer, which may be large.

        :raises DamagedCheckpoint: If something is not what was written.
        """
        for name in self.manifest["parts"]:
            self.read(name)

    def _place(self, name: str) -> Path:
        return self.path / name if name in self.manifest["parts"] else self.path.parent / name

    def _expected(self, name: str) -> Written:
        known = {**self.manifest["parts"], **self.manifest["rows"]}
        if name not in known:
            raise DamagedCheckpoint(f"{self.path / MANIFEST} lists no part {name!r}: expected one of {sorted(known)}.")
        return Written(*known[name])


def write_checkpoint(
    root: Path,
    timesteps: int,
    parts: Mapping[str, bytes],
    rows: Mapping[str, Written],
    facts: Mapping[str, Any],
    may_publish: Callable[[], None],
) -> Path:
    """
    Write a checkpoint beside, and give it its name when all of it is on the disk.

    :param root: The folder of checkpoints.
    :param timesteps: What it is named after.
    :param parts: Contents by name.
    :param rows: Files of the replay buffer that belong to it, in ``root``.
    :param facts: What the manifest says, besides.
    :param may_publish: Raises if somebody else has taken over the folder.
    :return: Its folder.
    :raises OSError: If it cannot be written; then the older ones are there as before.
    """
    # Each has a number of its own: none ever takes the place of another.
    number = 1 + max(map(_number, checkpoints(root)), default=0)
    target = root / f"{_PREFIX}{number:06d}-at-{timesteps}"
    with _folder_beside(target) as beside:
        written = {name: write_bytes(beside / name, content) for name, content in parts.items()}
        manifest = {"format": FORMAT, "timesteps": timesteps, **facts, "parts": written, "rows": dict(rows)}
        write_bytes(beside / MANIFEST, _manifest_bytes(manifest))
        sync_folder(beside)
        may_publish()
        os.rename(beside, target)
        sync_folder(root)
    return target


def checkpoints(root: Path) -> list[Path]:
    """The checkpoints in a folder, the newest first."""
    found = [path for path in root.glob(f"{_PREFIX}*") if path.is_dir() and _number(path)]
    return sorted(found, key=_number, reverse=True)


def _number(path: Path) -> int:
    """Of a checkpoint, by its name; 0 if it is something else."""
    match = re.fullmatch(f"{_PREFIX}([0-9]+)-at-[0-9]+", path.name)
    return int(match[1]) if match else 0


def newest_whole(path: Path) -> Checkpoint:
    """
    The newest checkpoint that is whole. One that is damaged is passed over with a warning.

    :param path: A folder of checkpoints, or a checkpoint, which then has to be whole itself.
    :raises DamagedCheckpoint: If there is none.
    :raises FileNotFoundError: If there is no such folder, or no checkpoint in it.
    """
    if (path / MANIFEST).exists() or path.name.startswith(_PREFIX):
        return Checkpoint(path)
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is no folder: expected one that ExactCheckpoint has written.")
    found = checkpoints(path)
    for each in found:
        try:
            checkpoint = Checkpoint(each)
            checkpoint.check_parts()
            return checkpoint
        except DamagedCheckpoint as error:
            if each == found[-1]:
                raise
            warn_user(f"{error} An older checkpoint is taken.")
    raise FileNotFoundError(f"{path} holds no checkpoint: expected a folder that ExactCheckpoint has written.")


def sweep(root: Path) -> None:
    """Remove what kills have left behind. Only for whoever holds the lease."""
    for path in root.glob(f"{BESIDE}*"):
        shutil.rmtree(path, ignore_errors=True)
    for path in (root / "rows").glob(f"{BESIDE}*"):
        path.unlink(missing_ok=True)


def keep_newest(root: Path, keep: int) -> None:
    """
    Remove all checkpoints but the newest, and the rows that only those had. Only for whoever holds the lease.

    :param root: The folder of checkpoints.
    :param keep: How many stay.
    """
    found = checkpoints(root)
    for path in found[keep:]:
        # Under another name first: a checkpoint of which half is gone would look like one.
        aside = root / f"{BESIDE}{path.name}-{uuid.uuid4().hex}"
        os.rename(path, aside)
        shutil.rmtree(aside, ignore_errors=True)
    needed: set[str] = set()
    for path in found[:keep]:
        try:
            needed |= Checkpoint(path).manifest["rows"].keys()
        except DamagedCheckpoint:
            # What it needs is not known: nothing is removed.
            return
    for path in (root / "rows").glob("rows-*"):
        if f"rows/{path.name}" not in needed:
            path.unlink(missing_ok=True)


@contextmanager
def _folder_beside(target: Path) -> Iterator[Path]:
    beside = target.with_name(f"{BESIDE}{target.name}-{uuid.uuid4().hex}")
    try:
        beside.mkdir(parents=True)
        yield beside
    except BaseException:
        with suppress(OSError):
            shutil.rmtree(beside)
        raise


def _manifest_bytes(manifest: Mapping[str, Any]) -> bytes:
    body = json.dumps(manifest, indent=1)
    return json.dumps({"checksum": checksum_of(body.encode()), "manifest": body}).encode()


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DamagedCheckpoint(f"{path} is missing: expected the manifest of a checkpoint.") from error
    try:
        outer = json.loads(content)
        body = outer["manifest"]
        is_whole = checksum_of(body.encode()) == outer["checksum"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedCheckpoint(f"{path} is damaged: expected a manifest as JSON ({len(content)} bytes found).") from error
    if not is_whole:
        raise DamagedCheckpoint(f"{path} is damaged: its checksum is not that of its content.")
    manifest: dict[str, Any] = json.loads(body)
    if manifest["format"] != FORMAT:
        raise ValueError(f"{path} has format {manifest['format']}: expected {FORMAT}, of this version of sb3-sparse.")
    return manifest
