"""Arguments of policies: what they accept, what they refuse and how, and what is kept of them."""

import json
import re
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import QRDQN, TQC, CrossQ
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_sparse import SparseSimBaDQNPolicy, SparseSimBaPolicy, StreamAC, StreamQ, StreamSARSA, sparsity_report
from sb3_sparse.simba.policies import POLICY_ALIAS
from tests.envs import ReachEnv, SpaceEnv
from tests.simba.test_policies import DISCRETE, SMALL, make_model


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"sparsity": 1.0}, r"sparsity=1.0.*\[0, 1\)"),
        ({"sparsity": -0.1}, "sparsity=-0.1"),
        ({"sparsity": {"pi": 0.5}}, r"sparsity=\{'pi': 0.5\}.*\['pi', 'qf'\]"),
        ({"sparsity": {"pi": 0.5, "qf": 2}}, r"sparsity\['qf'\]=2"),
        ({"width_scale": 0}, "width_scale=0"),
        ({"depth_scale": -2}, "depth_scale=-2"),
        ({"net_arch": [64, 32]}, r"\[64, 32\].*equally wide"),
        ({"net_arch": {"pi": [64]}}, r"expected a list, or one for each of \['pi', 'qf'\]"),
        ({"width_scale": {"qf": 1}}, r"width_scale=\{'qf': 1\}: expected a number, or one for each of \['pi', 'qf'\]"),
        ({"depth_scale": {"pi": 1, "qf": 0}}, r"depth_scale\['qf'\]=0: expected a positive number"),
        ({"net_arch": {"pi": [64], "qf": [0]}}, r"net_arch\['qf'\]\[0\]=0: expected a positive whole number"),
        ({"net_arch": 64}, "net_arch=64: expected a list of positive whole numbers"),
        ({"net_arch": np.array(64)}, r"net_arch=array\(64\): expected a list of positive whole numbers"),
        (
            {"net_arch": np.array([16, 16])},
            r"net_arch=array\(\[16, 16\]\): expected a list of .*\[16, 16\]. SB3 cannot load agents",
        ),
        ({"net_arch": "64"}, "net_arch='64': expected a list"),
        ({"net_arch": [64], "width_scale": 3}, "Give one or the other"),
        ({"sparsity_distribution": "er"}, "sparsity_distribution='er': expected one of"),
        ({"mask_seed": -1}, "mask_seed=-1"),
        ({"sparcity": 0.5}, "no keyword 'sparcity'. Did you mean 'sparsity'"),
        ({"hidden_dim": 5}, "no keyword 'hidden_dim'"),
        ({"net_arch": [True]}, r"net_arch\[0\]=True: expected a positive whole number"),
        ({"sparsity_distribution": ["er"]}, r"sparsity_distribution=\['er'\]: expected one of"),
        ({"rescale": "yes"}, "rescale='yes': expected True or False"),
        ({"normalize_observations": "no"}, "normalize_observations='no'"),
        ({"squash_log_std": 3}, "squash_log_std=3"),
        ({"n_critics": 0}, "n_critics=0: expected a positive whole number"),
        ({"sparsity": np.array([0.5])}, r"sparsity=array\(\[0.5\]\): expected a number in \[0, 1\)"),
        ({"sparsity": np.nan}, "sparsity=nan"),
        ({"width_scale": np.inf}, "width_scale=inf: expected a positive number"),
        ({"mask_seed": 1.5}, "mask_seed=1.5: expected a whole number of at least 0"),
        ({"rescale": np.int64(1)}, "expected True or False"),
    ],
)
def test_bad_keywords_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        SAC(POLICY_ALIAS, ReachEnv(), policy_kwargs=kwargs, buffer_size=1)


@pytest.mark.parametrize("array", [lambda value, kind: kind(value), lambda value, kind: np.array(value, kind)])
def test_numbers_of_numpy_are_numbers_and_saved_as_pythons(array):
    kwargs = {
        "sparsity": array(0.5, np.float32),
        "mask_seed": array(3, np.int64),
        "rescale": array(True, np.bool_),
        "normalize_observations": array(False, np.bool_),
        "squash_log_std": array(False, np.bool_),
        "n_critics": array(1, np.int32),
        "sparsity_distribution": np.str_("uniform"),
    }
    plain = {name: value.item() for name, value in kwargs.items()}
    sizes = [
        ({"net_arch": [array(16, np.int32)]}, {"net_arch": [16]}),
        ({"net_arch": {"pi": np.array([8]), "qf": (16,)}}, {"net_arch": {"pi": [8], "qf": [16]}}),
        (
            {
                "width_scale": array(0.1, np.float64),
                "depth_scale": array(1, np.int64),
                "sparsity": {"pi": 0, "qf": array(0.5, np.float32)},
            },
            {"width_scale": 0.1, "depth_scale": 1, "sparsity": {"pi": 0.0, "qf": 0.5}},
        ),
    ]
    for numpys, pythons in sizes:
        policy, same = (
            SparseSimBaPolicy(spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (2,)), lambda _: 1e-3, **given)
            for given in ({**kwargs, **numpys}, {**plain, **pythons})
        )
        saved, expected = (
            {name: given._get_constructor_parameters()[name] for name in [*kwargs, "net_arch", "width_scale", "depth_scale"]}
            for given in (policy, same)
        )
        assert saved == expected == json.loads(json.dumps(saved))
        assert policy.squash_log_std is False
        assert [p.shape for p in policy.parameters()] == [p.shape for p in same.parameters()]
        assert policy.critic.net_arch == same.critic.net_arch
        for network in (policy.critic, policy.actor):
            assert json.dumps([network.sparsity.keywords, network.feeds_obs_norm, network.net_arch])


