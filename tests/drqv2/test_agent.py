"""The agent as users of SB3 know agents: it saves, loads, goes on, and says what is wrong."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize

from sb3_sparse.drqv2 import DrQv2, DrQv2Policy
from sb3_sparse.plasticity import PlasticityCallback, ResetCallback
from sb3_sparse.replay import FrameReplayBuffer
from sb3_sparse.replay.buffer import ComposedReplayBuffer
from sb3_sparse.sparse.layers import sparse_layers
from tests.drqv2.pictures import Dot, agent
from tests.envs import SpaceEnv

SPARSE = dict(sparsity=0.8, critic_width_scale=2)


def test_saved_loaded_and_trained_on(tmp_path):
    model = agent(policy_kwargs=SPARSE, exploration_steps=100).learn(30)
    model.save(tmp_path / "agent")
    model.save_replay_buffer(tmp_path / "buffer")
    obs = model.env.reset()
    loaded = DrQv2.load(tmp_path / "agent", env=Dot())
    assert np.array_equal(model.predict(obs, deterministic=True)[0], loaded.predict(obs, deterministic=True)[0])
    assert loaded.exploration_std == model.exploration_std == loaded.policy.noise_std == pytest.approx(1 - 0.9 * 0.3)
    drawn = []
    for each in (model, loaded):
        th.manual_seed(3)
        each.policy.noise_std = each.exploration_std
        drawn.append(each.predict(obs)[0])
    assert np.array_equal(*drawn)
    loaded.load_replay_buffer(tmp_path / "buffer")
    for each in (model, loaded):
        np.random.seed(0)
        th.manual_seed(0)
        each.set_logger(model.logger)
        each.train(3, 6)
    for (name, a), b in zip(model.policy.state_dict().items(), loaded.policy.state_dict().values(), strict=True):
        assert th.equal(a, b), name
    loaded.learn(10, reset_num_timesteps=False)
    assert loaded.num_timesteps == 40


def test_a_buffer_of_other_transitions_is_refused(tmp_path):
    agent(n_steps=2).learn(10).save_replay_buffer(tmp_path / "buffer")
    model = agent()
    model.load_replay_buffer(tmp_path / "buffer")
    with pytest.raises(ValueError, match="n_steps=3 of DrQv2, and n_steps=2 of its replay buffer"):
        model.learn(10)


def test_windows_do_not_run_on_into_another_trajectory():
    model = agent(learning_starts=1000, buffer_size=1000)
    model.learn(10)
    model.learn(10)
    # The last step before the second `learn`, which resets the environment in the middle of an episode of 12.
    assert model.replay_buffer.timeouts[:20, 0].tolist() == [float(i == 9) for i in range(20)]
    model.learn(4, reset_num_timesteps=False)
    # It goes on, and ends after 12 steps, by its own time limit.
    assert np.flatnonzero(model.replay_buffer.timeouts[:24, 0]).tolist() == [9, 21]


def test_a_trajectory_that_goes_on_is_not_cut_where_observations_are_normalized():
    env = VecNormalize(DummyVecEnv([lambda: Dot(length=1000)]))
    model = agent(env, dict(normalize_images=False), learning_starts=1000)
    model.learn(10)
    model.learn(10, reset_num_timesteps=False)
    assert not model.replay_buffer.timeouts.any()
    model.learn(1)
    assert np.flatnonzero(model.replay_buffer.timeouts).tolist() == [19]


def test_the_target_begins_as_the_critic():
    policy = agent(policy_kwargs=SPARSE).policy
    pairs = zip(policy.critic.state_dict().values(), policy.critic_target.state_dict().values(), strict=True)
    assert all(th.equal(online, target) for online, target in pairs)
    assert not {p.data_ptr() for p in policy.critic.parameters()} & {p.data_ptr() for p in policy.critic_target.parameters()}


def test_a_policy_alone_is_saved_with_its_noise(tmp_path):
    model = agent(policy_kwargs=SPARSE, exploration_steps=100).learn(30)
    model.policy.save(tmp_path / "policy")
    loaded = DrQv2Policy.load(tmp_path / "policy")
    assert loaded.noise_std == model.policy.noise_std < 1
    obs = model.env.reset()
    assert np.array_equal(model.predict(obs, deterministic=True)[0], loaded.predict(obs, deterministic=True)[0])
    assert (loaded.predict(obs, deterministic=True)[0] <= 3).all()
    assert sparse_layers(loaded.critic).keys() == sparse_layers(model.critic).keys() != {}


def test_actions_are_those_of_the_environment():
    model = agent(Dot(n_actions=3))
    obs = model.env.reset()
    actions = np.array([model.predict(obs)[0][0] for _ in range(200)])
    assert actions.min() < -1.5
    assert 2.5 < actions.max() <= 3
    deterministic = model.predict(obs, deterministic=True)[0]
    assert np.array_equal(deterministic, model.predict(obs, deterministic=True)[0])


def test_actions_may_have_several_dimensions():
    env = SpaceEnv(spaces.Box(0, 255, (9, 24, 24), np.uint8), spaces.Box(-3, 3, (2, 3)))
    model = agent(env).learn(20)
    obs = model.env.reset()
    assert model.predict(obs)[0].shape == (1, 2, 3)
    assert model.actor.mu[-1].out_features == 6


def test_several_environments():
    model = agent(make_vec_env(Dot, 3, seed=0), train_freq=2, gradient_steps=-1).learn(60)
    # As many updates as steps, but for those of the first rollout.
    assert model._n_updates == 60 - 6
    assert model.replay_buffer.n_envs == 3


@pytest.mark.parametrize(
    ("shape", "kind", "n_stack"),
    [
        ((9, 24, 24), FrameReplayBuffer, 3),
        ((12, 24, 24), FrameReplayBuffer, 4),
        ((4, 24, 24), FrameReplayBuffer, 4),
        ((3, 24, 24), ComposedReplayBuffer, None),
        ((1, 24, 24), ComposedReplayBuffer, None),
        ((24, 24, 6), FrameReplayBuffer, 2),
    ],
)
def test_frames_are_found_by_their_channels(shape, kind, n_stack):
    class Pictures(gym.Env):
        observation_space = spaces.Box(0, 255, shape, np.uint8)
        action_space = spaces.Box(-1, 1, (1,), np.float32)

    buffer = agent(Pictures()).replay_buffer
    assert type(buffer) is kind
    assert getattr(buffer, "n_stack", None) == n_stack
    assert (buffer.n_steps, buffer.gamma) == (3, 0.99)


@pytest.mark.parametrize("kind", [FrameReplayBuffer, ComposedReplayBuffer, NStepReplayBuffer])
def test_a_buffer_that_is_named_gets_what_is_not_said(kind):
    buffer = agent(n_steps=2, gamma=0.9, replay_buffer_class=kind).learn(12).replay_buffer
    assert type(buffer) is kind
    assert (buffer.n_steps, buffer.gamma) == (2, 0.9)
    assert getattr(buffer, "n_stack", 3) == 3


def test_a_saved_agent_goes_on_with_a_buffer_in_a_file(tmp_path):
    agent(n_steps=2).learn(12).save(tmp_path / "agent")
    keywords = dict(storage_path=tmp_path / "store", rewind=0)
    with pytest.warns(UserWarning, match="is new: an agent that has made 12 steps"):
        loaded = DrQv2.load(tmp_path / "agent", env=Dot(), replay_buffer_kwargs=keywords).learn(12)
    buffer = loaded.replay_buffer
    assert (buffer.n_steps, buffer.gamma, buffer.n_stack, buffer.store.folder) == (2, 0.99, 3, tmp_path / "store")


def test_a_buffer_whose_folder_was_moved_keeps_its_settings(tmp_path):
    model = agent(n_steps=2, replay_buffer_kwargs=dict(storage_path=tmp_path / "store", n_stack=9)).learn(12)
    model.save(tmp_path / "agent")
    model.replay_buffer.close()
    (tmp_path / "store").rename(tmp_path / "moved")
    with pytest.warns(UserWarning, match=r"moved holds 12 transitions of an earlier run, .* with n_steps=2 and gamma=0\.99"):
        loaded = DrQv2.load(tmp_path / "agent", env=Dot(), replay_buffer_kwargs=dict(storage_path=tmp_path / "moved"))
    assert (loaded.replay_buffer.n_stack, loaded.replay_buffer.n_steps, loaded.replay_buffer.size()) == (9, 2, 12)
    assert not (tmp_path / "store").exists()


def test_single_frames_are_not_kept_in_a_file(tmp_path):
    keywords = dict(storage_path=tmp_path / "store")
    with pytest.raises(ValueError, match=r"storage_path=.*\(3, 24, 24\).*single frames"):
        agent(Other(IMAGES), replay_buffer_kwargs=keywords)
    assert not (tmp_path / "store").exists()


def test_gray_frames_stacked_by_sb3():
    class Gray(Dot):
        def __init__(self):
            super().__init__()
            self.observation_space = spaces.Box(0, 255, (1, 24, 24), np.uint8)

        def reset(self, **kwargs):
            return super().reset(**kwargs)[0][:1], {}

        def step(self, action):
            obs, *rest = super().step(action)
            return obs[:1], *rest

    env = VecFrameStack(DummyVecEnv([Gray]), 3, channels_order="first")
    model = agent(env, replay_buffer_kwargs=dict(n_stack=3)).learn(30)
    assert model.replay_buffer.n_stack == 3
    assert model._n_updates > 5


class Other(gym.Env):
    def __init__(self, observations, actions=None):
        self.observation_space = observations
        self.action_space = spaces.Box(-1, 1, (1,), np.float32) if actions is None else actions


IMAGES = spaces.Box(0, 255, (3, 24, 24), np.uint8)


@pytest.mark.parametrize(
    ("env", "says"),
    [
        (Other(spaces.Box(-1, 1, (4,), np.float32)), "DrQ-v2 learns from images"),
        # Not SB3's advice to take another policy, of which there is none.
        (Other(spaces.Dict(a=IMAGES)), r"observation space Dict.*: DrQ-v2 learns from images"),
        (Other(spaces.Box(0, 1, (3, 24, 24), np.float32)), "images of float32: expected uint8"),
        (Other(spaces.Box(0, 255, (3, 14, 24), np.uint8)), "images of 14 x 24 pixels"),
        # SB3 would not divide them by 255, and say nothing.
        (Other(spaces.Box(0, 250, (3, 24, 24), np.uint8)), "images of uint8 from 0 to 250: expected bounds of 0 and 255"),
        (Other(spaces.Box(0, 1, (24, 24, 3), np.uint8)), "images of uint8 from 0 to 1: expected bounds of 0 and 255"),
        (Other(IMAGES, spaces.Discrete(3)), "Discrete"),
    ],
)
def test_environments_that_it_cannot_learn_from(env, says):
    with pytest.raises((ValueError, AssertionError), match=says):
        agent(env)


def test_channels_that_are_last():
    with pytest.raises(ValueError, match=r"\(24, 24, 9\): expected channels first"):
        DrQv2Policy(spaces.Box(0, 255, (24, 24, 9), np.uint8), Dot().action_space, lambda _: 1e-4)


@pytest.mark.parametrize(
    "wrong",
    [
        dict(n_steps=0),
        dict(exploration_initial_std=-1.0),
        dict(exploration_final_std="small"),
        dict(exploration_steps=0),
        dict(noise_clip=0.0),
        dict(shift_pad=1.5),
        dict(tau=2.0),
        dict(gamma=-0.1),
        dict(use_sde=True),
        dict(batch_size=0),
        dict(learning_starts=-1),
        dict(policy_kwargs=dict(critic_width_scale=0)),
        dict(policy_kwargs=dict(sparsity=1.0)),
        dict(policy_kwargs=dict(sparsity={"qf": 0.5})),
        dict(policy_kwargs=dict(sparsity_scope="all")),
        dict(policy_kwargs=dict(feature_dim=0)),
        dict(policy_kwargs=dict(n_critics=0)),
    ],
)
def test_values_that_are_out_of_range(wrong):
    name = next(iter(wrong.get("policy_kwargs", wrong)))
    with pytest.raises(ValueError, match=name):
        agent(**wrong)


def test_float_images_if_they_are_asked_for():
    env = Other(spaces.Box(0, 1, (3, 24, 24), np.float32))
    model = agent(env, dict(normalize_images=False))
    assert model.predict(np.random.rand(3, 24, 24).astype(np.float32))[0].shape == (1,)


def test_plasticity_and_resets(tmp_path):
    path = tmp_path / "plasticity.csv"
    callbacks = [
        PlasticityCallback(networks=["encoder", "actor", "critic"], log_freq=20, n_samples=12, csv_path=path),
        ResetCallback(at=[30], strategy="full", networks=["critic"]),
        ResetCallback(at=[36], strategy="redo", networks=["actor", "critic"]),
        ResetCallback(at=[40], strategy="shrink_perturb", networks=["encoder"]),
    ]
    model = agent(policy_kwargs=SPARSE)
    before = {name: layer.topology for name, layer in sparse_layers(model.critic).items()}
    model.learn(44, callback=callbacks)
    assert all(layer.topology is before[name] for name, layer in sparse_layers(model.critic).items())
    assert all(name in path.read_text() for name in ("encoder", "actor", "critic"))
