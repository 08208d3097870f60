"""The logger: values that wait to be written, and how far its files are written."""

import os
import sys
from pathlib import Path
from typing import Any, TextIO, cast

from stable_baselines3.common.logger import (
    CSVOutputFormat,
    HumanOutputFormat,
    JSONOutputFormat,
    KVWriter,
    Logger,
    TensorBoardOutputFormat,
)

from sb3_sparse.resume.state.plain import is_plain

_TEXT = (CSVOutputFormat, HumanOutputFormat, JSONOutputFormat)
_WAITING = ("name_to_value", "name_to_count", "name_to_excluded")


def capture_logger(logger: Logger, is_custom: bool, folder: Path) -> dict[str, Any]:
    """
    :param logger: Of a model.
    :param is_custom: Whether somebody gave it to the model, which would not make it again.
    :param folder: Of the run, in which its checkpoints are.
    """
    outputs = []
    for output in logger.output_formats:
        file = getattr(output, "file", None)
        name = getattr(file, "name", None)
        # What is printed may go to a file, and is no file of the logger.
        if isinstance(output, _TEXT) and file is not sys.stdout and isinstance(name, str) and os.path.isfile(name):
            output.file.flush()
            kind, keys = type(output).__name__, getattr(output, "keys", None)
            outputs.append({"kind": kind, "path": os.path.abspath(name), "size": os.path.getsize(name), "keys": keys})
        elif isinstance(output, TensorBoardOutputFormat):
            outputs.append({"kind": "TensorBoardOutputFormat", "path": output.writer.log_dir})
        elif isinstance(output, HumanOutputFormat):
            outputs.append({"kind": "stdout"})
    waiting = {name: {key: value for key, value in getattr(logger, name).items() if is_plain(value)} for name in _WAITING}
    written = [path for path in (logger.dir, *(output.get("path") for output in outputs)) if isinstance(path, str)]
    inside = {path: found for path in written if (found := _inside(path, folder)) is not None}
    return {"waiting": waiting, "outputs": outputs, "folder": logger.dir, "is_custom": is_custom, "inside": inside}


def _inside(path: str, folder: Path) -> str | None:
    """The path from the folder of the run, if it is in there."""
    whole, top = Path(path).resolve(), folder.resolve()
    return str(whole.relative_to(top)) if whole.is_relative_to(top) else None


def unknown_outputs(logger: Logger) -> list[str]:
    """What a logger writes to that is not made again, as names."""
    known = (*_TEXT, TensorBoardOutputFormat)
    return [f"the output {type(each).__name__} of the logger" for each in logger.output_formats if type(each) not in known]


def logger_again(state: dict[str, Any], stdout: Any, folder: Path) -> Logger | None:
    """
    The logger that somebody gave to the model, with its files as they were then, or one that wrote into a folder, which the
    model would look for by its name, and perhaps find that of a later run; None if the model makes the same itself.

    What was in the folder of a run and is no longer at its place has been moved with it, or is made anew there.

    :param state: Of :func:`capture_logger`.
    :param stdout: Where a table on the screen goes.
    :param folder: Of the run, where that is now.
    """
    if not state["is_custom"] and not any(output["kind"] == "TensorBoardOutputFormat" for output in state["outputs"]):
        return None
    # Which earlier versions did not write.
    inside = state.get("inside", {})
    moved = {path: str(folder / inside[path]) for path in inside if not os.path.exists(path)}
    outputs = [{**output, "path": moved.get(output.get("path"), output.get("path"))} for output in state["outputs"]]
    return Logger(moved.get(state["folder"], state["folder"]), [_opened(output, stdout) for output in outputs])


def restore_logger(logger: Logger, state: dict[str, Any]) -> None:
    """Values that wait to be written, in place."""
    for name in _WAITING:
        known = getattr(logger, name)
        known.clear()
        known.update(state["waiting"][name])


def _opened(output: dict[str, Any], stdout: Any) -> KVWriter:
    kind = output["kind"]
    if kind == "stdout":
        return HumanOutputFormat(stdout)
    path = output["path"]
    if kind == "TensorBoardOutputFormat":
        return TensorBoardOutputFormat(path)
    # Rows of steps that are made again are made again, too.
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "a") as file:
        file.truncate(min(output["size"], os.path.getsize(path)))
    opened: Any
    if kind == "CSVOutputFormat":
        opened = CSVOutputFormat.__new__(CSVOutputFormat)
        opened.keys, opened.separator, opened.quotechar = list(output["keys"]), ",", '"'
        # It reads what it has written when there are new columns.
        opened.file = open(path, "r+")  # noqa: SIM115
        opened.file.seek(0, os.SEEK_END)
    elif kind == "JSONOutputFormat":
        opened = JSONOutputFormat.__new__(JSONOutputFormat)
        opened.file = open(path, "a")  # noqa: SIM115
    else:
        opened = HumanOutputFormat(cast(TextIO, open(path, "a")))  # noqa: SIM115
        opened.own_file = True
    return opened