OUTPUTS = [(QRDQN, "n_quantiles"), (TQC, "n_quantiles"), (TD3, "n_critics"), (CrossQ, "n_critics")]


@pytest.mark.parametrize(("algorithm", "name"), OUTPUTS)
def test_a_network_without_outputs_is_refused(algorithm, name):
    for value in (0, -1, 2.5, "2"):
        with pytest.raises(ValueError, match=f"{name}={value!r}: expected a positive whole number"):
            make_model(algorithm, **{name: value})


def test_qrdqn_gets_adamw_in_place_of_its_own_default_with_a_word():
    def optimizer(batch_size=32, **kwargs):
        policy_kwargs = {**SMALL, **kwargs}
        return QRDQN(
            POLICY_ALIAS, "CartPole-v1", batch_size=batch_size, buffer_size=1, policy_kwargs=policy_kwargs
        ).policy.optimizer

    for batch_size in (50, 100, 1000):
        with pytest.warns(UserWarning, match=r"AdamW takes its place.*optimizer_class=torch.optim.AdamW.*betas=") as record:
            assert type(optimizer(batch_size)) is th.optim.AdamW
        assert repr(0.01 / batch_size) in str(record[0].message)
    # Nothing tells this from the default with batches of 1000, hence the word.
    with pytest.warns(UserWarning, match=r"eps=1e-05, betas=\(0.9, 0.999\)"):
        optimizer(optimizer_class=th.optim.Adam, optimizer_kwargs={"eps": 1e-5})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Nobody writes 0.0003125.
        for batch_size in (8, 32, 64, 256):
            assert type(optimizer(batch_size)) is th.optim.AdamW
        assert type(optimizer(optimizer_class=th.optim.AdamW)) is th.optim.AdamW
        for named in ({"eps": 1e-5, "betas": (0.9, 0.999)}, {"eps": 1e-8}, {"eps": 3.3e-4}, {"eps": 0}, {}, None):
            used = optimizer(optimizer_class=th.optim.Adam, optimizer_kwargs=named)
            assert type(used) is th.optim.Adam
            assert used.defaults["eps"] == (named or {}).get("eps", 1e-8)


@pytest.mark.parametrize(
    ("algorithm", "policy", "missing"),
    [
        (DQN, SparseSimBaPolicy, "q_net"),
        (QRDQN, SparseSimBaPolicy, "quantile_net"),
        (TD3, SparseSimBaPolicy, "actor_target"),
        (TQC, SparseSimBaPolicy, "quantiles_total"),
        (CrossQ, SparseSimBaPolicy, "set_bn_training_mode"),
        (SAC, SparseSimBaDQNPolicy, "use_sde"),
    ],
)
def test_the_policy_of_another_algorithm_is_named(algorithm, policy, missing):
    env = "CartPole-v1" if algorithm in DISCRETE else ReachEnv()
    with pytest.raises((AttributeError, ValueError), match=f"'{missing}'.*The string 'SparseSimBaPolicy' names"):
        algorithm(policy, env, policy_kwargs=dict(SMALL), buffer_size=100, learning_starts=2).learn(10)


def test_a_dictionary_that_sac_wrote_into_is_named():
    shared = dict(SMALL)
    SAC(POLICY_ALIAS, ReachEnv(), policy_kwargs=shared, buffer_size=100)
    with pytest.raises(ValueError, match=r"'use_sde'.*the same policy_kwargs given to SAC before.*Pass a copy\."):
        TD3(POLICY_ALIAS, ReachEnv(), policy_kwargs=shared, buffer_size=100)


def test_what_the_replay_buffer_cannot_hold_is_said_at_once():
    number = spaces.Box(-1, 1, ())
    for space, message in [
        (number, r"the observation is a Box of shape \(\).*FlattenObservation"),
        (spaces.Dict({"height": number, "v": spaces.Box(-1, 1, (2,))}), r"the part 'height'.*DMCWrapper"),
    ]:
        with pytest.raises(ValueError, match=message):
            SAC(POLICY_ALIAS, SpaceEnv(space, spaces.Box(-1, 1, (2,))), policy_kwargs=dict(SMALL), buffer_size=1)


