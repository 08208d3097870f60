"""predict as a module: what it is made of, what is folded in, what is refused."""

import pickle
import warnings

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import ARS, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, PPO, SAC, TD3
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize

from sb3_sparse import SparseConv2d, SparseLinear
from sb3_sparse.export import check as checks
from sb3_sparse.export import predict_module
from sb3_sparse.streaming import StreamAC
from tests.envs import SpaceEnv
from tests.export.agents import (
    BOX,
    DICT,
    DISCRETE,
    IMAGE,
    MAKERS,
    OFF_POLICY,
    ON_POLICY,
    VECTOR,
    agent,
    assert_equal_actions,
    mlp,
    observations_of,
    simba,
)

N = 200


def test_the_module_is_dense_without_gradients_and_in_evaluation_mode():
    module = predict_module(agent("ppo image"))
    assert not [layer for layer in module.modules() if isinstance(layer, (SparseLinear, SparseConv2d)) or layer.training]
    assert not [p for p in module.parameters() if p.requires_grad or p.grad is not None]


def test_its_tensors_are_copies():
    model = MAKERS["sac"]()
    module = predict_module(model)
    observations = th.from_numpy(observations_of(VECTOR, N, seed=0))
    before = module(observations)
    with th.no_grad():
        for tensor in (*model.policy.parameters(), *model.policy.buffers()):
            tensor.copy_(th.zeros_like(tensor))
    assert th.equal(module(observations), before)


@pytest.mark.parametrize("name", ["stream_ac", "stream_q"])
def test_the_time_feature_is_that_of_every_step(name):
    model, module = agent(name), predict_module(agent(name))
    assert module.takes_step
    # SpaceEnv has no limit of its own, so it is 1000.
    steps = np.array([0, 1, 2, 500, 999, 1000, 1001, 5000])
    observation = np.repeat(observations_of(VECTOR, 1, seed=3), len(steps), axis=0)
    expected, _ = model.predict(observation, state=(steps,), deterministic=True)
    found = module(th.from_numpy(observation), th.from_numpy(steps)).numpy()
    # What is promised everywhere: backends of a batch round differently.
    assert np.abs(found - expected).max() <= 1e-5
    # Before and after the first step it is the same, and beyond the limit.
    scores = module.scores(th.from_numpy(observation), th.from_numpy(steps))
    assert len(np.unique(scores.numpy(), axis=0)) == len(steps) - 2


def normalized_env(observations=VECTOR, actions=BOX, **kwargs):
    env = VecNormalize(DummyVecEnv([lambda: SpaceEnv(observations, actions)]), **kwargs)
    env.reset()
    for _ in range(20):
        env.step([actions.sample()])
    return env


def trained_on(env, algorithm=SAC, policy="MlpPolicy", **kwargs):
    model = algorithm(policy, env, seed=0, policy_kwargs={"net_arch": [8]}, **{**OFF_POLICY, **kwargs})
    return model.learn(20)


def test_vec_normalize_is_folded_in(tmp_path):
    env = normalized_env(clip_obs=1.0)
    model = trained_on(env)
    observations = observations_of(VECTOR, N, seed=0)
    expected, _ = model.predict(env.normalize_obs(observations), deterministic=True)
    without, _ = model.predict(observations, deterministic=True)
    assert np.abs(expected - without).max() > 0.1
    assert np.abs(env.normalize_obs(observations)).max() == 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module = predict_module(model, vec_normalize=model.get_vec_normalize_env())
    assert_equal_actions(module(th.from_numpy(observations)).numpy(), expected)
    env.save(tmp_path / "vecnormalize.pkl")
    module = predict_module(model, vec_normalize=tmp_path / "vecnormalize.pkl")
    assert_equal_actions(module(th.from_numpy(observations)).numpy(), expected)


def test_the_file_of_vec_normalize_is_read_once(tmp_path, monkeypatch):
    env = normalized_env()
    model = trained_on(env)
    env.save(tmp_path / "vecnormalize.pkl")
    read, load = [], pickle.load
    monkeypatch.setattr(pickle, "load", lambda file: read.append(file.name) or load(file))
    predict_module(model, vec_normalize=tmp_path / "vecnormalize.pkl")
    assert read == [str(tmp_path / "vecnormalize.pkl")]


def test_vec_normalize_of_some_parts_of_a_dict():
    env = normalized_env(DICT, norm_obs_keys=["mul", "a goal"])
    model = trained_on(env, policy="MultiInputPolicy")
    observations = observations_of(DICT, N, seed=0)
    expected, _ = model.predict(env.normalize_obs(observations), deterministic=True)
    module = predict_module(model, vec_normalize=env)
    assert_equal_actions(module({key: th.from_numpy(part) for key, part in observations.items()}).numpy(), expected)


