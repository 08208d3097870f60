"""Episodes that an agent plays, against loops written out, and what is left as it was."""

import copy
import random

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import MaskablePPO
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_sparse.common.sb3_models import SeenEnds
from sb3_sparse.evaluation.episodes import EpsilonGreedy, evaluate_agent
from sb3_sparse.rainbow import Rainbow


class Walk(gym.Env):
    """Episodes of random length; the reward of a step is what was seen before it."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Discrete(5)

    def __init__(self, log=None):
        self.log = [] if log is None else log

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(1, 20))
        self.seen = self.np_random.normal(3.0, 2.0, size=2).astype(np.float32)
        return self.seen, {}

    def step(self, action):
        self.log.append(int(action))
        reward, self.left = float(self.seen[0]) + 0.5 * int(action), self.left - 1
        self.seen = self.np_random.normal(3.0, 2.0, size=2).astype(np.float32)
        return self.seen, reward, self.left == 0, False, {}


def dqn(seed=0):
    return DQN("MlpPolicy", Walk(), seed=seed, buffer_size=10, policy_kwargs={"net_arch": [8]})


class Endless(gym.Wrapper):
    """Its episodes have no end, and those of what it wraps go on without one."""

    def step(self, action):
        obs, reward, ended, _, info = self.env.step(action)
        if ended:
            obs, _ = self.env.reset()
        return obs, reward, False, False, info


def by_hand(model, env, seed, episodes, normalize=lambda obs: obs):
    returns, lengths = [], []
    obs, _ = env.reset(seed=seed)
    while len(returns) < episodes:
        total, n, done = 0.0, 0, False
        while not done:
            action, _ = model.predict(normalize(obs), deterministic=True)
            obs, reward, done, _, _ = env.step(action)
            total, n = total + reward, n + 1
        returns.append(total)
        lengths.append(n)
        obs, _ = env.reset()
    return returns, lengths


@pytest.mark.parametrize("n_envs", [1, 3])
def test_each_environment_plays_its_share(n_envs):
    model = dqn()
    found = evaluate_agent(model, make_vec_env(Walk, n_envs=n_envs), 10, seed=5)
    shares = [(10 + i) // n_envs for i in range(n_envs)]
    expected = [by_hand(model, Walk(), 5 * n_envs + i, share) for i, share in enumerate(shares)]
    pairs = sorted(pair for each in expected for pair in zip(*each, strict=True))
    assert sorted(found.lengths) == sorted(n for _, n in pairs)
    np.testing.assert_allclose(sorted(found.returns), [total for total, _ in pairs], atol=2e-6)
    assert evaluate_agent(model, Walk(), 2, seed=5).lengths.tolist() == by_hand(model, Walk(), 5, 2)[1]


def test_normalised_observations_raw_returns_and_nothing_is_changed():
    env = VecNormalize(make_vec_env(Walk, n_envs=2, seed=0))
    model = PPO("MlpPolicy", env, n_steps=32, batch_size=16, n_epochs=1, seed=0).learn(128)
    assert not np.allclose(env.obs_rms.mean, 0)
    statistics = env.obs_rms.mean.copy(), env.obs_rms.var.copy(), env.ret_rms.var.copy()
    weights = [parameter.clone() for parameter in model.policy.parameters()]
    random.seed(3)
    np.random.seed(4)
    th.manual_seed(5)
    found = evaluate_agent(model, env, 4, seed=9, deterministic=False)
    drawn = random.random(), np.random.random(), th.rand(1).item()
    random.seed(3)
    np.random.seed(4)
    th.manual_seed(5)
    assert drawn == (random.random(), np.random.random(), th.rand(1).item())
    assert (env.training, env.norm_reward) == (True, True)
    for before, after in zip(statistics, (env.obs_rms.mean, env.obs_rms.var, env.ret_rms.var), strict=True):
        np.testing.assert_array_equal(before, after)
    assert all(th.equal(a, b) for a, b in zip(weights, model.policy.parameters(), strict=True))
    again = evaluate_agent(model, env, 4, seed=9, deterministic=False)
    np.testing.assert_array_equal(found.returns, again.returns)
    expected = [by_hand(model, Walk(), 18 + i, 2, env.normalize_obs) for i in range(2)]
    found = evaluate_agent(model, env, 4, seed=9)
    np.testing.assert_allclose(sorted(found.returns), sorted(expected[0][0] + expected[1][0]), atol=2e-6)


def test_without_a_monitor_rewards_are_still_not_normalised():
    env = VecNormalize(DummyVecEnv([Walk]))
    model = dqn()
    env.reset()
    for _ in range(50):
        env.step([0])
    with pytest.warns(UserWarning, match="not wrapped with a ``Monitor``"):
        found = evaluate_agent(model, env, 3, seed=1)
    np.testing.assert_allclose(found.returns, by_hand(model, Walk(), 1, 3, env.normalize_obs)[0], rtol=1e-5)


class Zero:
    """Always takes the first action."""

    action_space = spaces.Discrete(5)

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        return np.zeros(len(observation), dtype=np.int64), state


def test_random_actions_are_as_many_as_asked_for_and_uniform():
    n, epsilon = 200_000, 0.01
    player = EpsilonGreedy(Zero(), epsilon, seed=0)
    counts = np.bincount(np.concatenate([player.predict(np.zeros(1000))[0] for _ in range(n // 1000)]), minlength=5)
    # Of five actions that are drawn one is the first one anyway. Four standard deviations of a count are 80.
    assert np.abs(counts[1:] - n * epsilon / 5).max() < 80
    assert counts[0] == n - counts[1:].sum()
    assert not EpsilonGreedy(Zero(), 0.0).predict(np.zeros(1000))[0].any()
    all_random = EpsilonGreedy(Zero(), 1.0, seed=1).predict(np.zeros(5000))[0]
    assert np.abs(np.bincount(all_random) - 1000).max() < 4 * np.sqrt(5000 * 0.16)
    log = []
    model = dqn()
    before = model.action_space.np_random.bit_generator.state
    evaluate_agent(model, Walk(log), 200, epsilon=1.0)
    assert np.bincount(log, minlength=5).min() > 0.7 * len(log) / 5
    assert model.action_space.np_random.bit_generator.state == before


def test_noise_is_off_and_stays_as_it_was(tmp_path):
    env = gym.make("CartPole-v1")
    model = Rainbow("MlpPolicy", env, seed=0, learning_starts=20, batch_size=8, sigma=4.0).learn(60)
    model.save(tmp_path / "agent")
    model = Rainbow.load(tmp_path / "agent")
    noise = {name: buffer.clone() for name, buffer in model.policy.named_buffers() if "noise" in name}
    assert noise
    first, second = (evaluate_agent(model, gym.make("CartPole-v1"), 10, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first.returns, second.returns)
    assert all(th.equal(noise[name], buffer) for name, buffer in model.policy.named_buffers() if name in noise)
    # Another seed of torch's generator would move what is noisy.
    actions = []
    for seed in range(5):
        th.manual_seed(seed)
        obs = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
        actions.append(model.predict(obs, deterministic=True)[0])
    assert all((each == actions[0]).all() for each in actions)
    assert any((model.predict(obs, deterministic=False)[0] != actions[0]).any() for _ in range(5))


class Masked(Walk):
    """Only the last action is allowed."""

    def action_masks(self):
        return np.array([False] * 4 + [True])


def test_masked_actions_are_not_taken():
    log = []
    model = MaskablePPO("MlpPolicy", Masked(), n_steps=16, batch_size=8)
    evaluate_agent(model, Masked(log), 5)
    assert set(log) == {4}
    with pytest.raises(ValueError, match=r"epsilon=0\.1: random actions of MaskablePPO"):
        evaluate_agent(model, Masked(), 5, epsilon=0.1)


@pytest.mark.parametrize("make", [dqn, lambda: MaskablePPO("MlpPolicy", Masked(), n_steps=16, batch_size=8)])
def test_episodes_that_end_outside_of_monitor_are_an_error(make):
    """SB3 waits for the first one for ever."""
    model = make()
    env = type(model.env.envs[0].unwrapped)()
    with pytest.raises(ValueError, match="Monitor has seen none of them end"):
        evaluate_agent(model, gym.wrappers.TimeLimit(Monitor(Endless(env)), 3), 2)
    assert len(evaluate_agent(model, Monitor(gym.wrappers.TimeLimit(Endless(env), 3)), 2).returns) == 2
    # Lives that are lost are none of the game's ends.
    assert len(evaluate_agent(model, gym.wrappers.TimeLimit(Monitor(env), 3), 2).returns) == 2


def test_lives_are_counted_for_each_game():
    """Mistake of ours: with so many games, those of all together were more than one game has."""
    seen = SeenEnds()
    for _ in range(4):
        for i in range(30):
            seen({"done": True, "i": i, "info": {}, "is_monitor_wrapped": True}, {})
    for _ in range(96):
        seen({"done": True, "i": 29, "info": {}, "is_monitor_wrapped": True}, {})
    with pytest.raises(ValueError, match="101 episodes have ended"):
        seen({"done": True, "i": 29, "info": {}, "is_monitor_wrapped": True}, {})


def test_bad_arguments_are_named():
    model = dqn()
    for keywords, named in (
        (dict(episodes=0), "episodes=0"),
        (dict(seed=-1), "seed=-1"),
        (dict(epsilon=1.5), r"epsilon=1\.5"),
        (dict(deterministic="yes"), "deterministic='yes'"),
    ):
        with pytest.raises(ValueError, match=named):
            evaluate_agent(model, Walk(), **keywords)
    with pytest.raises(ValueError, match=r"the agent sees Box\(-inf, inf, \(2,\), float32\), and the environment shows Box"):
        evaluate_agent(model, gym.make("CartPole-v1"))
    narrow = Walk()
    narrow.action_space = spaces.Discrete(4)
    with pytest.raises(ValueError, match=r"the agent has the actions Discrete\(5\), and the environment Discrete\(4\)"):
        evaluate_agent(model, narrow)
    bounded = Walk()
    bounded.observation_space = spaces.Box(-100, 100, (2,), np.float32)
    assert len(evaluate_agent(model, bounded, 2).returns) == 2


def test_bounds_of_actions_matter():
    model = SAC("MlpPolicy", "Pendulum-v1", buffer_size=10)
    env = gym.wrappers.RescaleAction(gym.make("Pendulum-v1"), np.float32(-1), np.float32(1))
    with pytest.raises(ValueError, match="the agent has the actions"):
        evaluate_agent(model, env)


def test_seeds_share_no_episodes_when_environments_are_several():
    model = dqn()
    returns = [
        value for seed in range(3) for value in evaluate_agent(model, make_vec_env(Walk, n_envs=4), 8, seed=seed).returns
    ]
    assert len(set(returns)) == 24


def test_random_actions_of_dqn_follow_the_seed_and_leave_its_generator_alone():
    model = dqn()
    model.exploration_rate = 0.5
    before = copy.deepcopy(model.action_space.np_random.bit_generator.state)
    lengths = [evaluate_agent(model, Walk(), 5, seed=1, deterministic=False).returns.tolist() for _ in range(2)]
    assert lengths[0] == lengths[1]
    assert model.action_space.np_random.bit_generator.state == before


def test_in_the_environment_of_training_the_next_step_begins_an_episode():
    model = dqn().learn(7)
    evaluate_agent(model, model.get_env(), 1)
    model.learn(4, reset_num_timesteps=False)
    # What the environment pays says what was there to be seen.
    buffer = model.replay_buffer
    rewards = buffer.observations[:, 0, 0] + 0.5 * buffer.actions[:, 0, 0]
    np.testing.assert_allclose(buffer.rewards[:, 0], rewards, rtol=1e-5)


class Starts(gym.Env):
    """Ten steps from a start that is drawn; all starts are kept, and every step counts on from there."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self):
        self.starts = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at = int(self.np_random.integers(10**6))
        self.starts.append(self.at)
        self.end = self.at + 10
        return np.float32([self.at]), {}

    def step(self, action):
        self.at += 1
        return np.float32([self.at]), 1.0, self.at == self.end, False, {}


