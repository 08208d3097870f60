"""Our buffers against SB3's own, and against hand-made windows."""

import copy
import io
import pickle
import sys
from unittest.mock import Mock

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import QRDQN
from stable_baselines3 import DQN, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.save_util import load_from_pkl, save_to_pkl
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize
from stable_baselines3.dqn.policies import DQNPolicy

from sb3_sparse.rainbow import Rainbow
from sb3_sparse.replay import FrameReplayBuffer, PrioritizedReplayBuffer
from sb3_sparse.replay import prioritized as prioritized_module
from sb3_sparse.replay.buffer import ComposedReplayBuffer
from sb3_sparse.replay.priorities import Priorities

BOX = spaces.Box(-1, 1, (3,))
IMAGE = spaces.Box(0, 255, (4, 12, 12), np.uint8)
DICT = spaces.Dict({"a": BOX, "b": spaces.Discrete(5), "c": IMAGE})
ACTIONS = spaces.Discrete(4)


def random_steps(space, n_envs, n, seed=0, p_done=0.2):
    generator = np.random.default_rng(seed)
    space = copy.deepcopy(space)
    space.seed(seed)

    def sample():
        if isinstance(space, spaces.Dict):
            return {name: np.stack([part.sample() for _ in range(n_envs)]) for name, part in space.spaces.items()}
        return np.stack([space.sample() for _ in range(n_envs)])

    obs = sample()
    for _ in range(n):
        done = generator.random(n_envs) < p_done
        infos = [{"TimeLimit.truncated": bool(d and generator.random() < 0.5)} for d in done]
        terminal = sample()
        yield obs, terminal, generator.integers(0, 4, n_envs), generator.normal(size=n_envs), done, infos
        # What follows an end has nothing to do with it.
        obs = sample() if done.any() else terminal


def equal(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[name], b[name]) for name in a)
    return (a is None and b is None) or (a.dtype == b.dtype and th.equal(a, b))


@pytest.mark.parametrize("timeouts", [True, False])
@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize(
    ("space", "theirs", "n_steps"),
    [(BOX, ReplayBuffer, 1), (BOX, NStepReplayBuffer, 3), (DICT, DictReplayBuffer, 1), (spaces.Discrete(5), ReplayBuffer, 1)],
)
def test_it_draws_what_sb3s_buffers_draw(space, theirs, n_steps, n_envs, timeouts):
    common = dict(n_envs=n_envs, device="cpu", handle_timeout_termination=timeouts)
    steps = {"n_steps": n_steps, "gamma": 0.9} if n_steps > 1 else {}
    their = theirs(30 * n_envs, space, ACTIONS, **common, **steps)
    our = ComposedReplayBuffer(30 * n_envs, space, ACTIONS, **common, **steps)
    for i, step in enumerate(random_steps(space, n_envs, 100)):
        for buffer in (their, our):
            buffer.add(*copy.deepcopy(step))
        if i in (0, 7, 29, 30, 99):
            batches = []
            for buffer in (their, our):
                np.random.seed(i)
                batches.append(buffer.sample(64))
            assert (our.pos, our.full, our.size()) == (their.pos, their.full, their.size())
            assert all(map(equal, *batches))


def test_normalised_observations_and_rewards_are_sb3s():
    def make_env():
        return gym.make("Pendulum-v1")

    env = VecNormalize(DummyVecEnv([make_env, make_env]))
    env.reset()
    for _ in range(50):
        env.step(np.zeros((2, 1)))
    batches = []
    for kind in (NStepReplayBuffer, ComposedReplayBuffer):
        buffer = kind(40, env.observation_space, env.action_space, n_envs=2, device="cpu", n_steps=3, gamma=0.9)
        for obs, next_obs, _, reward, done, infos in random_steps(env.observation_space, 2, 30):
            buffer.add(obs, next_obs, np.zeros((2, 1)), reward, done, infos)
        np.random.seed(0)
        batches.append(buffer.sample(50, env=env))
    assert all(map(equal, *batches))


