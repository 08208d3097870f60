"""An agent that was saved with its replay buffer goes on as if nothing had happened, as one of SB3's DQN does."""

import copy
import inspect
import io
import pickle

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import DQN
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_sparse.drqv2 import DrQv2
from sb3_sparse.rainbow import DER, Rainbow
from sb3_sparse.replay import FrameReplayBuffer

SETTINGS = dict(learning_starts=20, buffer_size=90, batch_size=8, seed=0, device="cpu", target_update_interval=15)


class Walk(gym.Env):
    """Random observations and rewards, from a generator of its own. Of images, one frame after the other."""

    action_space = spaces.Discrete(3)

    def __init__(self, space):
        self.observation_space = space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.frames = np.zeros(self.observation_space.shape, np.uint8)
        return self._observation(), {}

    def step(self, action):
        chance = self.np_random.random()
        return self._observation(), float(self.np_random.normal() + action), chance < 0.1, chance > 0.95, {}

    def _observation(self):
        shape, dtype = self.observation_space.shape, self.observation_space.dtype
        if dtype == np.uint8:
            self.frames = np.roll(self.frames, -1, axis=0)
            self.frames[-1] = self.np_random.integers(0, 256, shape[1:])
            return self.frames.copy()
        return self.np_random.uniform(-1, 1, shape).astype(np.float32)


def beta(progress):
    return 1 - 0.6 * progress


VECTOR, FRAMES = spaces.Box(-1, 1, (4,)), spaces.Box(0, 255, (4, 36, 36), np.uint8)
CASES = {
    "DQN": (DQN, VECTOR, {}),
    "all off": (Rainbow, VECTOR, dict.fromkeys(("distributional", "dueling", "double", "noisy", "prioritized"), False)),
    "Rainbow": (Rainbow, VECTOR, dict(beta=beta)),
    "not noisy": (Rainbow, VECTOR, dict(noisy=False, policy_kwargs=dict(sparsity=0.5))),
    "DER, frames": (DER, FRAMES, dict(replay_buffer_kwargs=dict(n_stack=4), policy_kwargs=dict(encoder="grid", sparsity=0.5))),
}


@pytest.mark.parametrize("name", CASES)
# Also when the ring of the buffer has gone round once.
@pytest.mark.parametrize("steps", [60, 130])
def test_a_saved_agent_goes_on(name, steps, tmp_path):
    algorithm, space, settings = CASES[name]
    env = DummyVecEnv([lambda: Walk(space)])
    model = algorithm("CnnPolicy" if space is FRAMES else "MlpPolicy", env, **{**SETTINGS, **settings})
    model.learn(steps)
    model.save(tmp_path / "agent")
    model.save_replay_buffer(tmp_path / "buffer")
    # The environment in the state that it has now, which no file holds, and no more do random generators.
    loaded = algorithm.load(tmp_path / "agent", env=copy.deepcopy(model.get_env()), force_reset=False)
    assert loaded.replay_buffer.size() == 0
    loaded.load_replay_buffer(tmp_path / "buffer")
    for agent in (model, loaded):
        set_random_seed(7)
        agent.action_space.seed(7)
        agent.learn(50, reset_num_timesteps=False)
    weights, others = (list(agent.policy.state_dict().values()) for agent in (model, loaded))
    assert len(weights) == len(others)
    same = [th.equal(a, b) for a, b in zip(weights, others, strict=True)]
    assert all(same)
    assert (loaded.num_timesteps, loaded.n_steps) == (model.num_timesteps, model.n_steps)
    moments = [list(agent.policy.optimizer.state.values()) for agent in (model, loaded)]
    assert all(th.equal(a["exp_avg"], b["exp_avg"]) for a, b in zip(*moments, strict=True))
    ours, theirs = model.replay_buffer, loaded.replay_buffer
    assert np.array_equal(ours.actions, theirs.actions)
    assert np.array_equal(ours.rewards, theirs.rewards)
    if hasattr(ours, "priorities"):
        assert np.array_equal(ours.priorities._tree.weights, theirs.priorities._tree.weights)
        assert ours.priorities.largest == theirs.priorities.largest
        assert len(np.unique(ours.priorities._tree.weights)) > 20


