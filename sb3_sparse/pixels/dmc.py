"""DeepMind Control from pixels."""

from typing import Any

import gymnasium as gym

from sb3_sparse.dmc import register_dmc
from sb3_sparse.pixels.backend import check_backend, choose_backend
from sb3_sparse.pixels.observations import PixelObservations


def make_dmc_pixels(
    domain: str,
    task: str,
    size: int = 84,
    n_stack: int = 3,
    action_repeat: int = 2,
    camera_id: int | str | None = None,
    rendering: str = "exact",
    **kwargs: Any,
) -> PixelObservations:
    """
    A task of the DeepMind Control Suite as DrQ-v2 sees it: an episode of 1000 steps has 500 decisions.

    Needs the extra ``dmc``: ``pip install "sb3-sparse[dmc]"``.

    .. code-block:: python

        env = make_dmc_pixels("quadruped", "run")

    :param domain: For example ``"walker"``; ``"cup"`` is short for ``"ball_in_cup"``.
    :param task: For example ``"run"``.
    :param size: Pixels on a side.
    :param n_stack: Frames in an observation.
    :param action_repeat: How many steps each action is held.
    :param camera_id: The number or the name of a camera. None: 2 of the quadruped, 0 of all others.
    :param rendering: What is left out of the picture to draw it faster, see :class:`PixelObservations`.
    :param kwargs: For ``gymnasium.make``, for example ``task_kwargs={"time_limit": 5}``.
    :raises ImportError: If the extra is not installed.
    :raises RuntimeError: If MuJoCo finds no OpenGL to draw with; the message says what to install.
    """
    # Before dm_control is imported, which reads it once, for what it draws itself.
    choose_backend()
    try:
        register_dmc()
    except Exception:
        # Its renderer is imported with it, and fails in whatever way. (Otherwise nothing is tried yet, which takes time.)
        check_backend()
        raise
    domain = "ball_in_cup" if domain == "cup" else domain
    env = gym.make(f"dm_control/{domain}-{task}-v0", **{"render_mode": "rgb_array", **kwargs})
    return PixelObservations(env, size, n_stack, action_repeat, camera_id, rendering)