def test_windows_by_hand():
    """
    Two environments, five places, three steps, gamma 1/2. Of the first: an end at place 1, a time limit at place 3; the
    ring has wrapped, and place 2 is the newest.
    """
    buffer = ComposedReplayBuffer(10, spaces.Box(-99, 99, (1,)), ACTIONS, n_envs=2, device="cpu", n_steps=3, gamma=0.5)
    for t in range(8):
        done = np.array([t in (3, 6), False])
        infos = [{"TimeLimit.truncated": t == 3}, {}]
        obs = np.array([[float(t)], [10.0 + t]])
        buffer.add(obs, obs + 0.5, np.array([0, 1]), np.array([2.0**t, 1.0]), done, infos)
    # Steps 3 ... 7 are stored, at places 3, 4, 0, 1, 2.
    expected = {
        # step: (sum of rewards, discount, next observation, terminated)
        3: (8.0, 0.5, 3.5, 0.0),  # a time limit: bootstrapped from its own last observation
        4: (16.0 + 16.0 + 16.0, 0.125, 6.5, 1.0),
        5: (32.0 + 32.0, 0.25, 6.5, 1.0),
        6: (64.0, 0.5, 6.5, 1.0),
        7: (128.0, 0.5, 7.5, 0.0),  # the newest: nothing is known of what comes
    }
    places = np.array([step % 5 for step in expected])
    batch = buffer._at(places, np.zeros(5, dtype=int), None)
    found = zip(batch.rewards, batch.discounts, batch.next_observations, batch.dones, strict=True)
    assert [tuple(float(x) for x in row) for row in found] == list(expected.values())
    other = buffer._at(places, np.ones(5, dtype=int), None)
    assert other.rewards.flatten().tolist() == [1.75, 1.75, 1.75, 1.5, 1.0]
    assert other.discounts.flatten().tolist() == [0.125, 0.125, 0.125, 0.25, 0.5]
    assert other.next_observations.flatten().tolist() == [15.5, 16.5, 17.5, 17.5, 17.5]


class Pictures(gym.Env):
    """Random frames; episodes of random length, some cut off by a time limit."""

    observation_space = spaces.Box(0, 255, (12, 12, 1), np.uint8)
    action_space = ACTIONS

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.integers(0, 256, (12, 12, 1), dtype=np.uint8), {}

    def step(self, action):
        frame = self.np_random.integers(0, 256, (12, 12, 1), dtype=np.uint8)
        chance = self.np_random.random()
        return frame, float(chance), chance < 0.1, chance > 0.95, {}


def make_pictures(n_envs=2):
    env = VecFrameStack(DummyVecEnv([Pictures] * n_envs), 4)
    env.seed(3)
    return env


SMALL = dict(net_arch=[8], features_extractor_class=None)


@pytest.mark.parametrize("algorithm", [DQN, QRDQN])
@pytest.mark.parametrize("n_steps", [1, 3])
def test_sb3s_algorithms_train_the_same_on_frames(algorithm, n_steps):
    def trained(buffer_class, kwargs):
        model = algorithm(
            "MlpPolicy",
            make_pictures(),
            buffer_size=60,
            learning_starts=20,
            batch_size=8,
            train_freq=4,
            target_update_interval=20,
            seed=0,
            device="cpu",
            policy_kwargs=dict(net_arch=[8]),
            replay_buffer_class=buffer_class,
            replay_buffer_kwargs=kwargs,
        )
        return model.learn(200).learn(60)

    kwargs = {"n_steps": n_steps, "gamma": 0.99} if n_steps > 1 else {}
    theirs = trained(NStepReplayBuffer if n_steps > 1 else ReplayBuffer, kwargs)
    ours = trained(FrameReplayBuffer, kwargs)
    assert isinstance(ours.replay_buffer, FrameReplayBuffer)
    assert all(th.equal(a, b) for a, b in zip(theirs.policy.parameters(), ours.policy.parameters(), strict=True))


def prioritized(n_envs=2, size=20, **kwargs):
    buffer = PrioritizedReplayBuffer(size, BOX, ACTIONS, n_envs=n_envs, device="cpu", **kwargs)
    for step in random_steps(BOX, n_envs, 7):
        buffer.add(*step)
    return buffer


def test_probabilities_are_the_formulas():
    stats = pytest.importorskip("scipy.stats")
    np.random.seed(0)
    buffer = prioritized(alpha=0.6, beta=0.4)
    priorities = np.arange(1.0, 15.0)
    buffer.update_priorities(np.arange(14), -priorities)  # errors have signs
    expected = (priorities + 1e-6) ** 0.6
    expected /= expected.sum()
    batch = buffer.sample(10**5)
    counts = np.bincount(batch.indices, minlength=14)
    assert stats.chisquare(counts, expected * 10**5).pvalue > 1e-3
    weights = (14 * expected) ** -0.4
    np.testing.assert_allclose(batch.weights[:, 0], (weights / weights.max())[batch.indices], rtol=1e-5)
    steps, envs = np.divmod(batch.indices, 2)
    assert th.equal(batch.rewards[:, 0], th.from_numpy(buffer.rewards[steps, envs]))


