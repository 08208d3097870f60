"""Agents through a safe file and back."""

import copy
import functools

import numpy as np
import pytest
import torch as th
from sb3_contrib import QRDQN
from stable_baselines3 import DDPG, DQN, PPO, SAC, TD3, HerReplayBuffer
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise, VectorizedActionNoise
from stable_baselines3.common.torch_layers import NatureCNN
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from sb3_sparse.export import safe_to_sb3, sb3_to_safe
from sb3_sparse.resume.safe import load_safe, load_safe_vec_normalize, save_safe
from sb3_sparse.resume.safe.agents import read_safe
from tests.envs import ReachEnv, SpaceEnv
from tests.export.agents import BOX, DISCRETE, OFF_POLICY, VECTOR, mlp, observations_of
from tests.resume.safe_agents import KINDS, learn, same, saved_parts


@functools.cache
def trained(name):
    """Shared by tests, which do not change it."""
    model = KINDS[name]()
    return learn(model, 32)


def predictions(model, **kwargs):
    observations = observations_of(copy.deepcopy(model.observation_space), 64, seed=5)
    return model.predict(observations, deterministic=True, **kwargs)[0]


def assert_same_agent(found, expected):
    assert type(found) is type(expected)
    assert same(found.get_parameters(), expected.get_parameters())
    for name in expected._get_torch_save_params()[1]:
        assert same(getattr(found, name), getattr(expected, name)), name
    assert np.array_equal(predictions(found), predictions(expected))


@pytest.mark.parametrize("name", KINDS)
def test_an_agent_comes_back_bit_by_bit(name, tmp_path):
    model = trained(name)
    path = save_safe(model, tmp_path / "agent")
    assert path == tmp_path / "agent.safetensors"
    found = load_safe(path)
    assert_same_agent(found, model)
    before, after = saved_parts(model), read_safe(path).data
    assert before.keys() - after.keys() == {"tensorboard_log"}
    assert not [key for key in after if not same(after[key], before[key])]


class SameEnv(SpaceEnv):
    """Every time the same observations."""

    def reset(self, *, seed=None, options=None):
        return super().reset(seed=7, options=options)


# Action spaces draw with generators that `load` seeds: from here on, both agents are in the same state.
@pytest.mark.parametrize("name", [*KINDS])
def test_it_goes_on_as_from_the_file_of_sb3(name, tmp_path):
    model = trained(name)
    model.save(tmp_path / "agent.zip")
    save_safe(model, tmp_path / "agent")
    envs = [SameEnv(copy.deepcopy(model.observation_space), copy.deepcopy(model.action_space)) for _ in range(2)]
    from_zip = type(model).load(tmp_path / "agent.zip", env=envs[0], device="cpu")
    from_safe = load_safe(tmp_path / "agent.safetensors", env=envs[1], device="cpu")
    for each in (from_zip, from_safe):
        each.set_random_seed(3)
        learn(each, 40)
    assert same(from_safe.get_parameters(), from_zip.get_parameters())
    assert from_safe.num_timesteps == from_zip.num_timesteps
    if not name.startswith(("ars", "maskable", "recurrent")):
        # Something was learned, so that the comparison is one.
        assert not same(from_safe.get_parameters(), model.get_parameters())


def test_shared_tensors_are_written_once(tmp_path):
    model = trained("sac")
    agent_bytes = sum(
        tensor.untyped_storage().nbytes()
        for tensor in {t.data_ptr(): t for t in model.policy.state_dict(keep_vars=True).values() if t.numel()}.values()
    )
    safe = read_safe(save_safe(model, tmp_path / "agent"))
    by_name = safe.params["policy"]
    shared = [name for name in by_name if name.endswith("obs_mean")]
    assert len(shared) > 1
    assert len({by_name[name].data_ptr() for name in shared}) == 1
    assert agent_bytes == sum(
        t.untyped_storage().nbytes() for t in {t.data_ptr(): t for t in by_name.values() if t.numel()}.values()
    )


class Halving:
    """A schedule of a user."""

    def __init__(self, start):
        self.start = start

    def __call__(self, progress):
        return self.start * 0.5 ** (1 - progress)


def cosine(progress):
    return 1e-3 * (1 + np.cos(np.pi * (1 - progress))) / 2


class MyCNN(NatureCNN):
    """A class of a user."""


class MyPPO(PPO):
    """An algorithm of a user."""


def tiny(**kwargs):
    return PPO("MlpPolicy", SpaceEnv(VECTOR, BOX), n_steps=16, batch_size=8, **kwargs)