def test_without_the_priorities_it_would_be_another_one(tmp_path):
    env = DummyVecEnv([lambda: Walk(VECTOR)])
    model = Rainbow("MlpPolicy", env, **SETTINGS).learn(60)
    model.save(tmp_path / "agent")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = Rainbow.load(tmp_path / "agent", env=copy.deepcopy(model.get_env()), force_reset=False)
    loaded.load_replay_buffer(tmp_path / "buffer")
    buffer = loaded.replay_buffer
    buffer.update_priorities(np.arange(buffer.size()), np.ones(buffer.size()))
    for agent in (model, loaded):
        set_random_seed(7)
        agent.learn(50, reset_num_timesteps=False)
    assert not all(th.equal(a, b) for a, b in zip(model.policy.parameters(), loaded.policy.parameters(), strict=True))


def test_a_schedule_ends_where_the_training_ends():
    env = DummyVecEnv([lambda: Walk(VECTOR)])
    # Whose last rollout goes beyond it.
    model = Rainbow("MlpPolicy", env, beta=beta, **SETTINGS, train_freq=8).learn(57)
    assert model.num_timesteps == 64
    assert model.replay_buffer.progress_remaining == 0


@pytest.mark.parametrize("prioritized", [True, False])
def test_several_steps_are_not_warned_of(prioritized, tmp_path):
    env = DummyVecEnv([lambda: Walk(VECTOR)])
    model = Rainbow("MlpPolicy", env, prioritized=prioritized, n_steps=5, **SETTINGS)
    model.save(tmp_path / "agent")
    loaded = Rainbow.load(tmp_path / "agent")
    assert model.n_steps == loaded.n_steps == model.replay_buffer.n_steps == loaded.replay_buffer.n_steps == 5


@pytest.fixture
def buffer_file(tmp_path):
    def write(**settings):
        env = DummyVecEnv([lambda: Walk(VECTOR)])
        Rainbow("MlpPolicy", env, **{**SETTINGS, **settings}).learn(30).save_replay_buffer(tmp_path / "buffer")
        return tmp_path / "buffer"

    return write


@pytest.mark.parametrize(
    ("theirs", "expected"),
    [
        ({"alpha": 0.7}, r"buffer: a replay buffer with alpha=0\.7, this agent's has 0\.5"),
        ({"gamma": 0.9}, r"gamma=0\.9, this agent's has 0\.99"),
        ({"n_steps": 5}, "n_steps=5, this agent's has 3"),
        (
            {"replay_buffer_kwargs": {"handle_timeout_termination": False}},
            "handle_timeout_termination=False, this agent's has True",
        ),
        ({"prioritized": False}, "prioritized=True with a replay buffer of the class"),
    ],
)
def test_a_buffer_that_was_made_otherwise_is_refused(buffer_file, theirs, expected):
    model = Rainbow("MlpPolicy", DummyVecEnv([lambda: Walk(VECTOR)]), **SETTINGS)
    before, path = model.replay_buffer, buffer_file(**theirs)
    with pytest.raises(ValueError, match=expected):
        model.load_replay_buffer(path)
    assert model.replay_buffer is before


def test_a_buffer_of_another_size_is_taken_with_its_size(buffer_file):
    model = Rainbow("MlpPolicy", DummyVecEnv([lambda: Walk(VECTOR)]), **SETTINGS)
    path = buffer_file(buffer_size=40)
    with pytest.warns(UserWarning, match=r"for 40 transitions, where buffer_size=90 of this agent asks for 90"):
        model.load_replay_buffer(path)
    assert model.replay_buffer.buffer_size == 40


