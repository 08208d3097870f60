"""
The file: tensors as safetensors, and one JSON text in the place that safetensors has for metadata.

A checksum is over all of both, so that a flipped bit is an error. Before something is read or allocated, what the file
says of its sizes is compared with its size.
"""

import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any

import torch as th
from safetensors import SafetensorError
from safetensors.torch import load, save

from sb3_sparse.common.files import written_beside

ENDING = ".safetensors"
# Changes when files of before can no longer be read.
FORMAT = "sb3_sparse agent 1"
# No agent comes near; and a file that says it is larger may be one that a machine dies of.
MAX_BYTES = 4 * 2**30
# What is made of a text takes many times its bytes; that of an agent has less than one of these megabytes.
_MAX_HEADER = 16 * 2**20


def write_container(path: Path, content: Any, tensors: dict[str, th.Tensor]) -> None:
    """
    Write a file, which is there as a whole or not at all.

    :param path: The file.
    :param content: What JSON can say.
    :param tensors: Dense ones on the CPU, contiguous, none of which shares memory with another one.
    """
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    metadata = {"format": "pt", "sb3_sparse": FORMAT, "content": text, "sha256": _checksum(text, tensors)}
    with written_beside(path) as beside:
        # Not `save_file`, which writes under a name of its own first: nobody would remove that after a kill.
        beside.write_bytes(save(tensors, metadata))


def read_container(path: Path, max_bytes: int = MAX_BYTES) -> tuple[Any, dict[str, th.Tensor]]:
    """
    Read a file that :func:`write_container` wrote.

    :param path: The file.
    :param max_bytes: Refuse a larger one.
    :return: Its JSON, and its tensors by name.
    :raises FileNotFoundError: If there is none.
    :raises ValueError: If it is none, or damaged. The message begins with what is wrong, and does not name the file.
    """
    data, metadata = _read_bytes(path, max_bytes)
    if metadata.get("sb3_sparse") != FORMAT:
        raise ValueError(f"it is no agent of save_safe: expected the format {FORMAT!r}, found {metadata.get('sb3_sparse')!r}.")
    try:
        tensors = load(data)
    except (SafetensorError, KeyError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"its tensors cannot be read: {error}.") from error
    text = metadata.get("content", "")
    # Every byte counts: nothing else may be there that the checksum is not about.
    if metadata != {"format": "pt", "sb3_sparse": FORMAT, "content": text, "sha256": _checksum(text, tensors)}:
        raise ValueError("its checksum is wrong: the file is damaged. Take another copy of it.")
    return parse(text), tensors


def _read_bytes(path: Path, max_bytes: int) -> tuple[bytes, dict[str, Any]]:
    # A pipe would be waited for, a device may have no end.
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("it is no regular file.")
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise ValueError(f"it has {size:,} bytes: expected at most max_bytes={max_bytes:,}.")
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length < 2 or length > min(size - 8, _MAX_HEADER):
            raise ValueError(f"it is no safetensors file, or not all of it: it says that its header has {length:,} bytes.")
        text = file.read(length)
        header = parse(text)
        if not isinstance(header, dict) or not isinstance(header.get("__metadata__"), dict):
            raise ValueError(f"it is no agent of save_safe: a safetensors file that does not say {FORMAT!r}.")
        declared = max((_end(entry) for name, entry in header.items() if name != "__metadata__"), default=0)
        if declared != size - 8 - length:
            raise ValueError(f"it says that it has {declared:,} bytes of tensors, and has {size - 8 - length:,}.")
        return start + text + file.read(declared), header["__metadata__"]


def _end(entry: Any) -> int:
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not isinstance(offsets, list) or len(offsets) != 2 or any(type(offset) is not int for offset in offsets):
        raise ValueError("it has a tensor that does not say where it is.")
    return offsets[1]


def parse(text: str | bytes) -> Any:
    """
    JSON, as strict as its standard.

    :raises ValueError: If it is none.
    """
    try:
        return json.loads(text, parse_constant=_no_constant, object_pairs_hook=_unique)
    except RecursionError as error:
        raise ValueError("its JSON is nested too deep.") from error
    except ValueError as error:
        raise ValueError(f"its JSON cannot be read: {error}.") from error


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is there twice")
    return found


def _checksum(text: str, tensors: dict[str, th.Tensor]) -> str:
    digest = hashlib.sha256(str(text).encode(errors="surrogatepass"))
    for name in sorted(tensors):
        tensor = tensors[name]
        # What is between two names cannot be in a name: no two sets of tensors look the same.
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(th.uint8).numpy().data)
    return digest.hexdigest()