BY_NETWORK = [
    ({"net_arch": [8]}, {"net_arch": {"qf": [8]}}),
    ({"width_scale": 0.05}, {"width_scale": {"qf": 0.05}}),
    ({"sparsity": 0.5}, {"sparsity": {"qf": 0.5}}),
]


@pytest.mark.parametrize(("plain", "by_network"), BY_NETWORK)
@pytest.mark.parametrize("algorithm", [DQN, QRDQN, StreamQ, StreamSARSA])
def test_policies_with_one_network_take_values_by_its_name(algorithm, plain, by_network):
    name = "MlpPolicy" if algorithm in (StreamQ, StreamSARSA) else POLICY_ALIAS
    small = {} if {"net_arch", "width_scale"} & plain.keys() else {"net_arch": [8]}

    def policy(kwargs):
        return algorithm(name, "CartPole-v1", policy_kwargs={**small, **kwargs}, seed=0).policy

    first, second = policy(plain).state_dict(), policy(by_network).state_dict()
    assert first.keys() == second.keys()
    assert all(th.equal(first[key], second[key]) for key in first)
    ((keyword, value),) = by_network.items()
    for wrong in ({**value, "pi": value["qf"]}, {"pi": value["qf"]}, {}):
        one = "a list" if keyword == "net_arch" else "a number"
        with pytest.raises(ValueError, match=re.escape(f"{keyword}={wrong!r}: expected {one}, or one for each of ['qf'].")):
            policy({keyword: wrong})


@pytest.mark.parametrize("algorithm", [SAC, StreamAC])
def test_actors_and_critics_can_differ_in_everything(algorithm):
    name, critic = ("MlpPolicy", "vf") if algorithm is StreamAC else (POLICY_ALIAS, "qf")
    kwargs = {"width_scale": {"pi": 0.25, critic: 0.5}, "sparsity": {"pi": 0.0, critic: 0.5}}
    policy = algorithm(name, "Pendulum-v1", policy_kwargs=kwargs).policy
    assert sparsity_report(policy.actor).sparsity == 0.0
    assert sparsity_report(policy.critic).sparsity == pytest.approx(0.5, abs=1e-2)
    widths = policy.net_arch if algorithm is SAC else {**policy.net_arch}
    assert widths == ({"pi": [32], "qf": [256, 256]} if algorithm is SAC else {"pi": [32, 32], "vf": [64, 64]})
    saved = policy._get_constructor_parameters()
    assert {name: saved[name] for name in kwargs} == kwargs
    twin = type(policy)(**saved)
    assert [p.shape for p in twin.parameters()] == [p.shape for p in policy.parameters()]


@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_on_policy_algorithms_are_refused_at_once(algorithm):
    for policy, env in ((SparseSimBaPolicy, ReachEnv()), (SparseSimBaDQNPolicy, "CartPole-v1")):
        name = algorithm.__name__
        with pytest.raises(
            ValueError, match=rf"^{policy.__name__} is a policy for .* and {name} learns on-policy.*'MlpPolicy'.*sparsify_\("
        ):
            algorithm(policy, env)


class BuildsOneOfItsOwn(BaseCallback):
    """A policy that PPO has nothing to do with."""

    def _on_step(self):
        SparseSimBaPolicy(spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (2,)), lambda _: 1e-3, **SMALL)
        return False


def test_only_the_algorithm_that_builds_a_policy_is_looked_at():
    PPO("MlpPolicy", "Pendulum-v1", n_steps=8, batch_size=8).learn(8, callback=BuildsOneOfItsOwn())


@pytest.mark.parametrize("algorithm", [SAC, DQN])
def test_normalising_twice_is_said_once(algorithm, tmp_path):
    def env(**kwargs):
        make = (lambda: gym.make("CartPole-v1")) if algorithm is DQN else ReachEnv
        return VecNormalize(DummyVecEnv([make]), **kwargs)

    def build(env, **kwargs):
        return algorithm(POLICY_ALIAS, env, policy_kwargs={**SMALL, **kwargs}, buffer_size=10, learning_starts=2, batch_size=2)

    with pytest.warns(UserWarning, match=r"VecNormalize around.*normalize_observations=False") as record:
        build(env()).learn(5)
    assert len(record) == 1
    assert record[0].filename == __file__
    # Warnings are errors: none comes from these.
    model = build(env(norm_obs=False))
    build(env(), normalize_observations=False)
    model.save(tmp_path / "agent")
    algorithm.load(tmp_path / "agent", env=env(norm_obs=False))
    with pytest.warns(UserWarning, match="VecNormalize around"):
        algorithm.load(tmp_path / "agent", env=env())


def test_an_algorithm_on_policy_may_make_a_policy_of_ours_for_itself():
    class Distilling(PPO):
        def _setup_model(self):
            super()._setup_model()
            sizes = {"width_scale": 0.05, "n_critics": 1}
            self.teacher = SparseSimBaPolicy(self.observation_space, self.action_space, lambda _: 1e-3, **sizes)

    Distilling("MlpPolicy", "Pendulum-v1", n_steps=8, batch_size=8).learn(8)