@pytest.mark.parametrize("space", [IMAGE, spaces.Dict({"vec": VECTOR, "img": IMAGE})], ids=["image", "dict"])
def test_images_below_vec_normalize_go_in_as_bytes(space, tmp_path):
    """SB3 replaces the space of an image by that of its normalised one: in the file, of a Dict also in the environment."""
    env = normalized_env(space)
    policy_kwargs = {"normalize_images": False, "net_arch": [8]}
    policy = "CnnPolicy" if space is IMAGE else "MultiInputPolicy"
    model = A2C(policy, env, policy_kwargs=policy_kwargs, **ON_POLICY).learn(16)
    observations = observations_of(space, 20, seed=0)
    expected, _ = model.predict(env.normalize_obs(observations), deterministic=True)
    env.save(tmp_path / "vecnormalize.pkl")
    parts = {key: th.from_numpy(part) for key, part in observations.items()} if isinstance(space, spaces.Dict) else None
    for wrapper in (env, tmp_path / "vecnormalize.pkl"):
        module = predict_module(model, vec_normalize=wrapper)
        image = module.observation_space["img"] if parts else module.observation_space
        assert image == IMAGE
        assert_equal_actions(module(parts or th.from_numpy(observations)).numpy(), expected)


def test_the_module_takes_a_tolerance_as_the_files_do():
    model = simba(SAC, VECTOR, BOX)
    with pytest.raises(RuntimeError, match=r"more than 1e-12.*larger tolerance="):
        predict_module(model, tolerance=1e-12)
    with pytest.raises(ValueError, match="tolerance=0"):
        predict_module(model, tolerance=0)


def test_vec_normalize_that_is_left_out_is_named():
    model = trained_on(normalized_env())
    with pytest.warns(UserWarning, match=r"wrapped in VecNormalize.*vec_normalize=model.get_vec_normalize_env\(\)"):
        module = predict_module(model)
    observations = observations_of(VECTOR, N, seed=0)
    expected, _ = model.predict(observations, deterministic=True)
    assert_equal_actions(module(th.from_numpy(observations)).numpy(), expected)


def test_vec_normalize_of_rewards_alone_is_no_matter():
    model = trained_on(normalized_env(norm_obs=False))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert predict_module(model).normalizer is None
        assert predict_module(model, vec_normalize=model.get_vec_normalize_env()).normalizer is None


def test_vec_normalize_below_another_wrapper_is_refused():
    env = VecFrameStack(normalized_env(spaces.Box(-1, 1, (3,))), n_stack=2)
    model = SAC("MlpPolicy", env, policy_kwargs={"net_arch": [8]}, **OFF_POLICY)
    with pytest.raises(ValueError, match=r"of shape {'': \(3,\)}, the agent of shape {'': \(6,\)}.*VecFrameStack"):
        predict_module(model, vec_normalize=model.get_vec_normalize_env())
    with pytest.raises(ValueError, match=r"vec_normalize=3: expected a VecNormalize, or the file"):
        predict_module(agent("sac"), vec_normalize=3)


@pytest.mark.parametrize("space", [IMAGE, spaces.Dict({"vec": VECTOR, "img": IMAGE})], ids=["image", "dict"])
def test_images_with_their_channels_last(space):
    model = simba(TD3, space, BOX)
    module = predict_module(model, channels_last=True)
    observations = observations_of(space, 20, seed=0)
    expected, _ = model.predict(observations, deterministic=True)

    def channels_last(image):
        return th.from_numpy(image).permute(0, 2, 3, 1)

    if isinstance(space, spaces.Dict):
        given = {"vec": th.from_numpy(observations["vec"]), "img": channels_last(observations["img"])}
        assert module.observation_space["img"].shape == (36, 40, 3)
    else:
        given = channels_last(observations)
        assert module.observation_space.shape == (36, 40, 3)
    assert_equal_actions(module(given).numpy(), expected)


def test_an_environment_with_its_channels_last():
    space = spaces.Box(0, 255, (36, 40, 3), np.uint8)
    model = simba(TD3, space, BOX)
    observations = observations_of(space, 20, seed=0)
    expected, _ = model.predict(observations, deterministic=True)
    assert_equal_actions(predict_module(model, channels_last=True)(th.from_numpy(observations)).numpy(), expected)
    turned = th.from_numpy(observations).permute(0, 3, 1, 2)
    assert_equal_actions(predict_module(model)(turned).numpy(), expected)


def test_channels_last_without_an_image():
    with pytest.raises(ValueError, match="channels_last=True: there is no image in Box"):
        predict_module(agent("sac"), channels_last=True)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: RecurrentPPO("MlpLstmPolicy", SpaceEnv(VECTOR, BOX), **ON_POLICY, batch_size=8), "has a recurrent state"),
        (lambda: ARS("LinearPolicy", SpaceEnv(VECTOR, BOX)), "ARSLinearPolicy cannot be exported. Policies of SAC"),
        (lambda: MaskablePPO("MlpPolicy", SpaceEnv(VECTOR, DISCRETE), **ON_POLICY, batch_size=8), "cannot be exported"),
    ],
    ids=["recurrent", "ars", "maskable"],
)
def test_what_cannot_be_exported_says_so(model, message):
    with pytest.raises(ValueError, match=message):
        predict_module(model())