@pytest.mark.parametrize(("theirs", "warned"), [(0.4, False), (0.9, True), (beta, False)])
def test_the_weights_of_draws_are_those_of_the_agent(buffer_file, theirs, warned):
    model = Rainbow("MlpPolicy", DummyVecEnv([lambda: Walk(VECTOR)]), **SETTINGS)
    path = buffer_file(beta=theirs)
    if warned:
        with pytest.warns(UserWarning, match=r"beta=0\.9. This agent goes on with its own, 0\.4"):
            model.load_replay_buffer(path)
    else:
        model.load_replay_buffer(path)
    assert model.replay_buffer.beta == 0.4
    assert model.replay_buffer.size() == 32


@pytest.mark.parametrize("algorithm", [Rainbow, DER, DrQv2])
def test_learn_names_all_arguments_of_sb3s(algorithm):
    """Mistake of ours: those that it did not name were in no exact checkpoint."""
    assert inspect.signature(DQN.learn).parameters.keys() == inspect.signature(algorithm.learn).parameters.keys()


@pytest.mark.parametrize(
    ("written", "error"), [(b"", EOFError), (b"text", pickle.UnpicklingError), (pickle.dumps({"a": 1}), ValueError)]
)
def test_what_is_no_buffer_leaves_the_present_one(written, error):
    model = Rainbow("MlpPolicy", DummyVecEnv([lambda: Walk(VECTOR)]), **SETTINGS)
    before = model.replay_buffer
    with pytest.raises(error):
        model.load_replay_buffer(io.BytesIO(written))
    assert model.replay_buffer is before


def test_a_buffer_is_loaded_where_the_present_one_was_given_up_for_its_memory(buffer_file):
    model = Rainbow("MlpPolicy", DummyVecEnv([lambda: Walk(VECTOR)]), **SETTINGS)
    model.replay_buffer, path = None, buffer_file(alpha=0.9)
    with pytest.raises(ValueError, match=r"alpha=0\.9, this agent's has 0\.5"):
        model.load_replay_buffer(path)
    assert model.replay_buffer is None
    with pytest.raises(ValueError, match="replay_buffer is None: load_replay_buffer"):
        model.learn(10)
    with pytest.warns(UserWarning, match=r"beta=0\.9. This agent goes on with its own, 0\.4"):
        model.load_replay_buffer(buffer_file(beta=0.9))
    assert model.replay_buffer.beta == 0.4
    assert model.replay_buffer.size() == 32


def test_a_buffer_whose_folder_was_moved_keeps_its_settings(tmp_path):
    """Mistake of ours: the page said how to name the new place, and load refused it."""
    kwargs = dict(storage_path=tmp_path / "store", n_stack=4, rewind=0)
    settings = dict(SETTINGS, prioritized=False, replay_buffer_class=FrameReplayBuffer, policy_kwargs=dict(encoder="grid"))
    model = Rainbow("CnnPolicy", Walk(FRAMES), n_steps=2, replay_buffer_kwargs=kwargs, **settings).learn(25)
    model.save(tmp_path / "agent")
    model.replay_buffer.close()
    (tmp_path / "store").rename(tmp_path / "moved")
    moved = dict(storage_path=tmp_path / "moved")
    with pytest.warns(UserWarning, match="moved holds 28 transitions of an earlier run, .* n_steps=2"):
        loaded = Rainbow.load(tmp_path / "agent", env=Walk(FRAMES), replay_buffer_kwargs=moved)
    assert (loaded.replay_buffer.n_steps, loaded.replay_buffer.size()) == (2, 28)
    with pytest.raises(ValueError, match="the saved agent has its own"):
        Rainbow.load(tmp_path / "agent", replay_buffer_kwargs=dict(n_stack=2))
    Rainbow("MlpPolicy", "CartPole-v1", **SETTINGS).save(tmp_path / "other")
    with pytest.raises(ValueError, match="replay buffer is none of single frames, which alone is kept in a file"):
        Rainbow.load(tmp_path / "other", replay_buffer_kwargs=moved)
