"""Pictures instead of observations."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs

from sb3_sparse.common.validation import whole_number
from sb3_sparse.dmc import decision_metadata, is_bounded, rescaled
from sb3_sparse.pixels.frames import frames_of

# Smaller ones leave nothing to see, and nothing of DrQ-v2's encoder.
MIN_SIZE = 16


class PixelObservations(gym.Wrapper, RecordConstructorArgs):
    """
    The last frames instead of observations, actions in [-1, 1], and each action repeated.

    Observations are uint8 of shape (3 * n_stack, size, size), channels first, the oldest frame first; an episode begins with
    its first frame ``n_stack`` times. The steps of the wrapped environment are decisions of the agent: one picture is drawn
    for each, after the last repetition. A time limit sets ``truncated``, never ``terminated``.

    Environments of MuJoCo (DeepMind Control's and gymnasium's) are drawn in this size, without a window and whatever their
    ``render_mode``. Others have to be made with ``render_mode="rgb_array"``; their pictures are resized by averaging areas.

    .. code-block:: python

        env = PixelObservations(gymnasium.make("CartPole-v1", render_mode="rgb_array"), action_repeat=1)

    In a YAML file of rl-zoo3:

    .. code-block:: yaml

        env_wrapper:
          - sb3_sparse.pixels.PixelObservations:
              size: 84
              action_repeat: 2

    :param env: The environment. Actions in a Box have to be bounded, and are rescaled; others stay as they are.
    :param size: Pixels on a side.
    :param n_stack: Frames in an observation.
    :param action_repeat: How many steps each action is held; their rewards are summed.
    :param camera_id: Of MuJoCo, the number or the name of a camera, or -1 for the free one. None: the one that the
        environment was made with, else 2 of DeepMind Control's quadruped and 0 of all others, as in DrQ-v2, and the free
        one of a model without cameras.
    :param rendering: Of MuJoCo, what is left out of the picture to draw it faster, a name in ``RENDERINGS``; ``"exact"`` is
        the picture of DrQ-v2.
    :raises ValueError: If an argument is out of range, the environment cannot be drawn, or its actions have no bounds.
    :raises RuntimeError: By ``reset``, if MuJoCo finds no OpenGL to draw with; the message says what to install.
    """

    def __init__(
        self,
        env: gym.Env,
        size: int = 84,
        n_stack: int = 3,
        action_repeat: int = 2,
        camera_id: int | str | None = None,
        rendering: str = "exact",
    ):
        size, n_stack = whole_number("size", size, MIN_SIZE), whole_number("n_stack", n_stack, 1)
        if 3 * n_stack > size:
            raise ValueError(
                f"n_stack={n_stack}, size={size}: SB3 would take {3 * n_stack} channels of {size} x {size} pixels for images "
                f"with channels last. Expected at most {size // 3} frames, or more pixels."
            )
        action_repeat = whole_number("action_repeat", action_repeat, 1)
        if isinstance(camera_id, np.generic):
            camera_id = camera_id.item()
        RecordConstructorArgs.__init__(
            self, size=size, n_stack=n_stack, action_repeat=action_repeat, camera_id=camera_id, rendering=rendering
        )
        super().__init__(env)
        self.metadata = decision_metadata(env, action_repeat)
        self._frames = frames_of(env, size, camera_id, rendering)
        self._given_actions = env.action_space
        if isinstance(env.action_space, spaces.Box):
            if not is_bounded(env.action_space):
                raise ValueError(f"PixelObservations rescales actions in a Box: expected bounds, got {env.action_space}.")
            self.action_space = spaces.Box(-1.0, 1.0, env.action_space.shape, np.float32)
        self.observation_space = spaces.Box(0, 255, (3 * n_stack, size, size), np.uint8)
        self.n_stack, self.action_repeat = n_stack, action_repeat
        self._stack = np.zeros((3 * n_stack, size, size), np.uint8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode; its first frame stands for those that were not."""
        _, info = self.env.reset(seed=seed, options=options)
        self._stack = np.tile(self._frame(), (self.n_stack, 1, 1))
        return self._stack.copy(), info

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Hold the action; stop early where the episode ends."""
        total = 0.0
        if isinstance(self._given_actions, spaces.Box):
            action = rescaled(action, self._given_actions)
        for _ in range(self.action_repeat):
            _, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            if terminated or truncated:
                break
        self._stack = np.concatenate([self._stack[3:], self._frame()])
        return self._stack.copy(), total, terminated, truncated, info

    def render(self) -> Any:
        """The picture for people, in the environment's own size; of MuJoCo by the same camera, with nothing left out."""
        return self._frames.picture()

    def close(self) -> None:
        """Also give back what drawing has taken."""
        self._frames.close()
        super().close()

    def get_state(self) -> np.ndarray:
        """For exact checkpoints: the frames that were seen."""
        return self._stack

    def set_state(self, state: np.ndarray) -> None:
        """Go on with these frames."""
        self._stack = state

    def _frame(self) -> np.ndarray:
        return self._frames.frame().transpose(2, 0, 1)