def test_what_json_cannot_say_is_refused_by_name(tmp_path):
    with pytest.raises(
        ValueError, match=r"agent\.safetensors: cannot save this PPO: data\.learning_rate is a function, .*<lambda>"
    ) as e:
        save_safe(tiny(learning_rate=lambda p: 1e-3 * p), tmp_path / "agent")
    assert "LinearSchedule" in str(e.value)
    assert "test_safe_agents.py, line" in str(e.value)
    with pytest.raises(
        ValueError, match=r"data\.learning_rate is a .*Halving, which cannot be written without pickle.*allow="
    ):
        save_safe(tiny(learning_rate=Halving(1.0)), tmp_path / "agent")
    with pytest.raises(ValueError, match=r"data\.learning_rate is a function, cosine of .*not on the list.*allow="):
        save_safe(tiny(learning_rate=cosine), tmp_path / "agent")
    with pytest.raises(ValueError, match=r"features_extractor_class is .*MyCNN, which is not on the list of allowed classes"):
        save_safe(mlp(DQN, *image(), "CnnPolicy", policy_kwargs={"features_extractor_class": MyCNN}), tmp_path / "agent")
    with pytest.raises(ValueError, match=r"algorithm is .*MyPPO"):
        save_safe(MyPPO("MlpPolicy", SpaceEnv(VECTOR, BOX), n_steps=16, batch_size=8), tmp_path / "agent")
    assert list(tmp_path.iterdir()) == []


def image():
    model = KINDS["sb3 dqn image"]()
    return model.observation_space, model.action_space


def test_users_extend_the_list(tmp_path):
    for i, (model, thing) in enumerate(
        [
            (tiny(learning_rate=Halving(0.01)), Halving),
            (tiny(learning_rate=cosine), cosine),
            (mlp(DQN, *image(), "CnnPolicy", policy_kwargs={"features_extractor_class": MyCNN}), MyCNN),
            (MyPPO("MlpPolicy", SpaceEnv(VECTOR, BOX), n_steps=16, batch_size=8), MyPPO),
        ]
    ):
        path = save_safe(model, tmp_path / f"agent{i}", allow=[thing])
        with pytest.raises(ValueError, match=rf"{path}.*{thing.__name__}', which is not on the list.*allow="):
            load_safe(path)
        found = load_safe(path, allow=[thing])
        assert_same_agent(found, model)
        assert found.lr_schedule(0.3) == model.lr_schedule(0.3)
    with pytest.raises(ValueError, match=r"allow: .*lambda"):
        load_safe(path, allow=[lambda: 1])


@pytest.mark.parametrize("schedule", ["number", "linear", "rl-zoo3"])
def test_schedules(schedule, tmp_path):
    rate = {"number": 0.003, "linear": LinearSchedule(0.01, 0.0001, 0.7)}.get(schedule)
    if rate is None:
        rate = pytest.importorskip("rl_zoo3.utils").linear_schedule("0.001")
    model = tiny(learning_rate=rate, clip_range=rate)
    found = load_safe(save_safe(model, tmp_path / "agent"))
    for progress in (1.0, 0.77, 0.1, 0.0):
        assert found.lr_schedule(progress) == model.lr_schedule(progress)
        assert found.clip_range(progress) == model.clip_range(progress)
    assert type(found.learning_rate) is type(model.learning_rate)


@pytest.mark.parametrize("noise", ["normal", "ornstein", "several"])
def test_noise(noise, tmp_path):
    mean, sigma = np.array([0.1, -0.2]), np.array([0.3, 0.4])
    made = {
        "normal": lambda: NormalActionNoise(mean, sigma),
        "ornstein": lambda: OrnsteinUhlenbeckActionNoise(mean, sigma, initial_noise=mean),
        "several": lambda: VectorizedActionNoise(OrnsteinUhlenbeckActionNoise(mean, sigma), 2),
    }[noise]()
    made()
    model = TD3("MlpPolicy", SpaceEnv(VECTOR, BOX), action_noise=made, **OFF_POLICY)
    found = load_safe(save_safe(model, tmp_path / "agent"))
    draws = []
    for each in (model.action_noise, found.action_noise):
        np.random.seed(0)
        draws.append([each() for _ in range(3)])
    assert same(*draws)


def test_other_classes_of_the_libraries(tmp_path):
    model = mlp(
        DQN, VECTOR, DISCRETE, replay_buffer_class=NStepReplayBuffer, replay_buffer_kwargs={"n_steps": 3, "gamma": 0.9},
        policy_kwargs={"activation_fn": nn.ELU, "optimizer_class": th.optim.RMSprop, "optimizer_kwargs": {"eps": 1e-3}},
    )  # fmt: skip
    found = load_safe(save_safe(model, tmp_path / "agent"))
    assert type(found.replay_buffer) is NStepReplayBuffer
    assert found.replay_buffer.n_steps == 3
    assert type(found.policy.optimizer) is th.optim.RMSprop
    assert_same_agent(found, model)