def test_what_enters_waits_for_no_longer_than_it_may():
    priorities = Priorities(3000, 1.0)
    priorities.update(np.array([0]), np.array([7.0]))
    for index in range(2500):
        priorities.enter(np.array([index]))
    assert len(priorities._new) == 500
    indices, probabilities = priorities.draw(10_000)
    assert indices.max() < 2500
    np.testing.assert_allclose(probabilities, 1 / 2500)


def test_new_transitions_enter_with_the_largest_priority_there_ever_was():
    buffer = prioritized(alpha=1.0)
    buffer.update_priorities(np.arange(14), np.full(14, 5.0))
    buffer.update_priorities(np.arange(14), np.full(14, 0.1))
    buffer.add(*next(random_steps(BOX, 2, 1)))
    probabilities = buffer.priorities.draw(1000)
    largest = {index for index, p in zip(*probabilities, strict=True) if p > 0.2}
    assert largest == {14, 15}


def test_of_an_index_that_is_updated_twice_the_last_counts():
    buffer = prioritized(alpha=1.0)
    buffer.update_priorities(np.array([3, 4, 3]), np.array([1.0, 1.0, 0.0]))
    tree = buffer.priorities._tree
    assert tree[[3, 4]] == pytest.approx([1e-6, 1.0 + 1e-6])


def test_only_what_is_stored_is_drawn_also_after_the_wrap():
    np.random.seed(0)
    buffer = prioritized(n_envs=3, size=31)
    assert buffer.buffer_size == 10
    assert set(buffer.sample(2000).indices) == set(range(21))
    for step in random_steps(BOX, 3, 30, seed=1):
        buffer.add(*step)
    assert set(buffer.sample(2000).indices) == set(range(30))
    buffer.reset()
    with pytest.raises(ValueError, match="nothing to draw"):
        buffer.sample(4)


def test_beta_may_be_a_schedule():
    buffer = prioritized(alpha=1.0, beta=lambda remaining: 1.0 - remaining)
    buffer.update_priorities(np.arange(14), np.arange(1.0, 15.0))
    assert (buffer.sample(50).weights == 1).all()
    buffer.progress_remaining = 0.0
    assert buffer.sample(50).weights.unique().numel() > 3


@pytest.mark.parametrize("n_stack", [None, 4])
def test_pickles_hold_everything(n_stack):
    buffer = PrioritizedReplayBuffer(20, IMAGE, ACTIONS, n_envs=2, device="cpu", n_steps=2, n_stack=n_stack)
    for step in random_steps(IMAGE, 2, 15):
        buffer.add(*step)
    buffer.update_priorities(np.arange(20), np.arange(20.0))
    file = io.BytesIO()
    save_to_pkl(file, buffer)
    file.seek(0)
    for copied in (load_from_pkl(file), pickle.loads(pickle.dumps(buffer)), copy.deepcopy(buffer)):
        batches = []
        for one in (buffer, copied):
            np.random.seed(5)
            batches.append(one.sample(64))
        assert np.array_equal(batches[0].indices, batches[1].indices)
        assert all(equal(a, b) for a, b in zip(batches[0][:-1], batches[1][:-1], strict=True))


@pytest.mark.parametrize("algorithm", [DQN, SAC])
def test_algorithms_that_never_update_priorities_are_refused(algorithm):
    env = "CartPole-v1" if algorithm is DQN else "Pendulum-v1"
    with pytest.raises(ValueError, match=rf"{algorithm.__name__} is SB3's and never updates priorities.*Rainbow"):
        algorithm("MlpPolicy", env, replay_buffer_class=PrioritizedReplayBuffer, buffer_size=100)
    model = algorithm("MlpPolicy", env, buffer_size=100, learning_starts=5)
    # Put there later, as load_replay_buffer does.
    model.replay_buffer = PrioritizedReplayBuffer(100, model.observation_space, model.action_space, device="cpu")
    with pytest.raises(ValueError, match="never updates priorities"):
        model.learn(20)


