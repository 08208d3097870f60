"""Agents of SB3 with sparse networks, as SB3's own files."""

import random
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import ARS, QRDQN, TQC, CrossQ
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from sb3_sparse import SparseConv2d, SparseLinear, sparsify_
from sb3_sparse.export import export_sb3
from sb3_sparse.export.check import check_agent
from tests.envs import SpaceEnv
from tests.export.agents import (
    BOX,
    DICT,
    DISCRETE,
    IMAGE,
    ON_POLICY,
    VECTOR,
    agent,
    in_child,
    mlp,
    observations_of,
    shake,
)

REPOSITORY = Path(__file__).parents[2]

MAKERS = {
    "ppo": lambda: mlp(PPO, VECTOR, BOX, sparsity=0.5),
    "ppo image": lambda: mlp(PPO, IMAGE, DISCRETE, "CnnPolicy", sparsity=0.5, policy_kwargs={"net_arch": None}),
    "a2c dict": lambda: mlp(A2C, DICT, BOX, "MultiInputPolicy", sparsity=0.5),
    "sac": lambda: mlp(SAC, VECTOR, BOX, sparsity=0.5),
    "td3": lambda: mlp(TD3, VECTOR, BOX, sparsity=0.5),
    "tqc": lambda: mlp(TQC, VECTOR, BOX, sparsity=0.5),
    "crossq": lambda: mlp(CrossQ, VECTOR, BOX, sparsity=0.5),
    "dqn": lambda: mlp(DQN, VECTOR, DISCRETE, sparsity=0.5),
}


@cache
def trained(name):
    """Shared by the tests, which do not change it."""
    model = MAKERS[name]().learn(32)
    shake(model)
    return model


LOAD = f"""
import pathlib, numpy as np, torch
sys.path.insert(0, {str(REPOSITORY)!r})
import stable_baselines3, sb3_contrib
from tests.envs import SpaceEnv
for folder in pathlib.Path().iterdir():
    name = (folder / "algorithm").read_text()
    model = (getattr(stable_baselines3, name, None) or getattr(sb3_contrib, name)).load(folder / "dense")
    observations = {{file.stem[5:]: np.load(file) for file in folder.glob("part_*.npy")}}
    observations = observations[""] if "" in observations else observations
    np.save(folder / "actions.npy", model.predict(observations, deterministic=True)[0])
    before = {{key: value.clone() for key, value in model.policy.state_dict().items()}}
    model.set_env(SpaceEnv(model.observation_space, model.action_space))
    model.learn(32)
    assert any(not torch.equal(before[key], value) for key, value in model.policy.state_dict().items()), folder
"""


def test_files_load_without_this_package_predict_the_same_and_learn_on(tmp_path):
    expected = {}
    for name in MAKERS:
        model, folder = trained(name), tmp_path / name
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            export_sb3(model, folder / "dense")
        assert [file.name for file in folder.iterdir()] == ["dense.zip"]
        observations = observations_of(model.observation_space, 200, seed=1)
        expected[name], _ = model.predict(observations, deterministic=True)
        for key, part in (observations if isinstance(observations, dict) else {"": observations}).items():
            np.save(folder / f"part_{key}.npy", part)
        (folder / "algorithm").write_text(type(model).__name__)
    in_child(LOAD, cwd=tmp_path)
    for name, actions in expected.items():
        found = np.load(tmp_path / name / "actions.npy")
        assert found.dtype == actions.dtype
        assert np.abs(found - actions).max() <= 1e-6, name