def test_batch_norm_and_momentum(tmp_path):
    model = KINDS["sb3 crossq"]()
    model.learn(32)
    found = load_safe(save_safe(model, tmp_path / "agent"))
    assert_same_agent(found, model)
    state = found.critic.optimizer.state_dict()["state"]
    assert state
    assert same(state, model.critic.optimizer.state_dict()["state"])


def test_her(tmp_path):
    from stable_baselines3.common.envs import BitFlippingEnv

    env = BitFlippingEnv(n_bits=4, continuous=True)
    model = SAC(
        "MultiInputPolicy", env, buffer_size=100,
        replay_buffer_class=HerReplayBuffer, replay_buffer_kwargs={"n_sampled_goal": 2},
    )  # fmt: skip
    found = load_safe(save_safe(model, tmp_path / "agent"), env=env)
    assert type(found.replay_buffer) is HerReplayBuffer
    assert found.replay_buffer.n_sampled_goal == 2


def test_statistics_of_vec_normalize(tmp_path):
    def envs():
        return make_vec_env(lambda: ReachEnv(5.0, 3.0), 2)

    wrapper = VecNormalize(envs(), clip_obs=4.0, gamma=0.9)
    model = PPO("MlpPolicy", wrapper, n_steps=16, batch_size=8)
    model.learn(64)
    path = save_safe(model, tmp_path / "agent")
    found = load_safe(path, env=envs())
    again = found.get_vec_normalize_env()
    observations = np.random.default_rng(0).normal(5.0, 3.0, (9, 2))
    for name in ("obs_rms", "ret_rms"):
        assert same(vars(getattr(again, name)), vars(getattr(wrapper, name)))
    assert same(again.normalize_obs(observations), wrapper.normalize_obs(observations))
    assert (again.clip_obs, again.gamma, again.training) == (4.0, 0.9, True)
    found.learn(32)
    # One's own wrapper stays.
    own = VecNormalize(envs())
    assert load_safe(path, env=own).get_vec_normalize_env() is own
    alone = load_safe_vec_normalize(path, envs())
    assert same(alone.normalize_obs(observations), wrapper.normalize_obs(observations))
    with pytest.raises(ValueError, match=r"agent\.safetensors makes no .*statistics obs_rms of the shapes"):
        load_safe_vec_normalize(path, make_vec_env(lambda: SpaceEnv(VECTOR, BOX), 1))
    with pytest.raises(ValueError, match=r"other\.safetensors holds no statistics"):
        load_safe_vec_normalize(save_safe(trained("sb3 ppo"), tmp_path / "other"), envs())


@pytest.mark.parametrize("name", ["sac", "stream_ac", "rainbow", "sb3 ppo", "sb3 sac fixed"])
def test_to_files_of_sb3_and_back(name, tmp_path):
    model = trained(name)
    model.save(tmp_path / "first.zip")
    safe = sb3_to_safe(tmp_path / "first.zip", tmp_path / "agent.safetensors", type(model))
    assert_same_agent(load_safe(safe), model)
    back = type(model).load(safe_to_sb3(safe, tmp_path / "back.zip"))
    assert_same_agent(back, model)
    assert same({k: v for k, v in saved_parts(back).items() if k == "buffer_size"}, {
        k: v for k, v in saved_parts(model).items() if k == "buffer_size"
    })  # fmt: skip


def test_another_algorithm_is_refused(tmp_path):
    path = save_safe(trained("tqc"), tmp_path / "agent")
    with pytest.raises(ValueError, match=r"agent\.safetensors holds an agent of TQC, expected one of SAC"):
        load_safe(path, algorithm=SAC)
    path = save_safe(trained("ddpg"), tmp_path / "agent")
    assert type(load_safe(path, algorithm=TD3)) is DDPG
    with pytest.raises(ValueError, match="holds an agent of DDPG, expected one of QRDQN"):
        load_safe(path, algorithm=QRDQN)


def test_keywords_change_attributes_and_logs_go_where_the_user_says(tmp_path):
    model = tiny(tensorboard_log=str(tmp_path / "logs"))
    path = save_safe(model, tmp_path / "agent")
    assert str(tmp_path).encode() not in path.read_bytes()
    assert load_safe(path).tensorboard_log is None
    assert load_safe(path, tensorboard_log="elsewhere", seed=9).tensorboard_log == "elsewhere"


def test_names_of_files(tmp_path):
    model = tiny()
    with pytest.raises(ValueError, match=r"expected a name that ends in '\.safetensors'"):
        save_safe(model, tmp_path / "agent.zip")
    with pytest.raises(ValueError, match="expected the name of a file"):
        save_safe(model, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"nothing\.safetensors"):
        load_safe(tmp_path / "nothing.safetensors")