def test_it_is_who_draws_that_has_to_update_them():
    """Mistake of ours: the class in which ``train`` stood decided."""

    class Logged(DQN):
        def train(self, gradient_steps, batch_size=100):
            super().train(gradient_steps, batch_size)

    class Elsewhere(DQN):
        def _on_step(self):
            super()._on_step()
            if self.replay_buffer.size() > 10:
                samples = self.replay_buffer.sample(4)
                self.replay_buffer.update_priorities(samples.indices, samples.rewards)

    class WithoutTrain(BaseAlgorithm):
        def _setup_model(self):
            self.replay_buffer = PrioritizedReplayBuffer(100, self.observation_space, self.action_space, device="cpu")

        def learn(self, total_timesteps, **kwargs):
            return self

    settings = dict(replay_buffer_class=PrioritizedReplayBuffer, buffer_size=100, train_freq=1)
    with pytest.raises(ValueError, match="train\\(\\) of Logged is SB3's and never updates priorities"):
        Logged("MlpPolicy", "CartPole-v1", learning_starts=5, **settings).learn(20)
    Elsewhere("MlpPolicy", "CartPole-v1", learning_starts=100, **settings).learn(20)
    WithoutTrain(DQNPolicy, gym.make("CartPole-v1"), learning_rate=1.0)._setup_model()


def test_an_algorithm_of_ones_own_that_never_updates_them_is_warned_of(monkeypatch):
    """Mistake of ours: the name had to stand in a method of the class, which one that is overridden counted for."""
    monkeypatch.setattr(prioritized_module, "PATIENCE", 5)

    class Forgets(Rainbow):
        def train(self, gradient_steps, batch_size=100):
            for _ in range(gradient_steps):
                samples = self._sample(batch_size)
                self._update(self._losses(samples).losses, samples)

    def helper(buffer, samples):
        buffer.update_priorities(samples.indices, samples.rewards)

    class Helped(DQN):
        def train(self, gradient_steps, batch_size=100):
            helper(self.replay_buffer, self.replay_buffer.sample(batch_size))

    settings = dict(learning_starts=10, train_freq=1, buffer_size=100)
    with pytest.warns(UserWarning, match="Forgets has drawn 5 batches without updating priorities") as warned:
        Forgets("MlpPolicy", "CartPole-v1", **settings).learn(60)
    assert len(warned) == 1
    Helped("MlpPolicy", "CartPole-v1", replay_buffer_class=PrioritizedReplayBuffer, **settings).learn(60)


def test_a_step_whose_add_was_interrupted_has_a_priority(monkeypatch):
    space = spaces.Box(0, 255, (3, 6, 6), np.uint8)
    buffer = PrioritizedReplayBuffer(4, space, spaces.Discrete(2), device="cpu", n_stack=3, alpha=1.0)
    frames = [np.full((1, 3, 6, 6), i, np.uint8) for i in range(8)]
    for i in range(3):
        buffer.add(frames[i], frames[i + 1], np.array([0]), np.array([0.0]), np.array([False]), [{}])
    buffer.update_priorities(np.arange(3), np.full(3, 0.25))
    with monkeypatch.context() as patch:
        patch.setattr(buffer, "_advance", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            buffer.add(frames[3], frames[4], np.array([0]), np.array([0.0]), np.array([False]), [{}])
    buffer.add(frames[4], frames[5], np.array([0]), np.array([0.0]), np.array([False]), [{}])
    drawn = buffer.priorities.draw(2000)[0]
    # Of four places three have the first priority (1, the largest ever), the other one a quarter of it.
    assert buffer.size() == 4
    assert np.bincount(drawn, minlength=4) / 2000 == pytest.approx(np.array([4, 1, 1, 4]) / 10, abs=0.05)


def test_an_algorithm_that_updates_them_is_not():
    class Ours(DQN):
        def train(self, gradient_steps, batch_size=100):
            samples = self.replay_buffer.sample(batch_size, env=self._vec_normalize_env)
            self.replay_buffer.update_priorities(samples.indices, samples.rewards)

    Ours("MlpPolicy", "CartPole-v1", replay_buffer_class=PrioritizedReplayBuffer, buffer_size=100, learning_starts=5).learn(30)


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        ({"alpha": 1.5}, r"alpha=1\.5"),
        ({"beta": -0.1}, r"beta=-0\.1"),
        ({"n_steps": 0}, "n_steps=0"),
        ({"gamma": 1.1}, r"gamma=1\.1"),
        ({"optimize_memory_usage": True}, "optimize_memory_usage=True.*FrameReplayBuffer"),
        ({"n_stack": 4}, "channels, height, width"),
        ({"handle_timeout_termination": 1}, "handle_timeout_termination=1"),
    ],
)
def test_bad_arguments(kwargs, expected):
    with pytest.raises(ValueError, match=expected):
        PrioritizedReplayBuffer(10, BOX, ACTIONS, **kwargs)


