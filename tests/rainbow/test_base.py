"""Each switch off is its base; and what an agent takes from SB3 or has as its own."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import DQN
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork
from torch import nn
from torch.nn import functional as F

from sb3_sparse.rainbow import DER, Rainbow
from tests.envs import SpaceEnv

OFF = dict(distributional=False, dueling=False, double=False, noisy=False, prioritized=False, n_steps=1)
COMMON = dict(
    learning_starts=50, batch_size=32, train_freq=1, target_update_interval=100, buffer_size=1000, seed=3, device="cpu"
)


def same(a, b):
    return all(th.equal(p, q) for p, q in zip(a.policy.parameters(), b.policy.parameters(), strict=True))


@pytest.mark.parametrize("n_steps", [1, 3])
def test_without_any_part_it_is_dqn(n_steps):
    theirs = DQN("MlpPolicy", "CartPole-v1", n_steps=n_steps, **COMMON).learn(2000)
    ours = Rainbow("MlpPolicy", "CartPole-v1", **{**OFF, "n_steps": n_steps}, **COMMON).learn(2000)
    assert same(theirs, ours)
    assert np.array_equal(theirs.replay_buffer.actions, ours.replay_buffer.actions)


class DoubleDQN(DQN):
    def train(self, gradient_steps, batch_size=100):
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        for _ in range(gradient_steps):
            data = self.replay_buffer.sample(batch_size, env=self._vec_normalize_env)
            with th.no_grad():
                best = self.q_net(data.next_observations).argmax(dim=1, keepdim=True)
                following = self.q_net_target(data.next_observations).gather(1, best)
                target = data.rewards + (1 - data.dones) * self.gamma * following
            loss = F.smooth_l1_loss(self.q_net(data.observations).gather(1, data.actions.long()), target)
            self.policy.optimizer.zero_grad()
            loss.backward()
            th.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
            self.policy.optimizer.step()


def test_double_alone():
    theirs = DoubleDQN("MlpPolicy", "CartPole-v1", **COMMON).learn(1000)
    ours = Rainbow("MlpPolicy", "CartPole-v1", **{**OFF, "double": True}, **COMMON).learn(1000)
    assert same(theirs, ours)
    assert not same(ours, DQN("MlpPolicy", "CartPole-v1", **COMMON).learn(1000))


class DuelingNetwork(QNetwork):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.body = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.advantage, self.value = nn.Linear(64, 2), nn.Linear(64, 1)
        del self.q_net

    def forward(self, obs):
        features = self.body(self.extract_features(obs, self.features_extractor))
        advantage = self.advantage(features)
        return self.value(features) + advantage - advantage.mean(dim=1, keepdim=True)


class DuelingPolicy(DQNPolicy):
    def make_q_net(self):
        return DuelingNetwork(**self._update_features_extractor(self.net_args, features_extractor=None))


def test_dueling_alone():
    theirs = DQN(DuelingPolicy, "CartPole-v1", **COMMON).learn(1000)
    ours = Rainbow("MlpPolicy", "CartPole-v1", **{**OFF, "dueling": True}, **COMMON).learn(1000)
    assert same(theirs, ours)


def test_everything_on_trains():
    model = Rainbow("MlpPolicy", "CartPole-v1", **COMMON).learn(300)
    before = [p.clone() for p in model.policy.parameters()]
    model.learn(50, reset_num_timesteps=False)
    assert any(not th.equal(p, q) for p, q in zip(before, model.q_net.parameters(), strict=False))


@pytest.mark.parametrize("n_steps", [1, 3])
def test_dict_observations_without_priorities(n_steps, tmp_path):
    """Mistake of ours: SB3 has no buffer of several steps for them, and an assertion of it was all that was said."""
    env = SpaceEnv(spaces.Dict({"a": spaces.Box(-1, 1, (4,))}), spaces.Discrete(3))
    settings = dict(n_steps=n_steps, prioritized=False, learning_starts=10, buffer_size=50)
    model = Rainbow("MultiInputPolicy", env, **settings).learn(20)
    assert getattr(model.replay_buffer, "n_steps", 1) == n_steps
    model.save(tmp_path / "agent")
    assert getattr(Rainbow.load(tmp_path / "agent", env=env).learn(20).replay_buffer, "n_steps", 1) == n_steps


def test_a_buffer_of_sb3_that_is_named_gets_its_steps_without_a_warning(recwarn):
    kwargs = dict(prioritized=False, replay_buffer_class=NStepReplayBuffer, n_steps=4, gamma=0.9)
    buffer = Rainbow("MlpPolicy", "CartPole-v1", buffer_size=10, **kwargs).replay_buffer
    assert (buffer.n_steps, buffer.gamma) == (4, 0.9)
    assert not [warning for warning in recwarn if "n_steps" in str(warning.message)]


def test_runs_are_named_by_their_class_in_tensorboard(tmp_path):
    class Mine(DER):
        pass

    for algorithm in (Rainbow, DER, Mine):
        algorithm("MlpPolicy", "CartPole-v1", buffer_size=10, tensorboard_log=str(tmp_path)).learn(1)
    Rainbow("MlpPolicy", "CartPole-v1", buffer_size=10, tensorboard_log=str(tmp_path)).learn(1, tb_log_name="other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["DER_1", "Mine_1", "Rainbow_1", "other_1"]


def test_ders_adam_is_its_own_whether_it_is_named_or_not():
    for policy_kwargs in ({}, {"optimizer_class": th.optim.Adam}):
        model = DER("MlpPolicy", "CartPole-v1", buffer_size=10, policy_kwargs=policy_kwargs)
        assert model.policy.optimizer.defaults["eps"] == 1.5e-4
    named = dict(optimizer_class=th.optim.Adam, optimizer_kwargs=dict(eps=1e-3))
    assert DER("MlpPolicy", "CartPole-v1", buffer_size=10, policy_kwargs=named).policy.optimizer.defaults["eps"] == 1e-3
    named = dict(optimizer_class=th.optim.SGD)
    assert "eps" not in DER("MlpPolicy", "CartPole-v1", buffer_size=10, policy_kwargs=named).policy.optimizer.defaults