@pytest.mark.parametrize("which", ["the agent's", "the plain one", "behind wrappers"])
def test_evaluations_in_the_environment_of_training_do_not_reach_into_it(which):
    env = Starts()
    model = DQN("MlpPolicy", env, seed=3, buffer_size=200, policy_kwargs={"net_arch": [8]})
    evaluated = {"the agent's": model.get_env(), "the plain one": env, "behind wrappers": gym.wrappers.ClipReward(env, -1, 1)}
    trained_from = []
    for _ in range(4):
        begun = len(env.starts)
        model.learn(25, reset_num_timesteps=False)
        trained_from += env.starts[begun:]
        evaluate_agent(model, evaluated[which], 2)
    # No transition leads from one episode into another, and no start comes again.
    buffer, size = model.replay_buffer, model.replay_buffer.size()
    steps = buffer.next_observations[:size, 0, 0] - buffer.observations[:size, 0, 0]
    assert (steps == 1).all()
    assert all(length <= 10 for length in model.env.envs[0].get_episode_lengths())
    assert len(set(trained_from)) == len(trained_from) >= 12


def test_training_after_an_evaluation_follows_the_seeds():
    def rewards(seed):
        model = dqn(seed).learn(7)
        evaluate_agent(model, model.get_env(), 1)
        return model.learn(20, reset_num_timesteps=False).replay_buffer.rewards.tolist()

    assert rewards(1) == rewards(1) != rewards(2)
