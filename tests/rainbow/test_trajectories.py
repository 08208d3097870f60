"""No window of several steps joins two trajectories, however the first one was left."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import DQN
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize

from sb3_sparse.evaluation import evaluate_agent
from sb3_sparse.rainbow import Rainbow
from sb3_sparse.replay import FrameReplayBuffer, cut_off
from sb3_sparse.resume import ExactCheckpoint, resume_exact

GAMMA, N_STEPS = 0.5, 3
IMAGES, VECTORS = spaces.Box(0, 255, (36, 36, 1), np.uint8), spaces.Box(-1e6, 1e6, (2,))
DICTS = spaces.Dict({"a": VECTORS, "b": VECTORS})


class Endless(gym.Env):
    """Observations and rewards say in which trajectory they are, of which none ends."""

    action_space = spaces.Discrete(2)
    made = 0

    def __init__(self, space=VECTORS, ends_after=0):
        Endless.made += 1
        self.observation_space, self.ends_after, self.trajectory = space, ends_after, 20 * (Endless.made % 10)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.trajectory, self.t = self.trajectory + 1, 0
        return self._observation(), {}

    def step(self, action):
        self.t += 1
        return self._observation(), float(self.trajectory), self.t == self.ends_after, False, {}

    def _observation(self):
        if isinstance(self.observation_space, spaces.Box) and self.observation_space.dtype == np.uint8:
            image = np.zeros(IMAGES.shape, np.uint8)
            image[0, :2, 0] = self.trajectory, self.t
            return image
        vector = np.array([self.trajectory, self.t], np.float32)
        return {"a": vector, "b": vector} if isinstance(self.observation_space, spaces.Dict) else vector


def make_env(space=VECTORS, n_envs=2):
    env = DummyVecEnv([lambda: Endless(space)] * n_envs)
    return VecFrameStack(env, 4) if space is IMAGES else env


SETTINGS = dict(
    n_steps=N_STEPS, gamma=GAMMA, learning_starts=1000, train_freq=1, buffer_size=64, batch_size=4, seed=0, device="cpu"
)
OFF = dict.fromkeys(("distributional", "dueling", "double", "noisy", "prioritized"), False)
SMALL = dict(policy_kwargs=dict(encoder="grid", net_arch=[4]))
KINDS = {
    "prioritised": lambda: Rainbow("MlpPolicy", make_env(), **SETTINGS),
    "parts": lambda: Rainbow("MultiInputPolicy", make_env(DICTS), **SETTINGS),
    "normalised": lambda: Rainbow("MlpPolicy", VecNormalize(make_env(), norm_obs=True, norm_reward=False), **SETTINGS),
    "prioritised frames": lambda: Rainbow(
        "CnnPolicy", make_env(IMAGES), replay_buffer_kwargs=dict(n_stack=4), **SMALL, **SETTINGS
    ),
    "frames": lambda: Rainbow(
        "CnnPolicy", make_env(IMAGES), prioritized=False, replay_buffer_class=FrameReplayBuffer, **SMALL, **SETTINGS
    ),
    "SB3's": lambda: Rainbow("MlpPolicy", make_env(), **OFF, **SETTINGS),
}


def drawn(model):
    """Trajectory and time of both ends of many transitions, how many steps they have, and their rewards."""
    samples = model.replay_buffer.sample(800)
    ends = []
    for observations in (samples.observations, samples.next_observations):
        each = observations["a"] if isinstance(observations, dict) else observations
        # Of stacked frames, channels first, the newest.
        ends.append(each[:, -1, 0, :2].numpy() if each.dim() == 4 else each.numpy())
    lengths = np.round(np.log(samples.discounts.numpy().ravel()) / np.log(GAMMA)).astype(int)
    return *ends, lengths, samples.rewards.numpy().ravel()


def check(model, n_cuts):
    """All windows are within a trajectory, and as long as they can be."""
    first, last, lengths, rewards = drawn(model)
    assert (first[:, 0] == last[:, 0]).all()
    assert (last[:, 1] - first[:, 1] == lengths).all()
    np.testing.assert_allclose(rewards, first[:, 0] * np.array([0, 1, 1.5, 1.75])[lengths], rtol=1e-6)
    short = {tuple(last[i]) for i in np.flatnonzero(lengths < N_STEPS)}
    # Of each environment, where a trajectory was left and where nothing is known yet.
    assert len(short) == 2 * (n_cuts + 1)
    assert model.replay_buffer.dones.max() == 0


def again(model, tmp_path):
    return model.learn(20)


def loaded(model, tmp_path):
    model.save(tmp_path / "agent")
    model.save_replay_buffer(tmp_path / "buffer")
    other = Rainbow.load(tmp_path / "agent", env=model.get_env())
    other.load_replay_buffer(tmp_path / "buffer")
    return other.learn(20, reset_num_timesteps=False)


def another_env(model, tmp_path):
    env = make_env(model.get_env().get_attr("observation_space")[0])
    if model.get_vec_normalize_env() is not None:
        env = VecNormalize(env, norm_reward=False)
    model.set_env(env)
    return model.learn(20, reset_num_timesteps=False)


def played(model, tmp_path):
    # Its episodes end, for the player.
    for env in model.get_env().unwrapped.envs:
        env.unwrapped.ends_after = 5
    env = model.get_env()
    with pytest.warns(UserWarning, match="Monitor"):
        evaluate_agent(model, env, 2)
    for env in model.get_env().unwrapped.envs:
        env.unwrapped.ends_after = 0
    return model.learn(20, reset_num_timesteps=False)


@pytest.mark.parametrize("leave", [again, loaded, another_env, played])
@pytest.mark.parametrize("kind", KINDS)
def test_windows_end_where_a_trajectory_was_left(kind, leave, tmp_path):
    model = KINDS[kind]().learn(20)
    check(model, 0)
    check(leave(model, tmp_path), 1)


@pytest.mark.parametrize("kind", KINDS)
def test_windows_of_a_trajectory_that_goes_on_are_not_cut(kind, tmp_path):
    model = KINDS[kind]().learn(20).learn(20, reset_num_timesteps=False)
    check(model, 0)
    # Nor where agent, buffer and environment are there again.
    model.save(tmp_path / "agent")
    model.save_replay_buffer(tmp_path / "buffer")
    other = Rainbow.load(tmp_path / "agent", env=model.get_env(), force_reset=False)
    other.load_replay_buffer(tmp_path / "buffer")
    other.learn(20, reset_num_timesteps=False)
    check(other, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_buffer_of_other_trajectories_is_not_gone_on_with(kind, tmp_path):
    KINDS[kind]().learn(20).save_replay_buffer(tmp_path / "other")
    model = KINDS[kind]().learn(20)
    model.load_replay_buffer(tmp_path / "other")
    check(model.learn(20, reset_num_timesteps=False), 1)


def test_the_value_of_what_was_seen_last_goes_on():
    model = KINDS["prioritised"]().learn(20).learn(20)
    buffer = model.replay_buffer
    left = buffer._at(np.array([9, 9]), np.array([0, 1]), None)
    assert left.discounts.flatten().tolist() == [GAMMA, GAMMA]
    assert left.dones.flatten().tolist() == [0, 0]
    assert left.next_observations[:, 1].tolist() == [10, 10]


def test_only_those_are_cut_that_do_not_go_on():
    model = KINDS["prioritised"]().learn(20)
    seen = np.array(model._last_obs)
    assert not cut_off(model.replay_buffer, seen)
    seen[1] += 1
    assert cut_off(model.replay_buffer, seen)
    assert model.replay_buffer.timeouts[9].tolist() == [0, 1]
    # Once is enough, and what has ended is no time limit.
    assert not cut_off(model.replay_buffer, seen)
    model.replay_buffer.dones[9] = 1
    assert not cut_off(model.replay_buffer)
    assert not cut_off(DQN("MlpPolicy", make_env(), buffer_size=8, learning_starts=99).learn(4).replay_buffer)


class Stopped(ExactCheckpoint):
    """Ends the run with its second checkpoint."""

    def save(self):
        super().save()
        self.saved = getattr(self, "saved", 0) + 1
        if self.saved == 2:
            raise KeyboardInterrupt


class Opaque(Endless):
    """Its place is where pickle does not get to."""

    def __init__(self):
        super().__init__()
        place = [0]

        def bonus():
            place[0] += 1
            return float(place[0] % 7)

        self.bonus = bonus

    def step(self, action):
        obs, reward, *rest = super().step(action)
        return obs, reward + self.bonus(), *rest


def test_a_run_that_goes_on_with_a_new_episode_is_cut_also_in_its_files(tmp_path):
    def make():
        return DummyVecEnv([Opaque, Opaque])

    folder = tmp_path / "run"
    with pytest.warns(UserWarning, match="not exact"), pytest.raises(KeyboardInterrupt):
        Rainbow("MlpPolicy", make(), **SETTINGS).learn(64, callback=Stopped(folder, every=10))
    for _ in range(2):
        with pytest.warns(UserWarning, match="Not exact"), pytest.raises(KeyboardInterrupt):
            resume_exact(folder, env=make(), callback=Stopped(folder, every=10))
    with pytest.warns(UserWarning, match="Not exact"):
        model = resume_exact(folder, env=make())
    first, last, lengths, _ = drawn(model)
    assert (first[:, 0] == last[:, 0]).all()
    assert (last[:, 1] - first[:, 1] == lengths).all()
    assert len(np.unique(first[:, 0])) > 4
