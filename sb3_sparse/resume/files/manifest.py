"""The manifest of a checkpoint: what is in it, and what else there is to know. JSON, with a checksum of its own."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sb3_sparse.resume.files.checksum import DamagedCheckpoint, checksum_of, file_size

#: Of the layout of checkpoints.
FORMAT = 2


def _are(kind: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(isinstance(entry, kind) for entry in value)


def _is(kind: type, *more: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, (kind, *more)) and not (isinstance(value, bool) and kind is int)


def _is_listing(value: Any) -> bool:
    """Sizes and checksums by name."""
    return isinstance(value, dict) and all(
        isinstance(entry, list) and list(map(type, entry)) == [int, str] and not name.startswith("/") and ".." not in name
        for name, entry in value.items()
    )


# What whoever goes on with a run asks for.
_FIELDS: dict[str, Callable[[Any], bool]] = {
    "timesteps": _is(int),
    "algorithm": _is(str),
    "total_timesteps": _is(int),
    "n_envs": _is(int),
    "device": _is(str),
    "spaces": _are(str),
    "not_exact": _is(str, type(None)),
    "needs_model": _is(str, type(None)),
    "uncertain": _are(str),
    "no_recipe": _is(str),
    "callback": _is(dict),
    "machine": _is(dict),
    "parts": _is_listing,
    "rows": _is_listing,
}


def manifest_bytes(manifest: Mapping[str, Any]) -> bytes:
    """
    As it is written.

    :param manifest: Plain data.
    """
    body = json.dumps({"format": FORMAT, **manifest}, indent=1)
    return json.dumps({"checksum": checksum_of(body.encode()), "manifest": body}).encode()


def read_manifest(path: Path) -> dict[str, Any]:
    """
    What was written.

    :param path: The file.
    :raises DamagedCheckpoint: If it is missing, or is not what was written.
    :raises ValueError: If another version of this package wrote it.
    """
    size = file_size(path, "the manifest of a checkpoint")
    try:
        with path.open("rb") as file:
            content = file.read(size)
        outer = json.loads(content)
        body = outer["manifest"]
        is_whole = checksum_of(body.encode()) == outer["checksum"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedCheckpoint(f"{path} is damaged: expected a manifest as JSON ({len(content)} bytes found).") from error
    if not is_whole:
        raise DamagedCheckpoint(f"{path} is damaged: its checksum is not that of its content.")
    manifest: Any = json.loads(body)
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise ValueError(f"{path} has format {found}: expected {FORMAT}, of this version of sb3-sparse.")
    # Somebody may have edited it, and written the checksum anew.
    for name, fits in _FIELDS.items():
        if name not in manifest or not fits(manifest[name]):
            raise DamagedCheckpoint(f"{path} is damaged: {name} is {manifest.get(name, 'missing')!r}.")
    return manifest
