"""What a result depends on besides its settings: versions, commit, machine."""

import functools
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import sb3_sparse
from sb3_sparse.sparse.kernels.native.compile import host_cpu

_PACKAGES = (
    *("sb3_sparse", "torch", "stable_baselines3", "sb3_contrib", "rl-zoo3", "gymnasium", "numpy", "mujoco", "dm_control"),
    *("ale_py", "minatar"),
)


@functools.cache
def run_facts() -> dict[str, Any]:
    """
    ``code``: versions; ``commit`` of the checkout that this package is in, and whether it is ``modified`` (None without a
    checkout); ``machine``.
    """
    code = {name: version for name in _PACKAGES if (version := _version(name)) is not None}
    return {
        "code": {"python": platform.python_version(), **code},
        **_checkout(Path(sb3_sparse.__file__).parent),
        "machine": {"processor": _processor(), "cores": os.cpu_count(), "system": platform.platform(), "gpu": _gpu()},
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _checkout(package: Path) -> dict[str, Any]:
    # A package that is installed into somebody's project lies in his repository, and is none of it.
    is_tracked = _git(package, "ls-files", "--error-unmatch", "__init__.py") is not None
    commit = _git(package, "rev-parse", "HEAD") if is_tracked else None
    changes = _git(package, "status", "--porcelain", "--untracked-files=no", ".")
    return {"commit": commit, "modified": None if commit is None else bool(changes)}


def _git(folder: Path, *args: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *args], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        named = []
    return f"{named[0]} ({host_cpu()})" if named else f"{platform.processor()} ({host_cpu()})"


def _gpu() -> str | None:
    import torch as th

    return th.cuda.get_device_name() if th.cuda.is_available() else None
