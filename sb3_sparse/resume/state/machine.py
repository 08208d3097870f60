"""What the same numbers depend on besides the run: versions, processor, threads, choices of backends."""

import os
import platform
import sys
from importlib import metadata
from typing import Any

import torch as th

from sb3_sparse.common.warn import warn_user
from sb3_sparse.sparse.kernels import BACKEND_VARIABLE
from sb3_sparse.sparse.kernels.choosing.choices import choices_in_use
from sb3_sparse.sparse.kernels.choosing.chooser import take_choices
from sb3_sparse.sparse.kernels.native.compile import host_cpu

_PACKAGES = ("torch", "numpy", "stable_baselines3", "sb3_contrib", "gymnasium", "mujoco", "dm_control", "ale_py", "sb3_sparse")


def machine_facts(device: th.device) -> dict[str, Any]:
    """
    What a resumed run is compared with.

    :param device: Of the model.
    """
    return {
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in _PACKAGES if _is_installed(name)},
        "system": f"{sys.platform} {platform.machine()}",
        "processor": host_cpu(),
        "device": th.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "backend": os.environ.get(BACKEND_VARIABLE, ""),
        "threads": th.get_num_threads(),
        "choices": choices_in_use(),
    }


def adopt(facts: dict[str, Any]) -> None:
    """
    Use as many threads and the same backends as the run did.

    :param facts: Of :func:`machine_facts`.
    """
    th.set_num_threads(facts["threads"])
    take_choices(facts["choices"])


def warn_of_differences(facts: dict[str, Any], device: th.device) -> None:
    """
    A run goes on elsewhere, but perhaps with other numbers.

    :param facts: Of the machine where the checkpoint was written.
    :param device: Of the model.
    """
    here = machine_facts(device)
    before, now = ({**each, **each["packages"]} for each in (facts, here))
    names = sorted((before.keys() | now.keys()) - {"packages", "threads", "choices"})
    others = [
        f"{name} {now.get(name)!r} instead of {before.get(name)!r}" for name in names if before.get(name) != now.get(name)
    ]
    if others:
        warn_user(
            f"The checkpoint was written elsewhere: here is {', '.join(others)}. The run goes on, perhaps not bit by bit."
        )


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