@pytest.mark.parametrize(
    ("indices", "priorities", "expected"),
    [([0, 1], [1.0], "1 priorities for 2"), ([99], [1.0], "indices="), ([0], [np.nan], "finite"), ([0], [np.inf], "finite")],
)
def test_bad_priorities_change_nothing(indices, priorities, expected):
    buffer = prioritized()
    buffer.sample(1)
    before = buffer.priorities._tree.weights.copy()
    with pytest.raises(ValueError, match=expected):
        buffer.update_priorities(np.array(indices), th.tensor(priorities))
    assert np.array_equal(buffer.priorities._tree.weights, before)
    assert buffer.priorities.largest == 1.0


STACKS = spaces.Box(0, 255, (4, 6, 6), np.uint8)
KINDS = {
    "whole": (BOX, lambda space: ComposedReplayBuffer(14, space, ACTIONS, "cpu", 2)),
    "frames": (STACKS, lambda space: FrameReplayBuffer(14, space, ACTIONS, "cpu", 2, n_stack=4)),
    "prioritized": (STACKS, lambda space: PrioritizedReplayBuffer(14, space, ACTIONS, "cpu", 2, n_stack=4)),
}


def stacked_steps(space, n, seed=0):
    """Steps of two environments; of images each goes on from the one before, as frame stacks do."""
    for obs, next_obs, *rest in random_steps(space, 2, n, seed, p_done=0.2):
        if len(space.shape) == 3:
            next_obs = np.concatenate([obs[:, 1:], next_obs[:, -1:]], axis=1)
        yield obs, next_obs, *rest


def contents(buffer):
    """What can be drawn, by the action that it came with."""
    steps = np.repeat(np.arange(buffer.size()), 2)
    samples = buffer._at(steps, np.tile([0, 1], buffer.size()), None)
    return [tuple(part[i].numpy().tobytes() for part in samples if part is not None) for i in range(len(steps))]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", ["obs", "next_obs", "action", "reward", "done", "infos", "info"])
def test_what_cannot_be_kept_changes_nothing(kind, bad):
    space, make = KINDS[kind]
    buffer = make(space)
    *steps, last = stacked_steps(space, 10)
    for step in steps:
        buffer.add(*step)
    before = contents(buffer)
    names = ["obs", "next_obs", "action", "reward", "done", "infos"]
    wrong = dict(zip(names, last, strict=True))
    if bad == "info":
        wrong["infos"] = [{}, None]
    else:
        wrong[bad] = wrong[bad][:1]
    with pytest.raises((ValueError, AttributeError)):
        buffer.add(**wrong)
    assert contents(buffer) == before
    twin = make(space)
    for step in [*steps, last]:
        twin.add(*step)
    buffer.add(*last)
    assert contents(buffer) == contents(twin)


class Interrupts:
    """Raises KeyboardInterrupt before the n-th line of the replay room that runs."""

    def __init__(self, n):
        self.left = n

    def __call__(self, frame, event, argument):
        if "sb3_sparse/replay" not in frame.f_code.co_filename:
            return None
        if event == "line":
            self.left -= 1
            if self.left < 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_step_harms_no_other(kind):
    space, make = KINDS[kind]
    steps = list(stacked_steps(space, 14))
    for n in range(1000):
        buffer = make(space)
        for step in steps[:10]:
            buffer.add(*step)
        before, place = contents(buffer), buffer.pos
        trace = sys.gettrace()
        try:
            sys.settrace(Interrupts(n))
            buffer.add(*steps[10])
        except KeyboardInterrupt:
            pass
        else:
            break
        finally:
            sys.settrace(trace)
        others = [i for i in range(len(before)) if i // 2 != place]
        after = contents(buffer)
        assert [after[i] for i in others] == [before[i] for i in others], n
        # The steps go on, with the one that was interrupted or without it.
        for step in steps[11:]:
            buffer.add(*step)
        twins = [make(space), make(space)]
        for twin, tail in zip(twins, (steps[10:], steps[11:]), strict=True):
            for step in [*steps[:10], *tail]:
                twin.add(*step)
        assert sorted(contents(buffer)) in [sorted(contents(twin)) for twin in twins], n
    assert n > 10


@pytest.mark.parametrize("algorithm", [DQN, SAC])
def test_subclasses_of_the_buffer_are_refused_likewise(algorithm):
    class Mine(PrioritizedReplayBuffer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)

    env = "CartPole-v1" if algorithm is DQN else "Pendulum-v1"
    with pytest.raises(ValueError, match="never updates priorities"):
        algorithm("MlpPolicy", env, replay_buffer_class=Mine)