@pytest.mark.parametrize("name", MAKERS)
def test_weights_and_the_state_of_optimizers_are_spread(name, tmp_path):
    model = trained(name)
    loaded = type(model).load(export_sb3(model, tmp_path / "dense"))
    twins = dict(loaded.policy.named_modules())
    has_one = name in ("ppo", "ppo image", "a2c dict", "dqn")
    seen = 0
    for owner in ["policy"] if has_one else ["actor", "critic"]:
        old, new = getattr(model, owner).optimizer, getattr(loaded, owner).optimizer
        for setting in ("lr", "eps"):
            assert new.param_groups[0][setting] == old.param_groups[0][setting]
        for place, layer in model.policy.named_modules():
            if not isinstance(layer, (SparseLinear, SparseConv2d)):
                continue
            twin = twins[place]
            assert type(twin) in (nn.Linear, nn.Conv2d)
            assert th.equal(twin.weight, layer.weight)
            if layer.values in old.state:
                index = layer.topology.flat_index(th.device("cpu"))
                for key, value in old.state[layer.values].items():
                    spread = new.state[twin.weight][key]
                    if value.dim() == 0:
                        assert spread == value
                        continue
                    assert th.equal(spread.flatten()[index], value)
                    assert spread.count_nonzero() == value.count_nonzero()
                    seen += 1
    assert seen >= 4


def test_the_temperature_of_sac_is_kept(tmp_path):
    model = trained("sac")
    loaded = SAC.load(export_sb3(model, tmp_path / "dense"))
    assert th.equal(loaded.log_ent_coef, model.log_ent_coef)
    assert loaded.ent_coef_optimizer.state_dict()["state"] == model.ent_coef_optimizer.state_dict()["state"]
    assert loaded.buffer_size == model.buffer_size
    assert loaded.num_timesteps == 32
    assert loaded.seed == model.seed


def random_states(model):
    action_space = model.action_space.np_random.bit_generator.state
    return th.get_rng_state().tolist(), str(np.random.get_state()), random.getstate(), str(action_space)


def test_the_agent_stays_as_it_was(tmp_path):
    model = trained("sac")
    model.policy.set_training_mode(True)
    attributes = {key: id(value) for key, value in vars(model).items()}
    before = {key: value.clone() for key, value in model.policy.state_dict().items()}
    states = random_states(model)
    export_sb3(model, tmp_path / "dense")
    assert states == random_states(model)
    assert attributes == {key: id(value) for key, value in vars(model).items()}
    assert all(module.training for module in model.actor.modules())
    assert all(th.equal(before[key], value) for key, value in model.policy.state_dict().items())


def test_an_optimizer_that_cannot_be_carried_over_is_named(tmp_path):
    model = mlp(PPO, VECTOR, BOX)
    model.policy.mlp_extractor.policy_net[0] = nn.Linear(3, model.policy.mlp_extractor.policy_net[0].out_features)
    sparsify_(model.policy, 0.5)
    with pytest.warns(UserWarning, match=r"policy.optimizer does not have the parameters .* the file has a fresh"):
        path = export_sb3(model, tmp_path / "stale")
    assert not PPO.load(path).policy.optimizer.state
    model.policy.optimizer = th.optim.SGD(model.policy.parameters(), lr=0.1)
    with pytest.warns(UserWarning, match=r"policy.optimizer is SGD, which the policy would not make \(it makes Adam\)"):
        export_sb3(model, tmp_path / "other")
    groups = [{"params": [p]} for p in model.policy.parameters()]
    model.policy.optimizer = th.optim.Adam(groups, lr=0.1)
    with pytest.warns(UserWarning, match="has several groups of parameters"):
        export_sb3(model, tmp_path / "groups")


class SparsePolicy(ActorCriticPolicy):
    """The way to a sparse PPO whose own file can be loaded: networks that are sparse from the start."""

    def __init__(self, *args, sparsity=0.5, **kwargs):
        self.sparsity = sparsity
        super().__init__(*args, **kwargs)

    def _build(self, lr_schedule):
        super()._build(lr_schedule)
        sparsify_(self, self.sparsity, seed=1)
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)


class OtherNetworks(ActorCriticPolicy):
    def _build(self, lr_schedule):
        super()._build(lr_schedule)
        self.action_net = nn.Sequential(self.action_net, nn.Linear(2, 2))