def test_observations_that_do_not_start_at_zero_are_refused():
    model = mlp(SAC, spaces.Dict({"a": spaces.Discrete(3, start=1)}), BOX, "MultiInputPolicy")
    with pytest.raises(ValueError, match=r"observations \[Discrete\(3, start=1\)\] do not start at 0"):
        predict_module(model)


def test_actions_in_double_precision():
    model = simba(SAC, VECTOR, spaces.Box(-3.0, 5.0, (2,), np.float64))
    observations = observations_of(VECTOR, N, seed=0)
    expected, _ = model.predict(observations, deterministic=True)
    assert expected.dtype == np.float64
    assert_equal_actions(predict_module(model)(th.from_numpy(observations)).numpy(), expected)


def test_a_compiled_policy():
    model = MAKERS["ppo"]()
    plain = predict_module(model)
    model.policy = th.compile(model.policy, backend="eager")
    observations = th.from_numpy(observations_of(VECTOR, N, seed=0))
    assert th.equal(predict_module(model)(observations), plain(observations))


def test_statistics_far_from_zero_are_what_observations_are_drawn_by():
    # Else every observation would be an outlier, and the check would see nothing.
    wide = spaces.Box(-np.inf, np.inf, (3,), np.float64)
    for name in ("sac", "stream_ac"):
        module = predict_module(agent(name))
        drawn = checks.random_observations(wide, 1000, np.random.default_rng(0), checks.statistics(module))
        assert 5 < drawn[:, 2].mean() < 7, name
        assert 0.5 < drawn[:, 2].std() < 4, name


@pytest.mark.parametrize("name", ["sac", "dqn", "a2c multidiscrete", "ppo multibinary"])
def test_the_check_sees_wrong_actions(name):
    model, module = agent(name), predict_module(agent(name))

    def run(wrong):
        def actions(observations, steps):
            found = module(*checks.as_tensors(observations, steps))
            return wrong(found).numpy()

        return checks.check(actions, module, model, None, 1e-5)

    assert run(lambda actions: actions) <= 3e-6
    with pytest.raises(RuntimeError, match="does not do as predict does"):
        run(lambda actions: 1 - actions if name != "sac" else actions + 2e-4)
    with pytest.raises(RuntimeError, match="gives actions of shape"):
        run(lambda actions: actions[..., None])
    with pytest.raises(RuntimeError, match="and type float64"):
        run(lambda actions: actions.double())


def test_the_check_forgives_a_few_ties_and_not_many():
    model = MAKERS["dqn"]()
    with th.no_grad():
        for parameter in model.q_net.parameters():
            parameter.zero_()
    module = predict_module(model)
    calls = []

    def run(n_other):
        def actions(observations, steps):
            found = module(*checks.as_tensors(observations, steps))
            found[:n_other] = 3
            calls.append(len(found))
            return found.numpy()

        return checks.check(actions, module, model, None, 1e-5)

    assert run(1) == 0.0
    assert calls == list(checks.BATCHES)
    with pytest.raises(RuntimeError, match="of 1024 actions are others"):
        run(20)


def test_a_streaming_policy_of_its_own_kind_is_refused():
    from sb3_sparse.streaming.policies import StreamACPolicy

    class Shifted(StreamACPolicy):
        def features(self, observations, steps=0):
            return super().features(observations, steps) + 1

    with pytest.raises(RuntimeError, match="Does Shifted override predict"):
        predict_module(StreamAC(Shifted, SpaceEnv(VECTOR, BOX), policy_kwargs={"sparsity": 0.5}, seed=0))


def test_gsde_after_learning():
    model = mlp(SAC, VECTOR, BOX, use_sde=True).learn(20)
    observations = observations_of(VECTOR, N, seed=0)
    expected, _ = model.predict(observations, deterministic=True)
    assert_equal_actions(predict_module(model)(th.from_numpy(observations)).numpy(), expected)


def test_ppo_with_other_extractors_of_its_networks():
    from stable_baselines3.common.policies import ActorCriticPolicy
    from torch import nn

    class Extractor(nn.Module):
        latent_dim_pi = latent_dim_vf = 3

        def forward(self, features):
            return self.forward_actor(features), self.forward_critic(features)

        def forward_actor(self, features):
            return th.tanh(features)

        def forward_critic(self, features):
            return features

    class Policy(ActorCriticPolicy):
        def _build_mlp_extractor(self):
            self.mlp_extractor = Extractor()

    model = PPO(Policy, SpaceEnv(VECTOR, BOX), seed=0, batch_size=8, **ON_POLICY)
    observations = observations_of(VECTOR, N, seed=0)
    expected, _ = model.predict(observations, deterministic=True)
    assert_equal_actions(predict_module(model)(th.from_numpy(observations)).numpy(), expected)
