"""What would be learned from wrongly is refused: observations of other axes, buffers of other environments, bad settings."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize, VecTransposeImage

from sb3_sparse.drqv2 import DrQv2
from sb3_sparse.plasticity import ResetCallback
from tests.drqv2.pictures import Dot, agent


class Rows(gym.Env):
    """Channels last: the first one is bright, in every picture."""

    observation_space = spaces.Box(0, 255, (16, 16, 4), np.uint8)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def picture(self):
        picture = np.zeros((16, 16, 4), np.uint8)
        picture[..., 0] = 255
        return picture

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.picture(), {}

    def step(self, action):
        return self.picture(), 0.0, False, False, {}


def test_observations_of_other_axes_are_refused_not_scrambled():
    # SB3 puts VecTransposeImage above VecNormalize, which keeps what is below.
    model = agent(VecNormalize(DummyVecEnv([Rows]), norm_obs=False))
    with pytest.raises(
        ValueError, match=r"shape \(1, 16, 16, 4\): expected \(1, 4, 16, 16\).*VecNormalize\(VecTransposeImage"
    ):
        model.learn(20)
    model = agent(VecNormalize(VecTransposeImage(DummyVecEnv([Rows])), norm_obs=False)).learn(20)
    assert (model.replay_buffer.sample(5).observations.float().mean((0, 2, 3)) == th.tensor([255.0, 0, 0, 0])).all()


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.float16])
def test_actions_of_other_types_are_kept_as_they_were_taken(dtype):
    class Whole(Dot):
        def __init__(self):
            super().__init__()
            self.action_space = spaces.Box(0, 10, (2,), dtype)

        def step(self, action):
            return super().step(np.asarray(action, float))

    model = agent(Whole(), learning_starts=100).learn(40)
    actions = model.replay_buffer.actions[:40]
    assert actions.dtype == np.float32
    # Of whole numbers as many as there are, where they were -1, 0 and 1.
    assert len(np.unique(actions)) >= 10
    assert abs(actions).max() <= 1


def test_a_buffer_of_another_environment_is_refused(tmp_path):
    model = agent(Dot()).learn(10)
    model.save_replay_buffer(tmp_path / "buffer")
    for env, says in (
        (DummyVecEnv([Dot, Dot]), "environments 1, and DrQv2 2"),
        (Dot(size=26), r"observations Box\(9, 24, 24\), and DrQv2 Box\(9, 26, 26\)"),
        (Dot(n_actions=3), r"actions Box\(2,\), and DrQv2 Box\(3,\)"),
    ):
        other = agent(env)
        other.load_replay_buffer(tmp_path / "buffer")
        with pytest.raises(ValueError, match=f"the replay buffer has {says}"):
            other.learn(10)


def test_settings_are_checked_when_an_agent_is_loaded(tmp_path):
    agent().save(tmp_path / "agent")
    own = [("noise_clip", -1), ("shift_pad", -1), ("exploration_steps", 0), ("exploration_final_std", -0.1)]
    of_sb3 = [("tau", 3.0), ("gamma", 3), ("batch_size", 0), ("batch_size", 2.5), ("gradient_steps", -5), ("train_freq", 0)]
    for name, value in (*own, *of_sb3, ("learning_starts", -1), ("gradient_steps", 1.5), ("buffer_size", 0)):
        for make in (agent, lambda **keyword: DrQv2.load(tmp_path / "agent", **keyword)):
            with pytest.raises(ValueError, match=rf"^{name}={value}: expected"):
                make(**{name: value})
    with pytest.raises(ValueError, match=r"replay_buffer_class=.*the saved agent has its own"):
        DrQv2.load(tmp_path / "agent", replay_buffer_class=ReplayBuffer)


def test_redo_names_the_networks_that_have_hidden_layers():
    with pytest.raises(ValueError, match=r"the encoder of DrQv2 .*networks=\['actor', 'critic'\]"):
        agent().learn(4, callback=ResetCallback(every_grad_steps=10, strategy="redo"))