def test_a_policy_that_makes_itself_sparse_becomes_that_of_sb3(tmp_path):
    kwargs = {"net_arch": [8], "sparsity": 0.7}
    model = PPO(SparsePolicy, SpaceEnv(VECTOR, BOX), policy_kwargs=kwargs, batch_size=8, **ON_POLICY).learn(16)
    model.save(tmp_path / "sparse")
    loaded = PPO.load(export_sb3(PPO.load(tmp_path / "sparse"), tmp_path / "dense"))
    assert type(loaded.policy) is ActorCriticPolicy
    assert loaded.policy_kwargs == {"net_arch": [8]}
    assert model.policy_kwargs == kwargs
    observations = observations_of(VECTOR, 200, seed=1)
    expected, found = (m.predict(observations, deterministic=True)[0] for m in (model, loaded))
    assert np.abs(expected - found).max() <= 1e-6


def test_other_networks_than_those_of_sb3_are_refused(tmp_path):
    model = PPO(OtherNetworks, SpaceEnv(VECTOR, BOX), batch_size=8, **ON_POLICY)
    with pytest.raises(ValueError, match=r"(?s)OtherNetworks has other networks than ActorCriticPolicy .*export_onnx"):
        export_sb3(model, tmp_path / "dense")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["sac", "dqn", "stream_ac"])
def test_policies_of_this_package_are_refused_with_the_way_out(name, tmp_path):
    with pytest.raises(ValueError, match=r"made of classes of this package.*Take export_onnx or export_torch"):
        export_sb3(agent(name), tmp_path / "dense")
    assert not list(tmp_path.iterdir())


def test_algorithms_without_gradients_are_refused(tmp_path):
    with pytest.raises(ValueError, match="ARS: expected an on-policy or off-policy algorithm"):
        export_sb3(ARS("LinearPolicy", SpaceEnv(VECTOR, BOX)), tmp_path / "dense")


def test_what_would_import_this_package_is_named_and_an_older_file_stays(tmp_path):
    from sb3_sparse.networks import SimBaEncoder

    path = tmp_path / "dense.zip"
    path.write_text("an older one")
    model = mlp(PPO, VECTOR, BOX)
    model.note = SimBaEncoder
    with pytest.raises(ValueError, match=r"\['note'\] of the agent refer to this package"):
        export_sb3(model, path)
    assert path.read_text() == "an older one"
    assert [file.name for file in tmp_path.iterdir()] == ["dense.zip"]


def test_weights_that_are_no_numbers_are_refused(tmp_path):
    model = mlp(TD3, VECTOR, BOX)
    with th.no_grad():
        model.actor.mu[0].bias[0] = float("nan")
    with pytest.raises(RuntimeError, match="1 of 1 random observations differ by more than 1e-05, the worst by nan"):
        export_sb3(model, tmp_path / "dense")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MAKERS["ppo"](), "random observations differ by more than 1e-05"),
        (lambda: MAKERS["dqn"](), "of 1024 actions are others"),
        (lambda: mlp(PPO, VECTOR, spaces.MultiBinary(3)), "of 1024 actions are others"),
        (lambda: mlp(PPO, VECTOR, spaces.MultiDiscrete([3, 4])), "of 1024 actions are others"),
    ],
    ids=["box", "discrete", "multibinary", "multidiscrete"],
)
def test_the_comparison_of_two_agents_sees_other_actions(make, message):
    model, other = make(), make()
    shake(model)
    other.set_parameters(model.get_parameters())
    assert check_agent(other, model, 1e-5) == 0.0
    with th.no_grad():
        for parameter in other.policy.parameters():
            parameter.mul_(-1.0)
    with pytest.raises(RuntimeError, match=message):
        check_agent(other, model, 1e-5)


def test_a_dense_agent_is_just_saved(tmp_path):
    model = mlp(QRDQN, VECTOR, DISCRETE, policy_kwargs={"n_quantiles": 4})
    loaded = QRDQN.load(export_sb3(model, tmp_path / "dense"))
    expected = model.policy.state_dict()
    assert all(th.equal(value, expected[key]) for key, value in loaded.policy.state_dict().items())
