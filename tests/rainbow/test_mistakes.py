"""What is wrong with an agent's settings is said by name, before anything is trained."""

import numpy as np
import pytest
from gymnasium import spaces

from sb3_sparse.rainbow import DER, ImageEncoder, Rainbow
from tests.envs import SpaceEnv

DISCRETE = spaces.Discrete(3)
WRONG = [
    ({"n_atoms": 1}, r"n_atoms=1: "),
    ({"n_atoms": 2.5}, r"n_atoms=2\.5: "),
    ({"v_min": 3, "v_max": 3}, r"v_min=3, v_max=3: expected v_min below v_max"),
    ({"v_min": float("nan")}, r"v_min=nan: "),
    ({"n_steps": 0}, r"n_steps=0: "),
    ({"n_steps": True}, r"n_steps=True: "),
    ({"alpha": 1.5}, r"alpha=1\.5: expected a number in \[0, 1\]"),
    ({"alpha": -0.1}, r"alpha=-0\.1: expected a number in \[0, 1\]"),
    ({"beta": 1.5}, r"beta=1\.5: expected a number in \[0, 1\]"),
    ({"beta": "lin_0.4"}, r"beta='lin_0.4': "),
]


@pytest.mark.parametrize("algorithm", [Rainbow, DER])
@pytest.mark.parametrize(("kwargs", "expected"), WRONG)
def test_values_out_of_range(algorithm, kwargs, expected):
    with pytest.raises(ValueError, match=expected):
        algorithm("MlpPolicy", "CartPole-v1", buffer_size=10, **kwargs)


@pytest.mark.parametrize("algorithm", [Rainbow, DER])
def test_a_schedule_of_beta_out_of_range_is_said_by_the_first_update(algorithm):
    model = algorithm("MlpPolicy", "CartPole-v1", beta=lambda progress: 1 + progress, learning_starts=10, buffer_size=50)
    with pytest.raises(ValueError, match=r"beta\(progress_remaining\)=1\.\d+: expected a number in \[0, 1\]"):
        model.learn(20)


@pytest.mark.parametrize("algorithm", [Rainbow, DER])
def test_continuous_actions(algorithm):
    with pytest.raises(AssertionError, match="Discrete"):
        algorithm("MlpPolicy", "Pendulum-v1")


def test_images_in_the_wrong_layout():
    # Channels in the middle, which neither SB3 nor an encoder can mean.
    space = spaces.Box(0, 255, (36, 4, 36), np.uint8)
    with pytest.raises(ValueError, match=r"\(36, 4, 36\): expected channels"):
        ImageEncoder(space, "grid")
    # Frames have to be stacked along the channels, in front; a single frame is no stack.
    for shape in ((3, 36, 36), (1, 36, 36)):
        env = SpaceEnv(spaces.Box(0, 255, shape, np.uint8), DISCRETE)
        with pytest.raises(ValueError, match="expected 4 frames one after the other"):
            DER("CnnPolicy", env, replay_buffer_kwargs=dict(n_stack=4), buffer_size=10)
    with pytest.raises(ValueError, match="frames are kept of images"):
        DER("MlpPolicy", "CartPole-v1", replay_buffer_kwargs=dict(n_stack=4), buffer_size=10)


@pytest.mark.parametrize("policy", ["MlpPolicy", "SparseSimBaPolicy"])
def test_actions_that_do_not_begin_with_0(policy):
    env = SpaceEnv(spaces.Box(-1, 1, (4,)), spaces.Discrete(2, start=5))
    with pytest.raises(ValueError, match=r"Discrete\(2, start=5\): Q-values are of actions that begin with 0"):
        Rainbow(policy, env, buffer_size=10)


@pytest.mark.parametrize("kwargs", [{"n_steps": 7}, {"gamma": 0.5}])
def test_a_buffer_that_contradicts_the_agent(kwargs):
    with pytest.raises(ValueError, match="as a keyword of Rainbow itself"):
        Rainbow("MlpPolicy", "CartPole-v1", replay_buffer_kwargs=kwargs, buffer_size=10)
    Rainbow("MlpPolicy", "CartPole-v1", replay_buffer_kwargs=kwargs, buffer_size=10, **kwargs)
