"""
Atari games as Dopamine prepares them, for numbers that can be compared with published ones of Atari-100k.

SB3's own ``AtariWrapper`` differs: it presses FIRE where a game has that button, begins with single frames of doing nothing,
and plays some frames after each life that is lost.
"""

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from stable_baselines3.common.monitor import Monitor

from sb3_sparse.common.validation import flag, whole_number

# Of Dopamine's Atari-100k: the game itself ends there, too.
MAX_FRAMES = 100_000
# Of the Atari 2600.
FRAMES_PER_SECOND = 60


class DopamineAtari(gym.Wrapper, RecordConstructorArgs):
    """
    Every action for ``frame_skip`` frames; grey, the brighter one of the last two, 84 x 84 pixels.

    An episode begins with 0 to ``max_no_ops - 1`` steps of doing nothing. With ``terminal_on_life_loss`` a lost life ends it,
    and the next one goes on in the same game, at once. Rewards are cut to [-1, 1] after they are summed over the frames.
    Frames are stacked outside, by ``VecFrameStack``, which begins episodes with black ones, as Dopamine does.

    :param env: A game of ale-py, made with ``frameskip=1`` and ``repeat_action_probability=0``, see :func:`make_atari`.
    :param frame_skip: Frames per step.
    :param max_no_ops: Steps of doing nothing at the beginning of a game, one less at most.
    :param terminal_on_life_loss: Whether a lost life ends an episode. For evaluation: False.
    :param clip_rewards: Whether rewards are cut off. For evaluation: False.
    :raises ValueError: If an argument is out of range, or the environment is no game of ale-py.
    :raises ImportError: If the extra ``atari`` is not installed.
    """

    def __init__(
        self,
        env: gym.Env,
        frame_skip: int = 4,
        max_no_ops: int = 30,
        terminal_on_life_loss: bool = True,
        clip_rewards: bool = True,
    ):
        frame_skip, max_no_ops = whole_number("frame_skip", frame_skip, 1), whole_number("max_no_ops", max_no_ops, 1)
        terminal_on_life_loss = flag("terminal_on_life_loss", terminal_on_life_loss)
        clip_rewards = flag("clip_rewards", clip_rewards)
        settings: dict[str, Any] = dict(
            frame_skip=frame_skip,
            max_no_ops=max_no_ops,
            terminal_on_life_loss=terminal_on_life_loss,
            clip_rewards=clip_rewards,
        )
        RecordConstructorArgs.__init__(self, **settings)
        super().__init__(env)
        game: Any = env.unwrapped
        if not hasattr(game, "ale"):
            raise ValueError(f"{env} is no game of ale-py: DopamineAtari is for environments such as ALE/Pong-v5.")
        if getattr(game, "_frameskip", 1) != 1:
            raise ValueError(f"frameskip={game._frameskip}: the wrapper skips frames itself, make the game with frameskip=1.")
        self._resize = _resize()
        self._ale = game.ale
        self.frame_skip, self.max_no_ops = frame_skip, max_no_ops
        self.terminal_on_life_loss, self.clip_rewards = terminal_on_life_loss, clip_rewards
        self.observation_space = spaces.Box(0, 255, (84, 84, 1), np.uint8)
        # Videos have a picture for each step. ALE itself says 30, of a machine that draws 60 a second.
        self.metadata = {**env.metadata, "render_fps": FRAMES_PER_SECOND / frame_skip}
        self._monitors = [layer for layer in _layers(env) if isinstance(layer, Monitor)]
        self._lives, self._goes_on = 0, False
        self._last = np.zeros((84, 84, 1), np.uint8)

    @property
    def goes_on(self) -> bool:
        """Whether the last step ended an episode by a lost life, and not the game, which the next reset goes on with."""
        return self._goes_on

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin a game; where the last step ended an episode by a lost life, go on in the same one."""
        if self._goes_on and seed is None:
            self._goes_on = False
            # What Dopamine's agent begins with: the picture of the step that lost the life.
            return self._last.copy(), {}
        _, info = self.env.reset(seed=seed, options=options)
        self._goes_on = False
        obs = self._observe([self._screen()])
        for _ in range(int(self.np_random.integers(self.max_no_ops))):
            obs, _, terminated, truncated, info = self._play(0)
            if terminated or truncated:
                _, info = self.env.reset()
                obs = self._observe([self._screen()])
        self._lives = self._ale.lives()
        for monitor in self._monitors:
            # Returns are those of the agent, as Dopamine counts them: in Asterix, doing nothing may be worth 50 points.
            monitor.rewards.clear()
        return obs, info

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Play an action for some frames."""
        obs, reward, terminated, truncated, info = self._play(action)
        lives = self._ale.lives()
        lost, self._lives = lives < self._lives, lives
        self._goes_on, self._last = self.terminal_on_life_loss and lost and not (terminated or truncated), obs
        terminated = terminated or self._goes_on
        return obs, float(np.clip(reward, -1, 1)) if self.clip_rewards else reward, terminated, truncated, info

    def _play(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        total, screens = 0.0, []
        for frame in range(self.frame_skip):
            _, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            if frame >= self.frame_skip - 2:
                screens.append(self._screen())
            if terminated or truncated:
                # Whatever is seen then: nobody acts on it.
                screens = screens or [self._screen()]
                break
        return self._observe(screens), total, terminated, truncated, info

    def _screen(self) -> np.ndarray:
        return self._ale.getScreenGrayscale()

    def _observe(self, screens: list[np.ndarray]) -> np.ndarray:
        return self._resize(np.max(screens, axis=0))[:, :, None]


class GameMonitor(Monitor, RecordConstructorArgs):
    """
    SB3's ``Monitor``, without a file, as a wrapper that ``gymnasium.make`` makes again from ``env.spec``.

    :param env: The game.
    """

    def __init__(self, env: gym.Env):
        RecordConstructorArgs.__init__(self)
        Monitor.__init__(self, env)


def make_atari(game: str, **kwargs: Any) -> DopamineAtari:
    """
    A game, as Dopamine's Atari-100k prepares it: no sticky actions, the actions that mean something in it. A ``Monitor``
    directly around it counts whole games, with rewards as they are.

    Needs the extra ``atari``: ``pip install "sb3-sparse[atari]"``.

    :param game: For example ``"Pong"``.
    :param kwargs: Of :class:`DopamineAtari`.
    :raises ImportError: If the extra is not installed.
    """
    register_atari()
    env = gym.make(
        f"ALE/{game}-v5",
        frameskip=1,
        repeat_action_probability=0.0,
        max_num_frames_per_episode=MAX_FRAMES,
    )
    return DopamineAtari(GameMonitor(env), **kwargs)


def register_atari() -> None:
    """
    Let ``gymnasium.make`` know the environments ``ALE/...``.

    :raises ImportError: If the extra ``atari`` is not installed.
    """
    try:
        import ale_py
    except ImportError as error:
        raise ImportError('Atari games need the extra "atari": pip install "sb3-sparse[atari]".') from error
    gym.register_envs(ale_py)
    if not any(env_id.startswith("ALE/") for env_id in gym.registry):
        # They are registered when it is imported, once: somebody may have taken them out of the registry since then.
        from ale_py.registration import register_v5_envs

        register_v5_envs()


def _layers(env: gym.Env) -> Iterator[gym.Env]:
    """An environment and those inside it."""
    yield env
    while isinstance(env, gym.Wrapper):
        env = env.env
        yield env


def _resize() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise ImportError('Atari games need the extra "atari": pip install "sb3-sparse[atari]".') from error
    return lambda screen: cv2.resize(screen, (84, 84), interpolation=cv2.INTER_AREA)
