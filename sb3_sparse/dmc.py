"""DeepMind Control tasks as SB3 wants them."""

import copy
import sys
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils import RecordConstructorArgs
from gymnasium.wrappers import FlattenObservation, TransformObservation

from sb3_sparse.common.validation import whole_number

# MuJoCo's mjMAXVAL.
_NO_LIMIT = 1e10
# In metadata: their speed is known to be right.
_CORRECTED = "sb3_sparse_corrected_fps"


class DMCWrapper(gym.Wrapper, RecordConstructorArgs):
    """
    Flat float32 observations, actions in [-1, 1], and each action repeated.

    The steps of the wrapped environment are decisions of the agent: an episode of 1000 steps has 500 of them at
    action repeat 2. A time limit sets ``truncated``, never ``terminated``, as ``dm_control`` reports it.

    .. code-block:: python

        env = make_dmc("cartpole", "swingup")

    In a YAML file of rl-zoo3:

    .. code-block:: yaml

        env_wrapper:
          - sb3_sparse.dmc.DMCWrapper:
              action_repeat: 2

    :param env: An environment with continuous actions in a bounded box, such as shimmy's ``dm_control/...``.
    :param action_repeat: How many steps each action is held; their rewards are summed.
    :raises ValueError: If ``action_repeat`` is not a positive whole number or the actions are not a bounded box.
    """

    def __init__(self, env: gym.Env, action_repeat: int = 2):
        action_repeat = whole_number("action_repeat", action_repeat, minimum=1)
        actions = env.action_space
        if not isinstance(actions, spaces.Box) or not is_bounded(actions):
            raise ValueError(f"DMCWrapper rescales actions: expected a bounded Box, got {actions}.")
        RecordConstructorArgs.__init__(self, action_repeat=action_repeat)
        self._given_env = env
        env = FlattenObservation(env)
        flat = spaces.Box(-np.inf, np.inf, env.observation_space.shape, np.float32)
        env = TransformObservation(env, lambda obs: obs.astype(np.float32), flat)
        super().__init__(env)
        self.action_repeat, self.metadata = action_repeat, decision_metadata(env, action_repeat)
        self._given_actions = actions
        self.action_space = spaces.Box(-1.0, 1.0, actions.shape, np.float32)

    @property
    def spec(self) -> EnvSpec | None:  # type: ignore[override]
        """What ``gymnasium.make`` needs to make this environment again; None if the wrapped one has no such thing."""
        # Of the environment that was given: the wrappers that are made here are made here the next time, too.
        spec = copy.deepcopy(self._given_env.spec)
        if spec is not None:
            spec.additional_wrappers += (self.wrapper_spec(**self._saved_kwargs),)
        return spec

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Hold the action; stop early where the episode ends."""
        total, action = 0.0, rescaled(action, self._given_actions)
        for _ in range(self.action_repeat):
            obs, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            if terminated or truncated:
                break
        return obs, total, terminated, truncated, info


def is_bounded(space: spaces.Box) -> bool:
    """
    Whether the numbers of a box are bounded. For what MuJoCo does not bound, dm_control says ±1e10.

    :param space: The box.
    """
    bounds = np.abs(np.concatenate([space.low.ravel(), space.high.ravel()]).astype(np.float64))
    has_limits = np.issubdtype(space.low.dtype, np.integer) or not (bounds == _NO_LIMIT).any()
    return space.is_bounded() and bool(has_limits)


def rescaled(action: Any, space: spaces.Box) -> np.ndarray:
    """
    An action in [-1, 1] in the range of an environment and its precision; of whole numbers the nearest one.

    >>> rescaled([-1.0, 0.5], spaces.Box(0, 5, (2,), np.int64)).tolist()
    [0, 4]

    :param action: Of the shape of the space.
    :param space: Bounded.
    :raises ValueError: If the shape is another one, or a whole number is to be made of what is none.
    """
    action = np.asarray(action, np.float64)
    if action.shape != space.shape:
        raise ValueError(f"an action of shape {action.shape}: expected {space.shape}.")
    # Halves, since the range may be twice as wide as numbers go. Bounds of [-1, 1] leave an action as it is, bit by bit.
    low, high = (bound.astype(np.float64) / 2 for bound in (space.low, space.high))
    # Rounding may lead beyond the bounds.
    found = np.clip((high - low) * action + (high + low), 2 * low, 2 * high)
    if np.issubdtype(space.low.dtype, np.floating):
        return found.astype(space.low.dtype)
    if np.isnan(found).any():
        raise ValueError(f"action {action}: expected numbers in [-1, 1].")
    # The ends by themselves: as a float, the largest whole number is beyond its kind.
    inside = (2 * low < found) & (found < 2 * high)
    whole = np.rint(np.where(inside, found, 0.0)).astype(space.low.dtype)
    return np.where(inside, whole, np.where(found <= 2 * low, space.low, space.high))


def decision_metadata(env: gym.Env, action_repeat: int) -> dict[str, Any]:
    """
    What an environment says of itself, where one picture is made for each decision: videos then play at their real speed.

    :param env: The environment.
    :param action_repeat: Its steps in a decision.
    """
    metadata, base = dict(env.metadata), env.unwrapped
    if type(base).__module__ == "shimmy.dm_control_compatibility" and not metadata.get(_CORRECTED):
        # What shimmy says are milliseconds, for all its environments those of the newest. A wrapper that copies what it finds
        # copies them, too; another number is one that somebody has put right.
        wrong = (base.metadata["render_fps"], 1000 * base.dt)  # type: ignore[attr-defined]
        if metadata.get("render_fps") in wrong:
            metadata["render_fps"] = 1 / base.dt  # type: ignore[attr-defined]
        # By the number alone one cannot tell: 10 decisions a second may be of steps that take 10 ms.
        metadata[_CORRECTED] = True
    if isinstance(metadata.get("render_fps"), (int, float)):
        metadata["render_fps"] /= action_repeat
    return metadata


def make_dmc(domain: str, task: str, action_repeat: int = 2, **kwargs: Any) -> DMCWrapper:
    """
    A task of the DeepMind Control Suite, wrapped.

    Needs the extra ``dmc``: ``pip install "sb3-sparse[dmc]"``.

    :param domain: For example ``"humanoid"``.
    :param task: For example ``"run"``.
    :param action_repeat: How many steps each action is held.
    :param kwargs: For ``gymnasium.make``, for example ``render_mode="rgb_array"``.
    """
    register_dmc()
    return DMCWrapper(gym.make(f"dm_control/{domain}-{task}-v0", **kwargs), action_repeat)


def register_dmc() -> None:
    """
    Let ``gymnasium.make`` know the environments ``dm_control/...``.

    :raises ImportError: If the extra ``dmc`` is not installed.
    """
    try:
        with warnings.catch_warnings():
            # Without a display, dm_control's renderer says that it found none.
            warnings.simplefilter("ignore")
            import dm_control.suite  # noqa: F401
            import shimmy
            from shimmy.registration import register_gymnasium_envs
    except ImportError as error:
        hint = 'the extra "dmc": pip install "sb3-sparse[dmc]"'
        if sys.version_info >= (3, 13):
            hint = "Python 3.12 or older: dm_control has no packages for later ones"
        raise ImportError(f"DeepMind Control needs {hint}.") from error
    gym.register_envs(shimmy)
    # Shimmy registers them when it is imported, once: somebody may have taken them out of the registry since then.
    if not any(env_id.startswith("dm_control/") for env_id in gym.registry):
        register_gymnasium_envs()
