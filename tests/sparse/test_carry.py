"""Swapping layers keeps what hangs on them, or refuses by name."""

import copy
from types import MethodType

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from sb3_sparse import SparseSimBaPolicy
from sb3_sparse.networks.noisy import NoisyLinear
from sb3_sparse.sparse import SparseLinear, sparsify_, to_dense, weight_decay_groups
from sb3_sparse.streaming import StreamAC, StreamQ


def mlp():
    th.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 4))


def close(a, b):
    assert th.allclose(a, b, rtol=1e-4, atol=1e-5)


def test_hooks_stay_and_can_be_removed():
    net, calls = mlp(), []
    x = th.randn(3, 20, requires_grad=True)
    handles = [
        net[0].register_forward_pre_hook(lambda *a: calls.append("pre")),
        net[0].register_forward_hook(lambda m, a, y: calls.append(type(m).__name__)),
        net[0].register_forward_hook(lambda m, a, k, y: calls.append("kwargs"), with_kwargs=True),
        net[0].register_full_backward_hook(lambda *a: calls.append("back")),
        net[0].register_full_backward_pre_hook(lambda *a: calls.append("before back")),
    ]
    sparsify_(net, 0.5)
    net(x).sum().backward()
    assert calls == ["pre", "SparseLinear", "kwargs", "before back", "back"]
    calls.clear()
    dense = to_dense(net)
    dense(x).sum().backward()
    assert calls == ["pre", "Linear", "kwargs", "before back", "back"]
    calls.clear()
    for handle in handles:
        handle.remove()
    net(x).sum().backward()
    assert calls == []


def test_attributes_stay():
    net = mlp().eval()
    net[0].name_of_mine = "stem"
    net[0].lr_scale = 0.5
    net[0]._mine = "private"
    net[0].size = MethodType(lambda layer: next(layer.parameters()).numel(), net[0])
    sparsify_(net, 0.5)
    assert (net[0].name_of_mine, net[0].lr_scale, net[0].training) == ("stem", 0.5, False)
    assert (net[0]._mine, net[0].size()) == ("private", net[0].topology.nnz)
    dense = to_dense(net)
    assert (dense[0]._mine, dense[0].size()) == ("private", 30 * 20)
    assert vars(dense[0]).keys() - vars(nn.Linear(1, 1)).keys() == {"name_of_mine", "lr_scale", "_mine", "size"}
    assert (dense[0].name_of_mine, dense[0].lr_scale, dense[0].training) == ("stem", 0.5, False)
    assert (dense[0].in_features, dense[0].out_features) == (20, 30)


@pytest.mark.parametrize("norm", [False, True])
def test_lbfgs_goes_on_with_the_new_parameters(norm):
    """Mistake of ours: it has a list of its own, and went on with the old ones."""
    first = nn.LayerNorm(6) if norm else nn.Identity()
    net = nn.Sequential(first, nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
    net.optimizer = th.optim.LBFGS(net.parameters(), lr=0.1)
    x, y = th.randn(32, 6), th.randn(32, 1)

    def closure():
        net.optimizer.zero_grad()
        loss = (net(x) - y).square().mean()
        loss.backward()
        return loss

    def step():
        before = [parameter.clone() for parameter in net.parameters()]
        net.optimizer.step(closure)
        return not any(map(th.equal, before, net.parameters()))

    assert step()
    with pytest.warns(UserWarning, match="LBFGS .* starts anew"):
        sparsify_(net, 0.5)
    assert step()
    # Mistake: it remembers everything under its first parameter, also if that one stays.
    with pytest.warns(UserWarning, match="LBFGS .* starts anew"):
        net = to_dense(net)
    assert step()


def _with_buffer(layer):
    layer.register_buffer("scale", th.ones(()))


def _with_child(layer):
    layer.inner = nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (weight_norm, "remove_weight_norm"),
        (spectral_norm, "remove_spectral_norm"),
        (parametrizations.weight_norm, "remove_parametrizations"),
        (parametrizations.spectral_norm, "remove_parametrizations"),
        (parametrizations.orthogonal, "remove_parametrizations"),
        (lambda layer: prune.random_unstructured(layer, "weight", 0.3), r"prune\.remove"),
        (lambda layer: layer.weight.register_hook(lambda g: g), "hook on its weight"),
        (lambda layer: layer.weight.register_post_accumulate_grad_hook(lambda p: None), "hook on its weight"),
        (lambda layer: layer.register_state_dict_post_hook(lambda *a: None), "hooks on its state dict"),
        (_with_buffer, r"\['scale'\]"),
        (_with_child, r"\['inner'\]"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated", "ignore:.*spectral_norm.*deprecated")
def test_what_cannot_be_carried_over_is_refused_by_name(change, message):
    net = mlp()
    change(net[2])
    with pytest.raises(ValueError, match=rf"^2 has.*{message}.*exclude="):
        sparsify_(net, 0.5)
    assert not any(isinstance(layer, SparseLinear) for layer in net)
    sparsify_(net, 0.5, exclude=["2"])
    assert isinstance(net[0], SparseLinear)


def test_subclasses_stay_dense_with_a_warning():
    class Mine(nn.Linear):
        pass

    net = nn.Sequential(nn.Linear(20, 30), Mine(30, 30))
    with pytest.warns(UserWarning, match=r"1 \(Mine\)"):
        sparsify_(net, 0.5)
    assert (type(net[0]), type(net[1])) == (SparseLinear, Mine)
    with pytest.warns(UserWarning, match=r"found no nn\.Linear"):
        sparsify_(nn.Sequential(nn.ReLU()), 0.5)
    with pytest.warns(UserWarning, match="Initializing zero-element"):
        empty = nn.Linear(0, 4)
    with pytest.raises(ValueError, match=r"shape \(4, 0\).*exclude="):
        sparsify_(nn.Sequential(nn.Linear(20, 30), empty), 0.5)


def _train(net, optimizer, steps=3):
    for step in range(steps):
        optimizer.zero_grad()
        th.manual_seed(step)
        net(th.randn(8, 20)).square().sum().backward()
        optimizer.step()


class _WithOptimizer(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.net = mlp()
        self.optimizer = make(self.parameters())

    def forward(self, x):
        return self.net(x)


@pytest.mark.parametrize(
    "make",
    [
        lambda ps: th.optim.AdamW(ps, 1e-2, fused=True),
        lambda ps: th.optim.Adam(ps, 1e-2, amsgrad=True),
        lambda ps: th.optim.SGD(ps, 1e-2, momentum=0.9),
        lambda ps: th.optim.RMSprop(ps, 1e-2, centered=True),
    ],
)
def test_optimizers_of_the_module_go_on_where_they_were(make):
    """A masked dense twin, trained on, is the oracle."""
    module = _WithOptimizer(make)
    _train(module, module.optimizer)
    twin = copy.deepcopy(module)
    sparsify_(module, 0.6, seed=3)
    masks = {name: layer.topology.mask() for name, layer in module.net.named_children() if isinstance(layer, SparseLinear)}
    layers = dict(twin.net.named_children())

    def mask_twin():
        with th.no_grad():
            for name, mask in masks.items():
                layers[name].weight.mul_(mask)
                layers[name].weight.grad = None if layers[name].weight.grad is None else layers[name].weight.grad * mask

    mask_twin()
    for step in range(3):
        for one in (module, twin):
            one.optimizer.zero_grad()
            th.manual_seed(step)
            one(th.ones(8, 20) * (step + 1)).square().sum().backward()
        mask_twin()
        for one in (module, twin):
            one.optimizer.step()
        mask_twin()
    for name in masks:
        close(module.net.get_submodule(name).weight, layers[name].weight)
    # And back: the moments of what did not exist are zero, all else goes on.
    dense = to_dense(module)
    assert {id(p) for p in dense.parameters()} == {id(p) for g in dense.optimizer.param_groups for p in g["params"]}
    assert set(dense.optimizer.state) == set(dense.parameters())
    before = [p.detach().clone() for p in dense.parameters()]
    _train(dense, dense.optimizer, 1)
    assert all(not th.equal(a, b) for a, b in zip(before, dense.parameters(), strict=True))
    assert {id(p) for p in module.parameters()} == {id(p) for g in module.optimizer.param_groups for p in g["params"]}


def test_state_that_belongs_to_no_single_weight_starts_anew_with_a_warning():
    module = _WithOptimizer(lambda ps: th.optim.Adafactor(ps, 1e-2))
    _train(module, module.optimizer)
    with pytest.warns(UserWarning, match=r"'row_var' of shape \(\d0, 1\).*\(280,\): the optimizer starts anew for this layer"):
        sparsify_(module, 0.5)
    _train(module, module.optimizer)
    # Mistake: the way back left matrices with the state of vectors, under which the next step failed.
    with pytest.warns(
        UserWarning, match=r"'variance' of shape \(280,\).*\(\d0, \d0\): the optimizer starts anew for this layer"
    ):
        dense = to_dense(module)
    assert set(dense.optimizer.state) == set(dense.parameters())
    assert float(dense.optimizer.state[dense.net[0].bias]["step"]) == 6
    _train(dense, dense.optimizer)


@pytest.mark.parametrize("algorithm", [SAC, TD3, DQN])
def test_targets_have_the_topologies_of_the_networks_that_they_follow(algorithm):
    env = "CartPole-v1" if algorithm is DQN else "Pendulum-v1"
    small = dict(tau=1.0, learning_starts=8, batch_size=8, buffer_size=100, policy_kwargs=dict(net_arch=[32, 32]))
    model = algorithm(
        "MlpPolicy", env, seed=0, device="cpu", **small, **({"target_update_interval": 1} if algorithm is DQN else {})
    )
    sparsify_(model.policy, 0.5, seed=0)
    pairs = [("q_net", "q_net_target")] if algorithm is DQN else [("critic", "critic_target")]
    for online, target in pairs:
        online, target = getattr(model.policy, online), getattr(model.policy, target)
        for ours, theirs in zip(online.modules(), target.modules(), strict=True):
            if isinstance(ours, SparseLinear):
                assert ours.topology is theirs.topology
    model.learn(20)
    if algorithm is not DQN:  # which copies before it trains
        assert all(map(th.equal, online.parameters(), target.parameters()))


class _Subclass(SparseLinear):
    pass


def _on_values(layer):
    layer.values.register_hook(lambda grad: grad)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_with_buffer, r"\['scale'\]"),
        (_with_child, r"\['inner'\]"),
        (_on_values, "hook on its values"),
        (lambda layer: prune.random_unstructured(layer, "nonzeros", 0.3), "nonzeros_mask"),
        (lambda layer: layer.register_state_dict_post_hook(lambda *a: None), "hooks on its state dict"),
    ],
)
def test_what_a_dense_layer_has_no_place_for_is_refused_by_name(change, message):
    net = sparsify_(mlp(), 0.5)
    change(net[2])
    with pytest.raises(ValueError, match=rf"^2 has.*{message}.*before to_dense"):
        to_dense(net)
    with pytest.raises(ValueError, match="is a _Subclass"):
        to_dense(_Subclass(4, 3, density=0.5))


def test_weights_that_something_else_uses_are_refused():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(30, 20), nn.Linear(20, 30)
            self.head.weight = self.embedding.weight

    with pytest.raises(ValueError, match="embedding and head share one weight"):
        sparsify_(Tied(), 0.5)
    with pytest.raises(ValueError, match="call the module once"):
        sparsify_(nn.Sequential(nn.LazyLinear(4)), 0.5)


@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_on_policy_policies_after_learning(algorithm):
    arguments = dict(n_steps=16, seed=0, device="cpu", policy_kwargs=dict(net_arch=[32]))
    model = algorithm("MlpPolicy", "Pendulum-v1", **arguments, **(dict(batch_size=16) if algorithm is PPO else {}))
    sparsify_(model.policy, 0.5)
    model.learn(64)
    dense = to_dense(model.policy)
    assert isinstance(dense, ActorCriticPolicy)
    obs = th.randn(5, 3)
    close(dense.get_distribution(obs).distribution.mean, model.policy.get_distribution(obs).distribution.mean)
    model.learn(32)


@pytest.mark.parametrize("algorithm", [PPO, SAC, TD3, DQN])
def test_a_pruned_policy_of_sb3_is_trained_without_a_new_optimizer(algorithm):
    env = "CartPole-v1" if algorithm is DQN else "Pendulum-v1"
    small = dict(n_steps=16, batch_size=16) if algorithm is PPO else dict(learning_starts=8, batch_size=8, buffer_size=100)
    model = algorithm("MlpPolicy", env, seed=0, device="cpu", policy_kwargs=dict(net_arch=[32, 32]), **small)
    sparsify_(model.policy, 0.5)
    before = {name: p.detach().clone() for name, p in model.policy.named_parameters()}
    model.learn(32)
    for name, p in model.policy.named_parameters():
        assert "target" in name or not th.equal(before[name], p), name


def test_a_dense_copy_of_a_sac_policy_trains_all_of_itself(tmp_path):
    small = dict(learning_starts=8, batch_size=8, buffer_size=100, policy_kwargs=dict(width_scale=0.1, sparsity=0.8))
    model = SAC(SparseSimBaPolicy, "Pendulum-v1", seed=0, device="cpu", **small)
    model.learn(16)
    model.policy = to_dense(model.policy)
    model.policy_kwargs |= {"sparsity": 0.0}
    model._create_aliases()
    before = {name: p.detach().clone() for name, p in model.policy.named_parameters()}
    model.learn(16, reset_num_timesteps=False)
    unchanged = [name for name, p in model.policy.named_parameters() if "target" not in name and th.equal(before[name], p)]
    assert unchanged == []


@pytest.mark.parametrize(
    ("algorithm", "env"), [(StreamAC, "Pendulum-v1"), (StreamAC, "CartPole-v1"), (StreamQ, "CartPole-v1")]
)
def test_a_dense_copy_of_a_streaming_policy_is_saved_loaded_and_trained(algorithm, env, tmp_path):
    model = algorithm("MlpPolicy", env, seed=0, policy_kwargs=dict(sparsity=0.8, net_arch=[32, 32]))
    model.learn(50)
    obs = model.observation_space.sample()
    expected, _ = model.predict(obs, deterministic=True)
    model.policy = to_dense(model.policy)
    assert not any(isinstance(layer, SparseLinear) for layer in model.policy.modules())
    np.testing.assert_allclose(model.predict(obs, deterministic=True)[0], expected, atol=1e-5)
    model.policy.save(tmp_path / "policy")
    policy = type(model.policy).load(tmp_path / "policy")
    np.testing.assert_array_equal(policy.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])
    model.policy_kwargs |= {"sparsity": 0.0}
    model.save(tmp_path / "dense")
    loaded = algorithm.load(tmp_path / "dense", env=gym.make(env))
    np.testing.assert_array_equal(loaded.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])
    before = {name: p.detach().clone() for name, p in loaded.policy.named_parameters()}
    loaded.learn(50, reset_num_timesteps=False)
    assert [name for name, p in loaded.policy.named_parameters() if th.equal(before[name], p)] == []


def test_a_refused_streaming_policy_is_what_it_was():
    def policy(seed, width):
        settings = dict(sparsity=0.8, net_arch=[width, width])
        return StreamAC("MlpPolicy", "Pendulum-v1", seed=seed, policy_kwargs=settings).policy

    model, wider = policy(1, 32), policy(2, 48)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match="size mismatch"):
        model.load_state_dict(wider.state_dict())
    assert all(th.equal(before[key], value) for key, value in model.state_dict().items())


def test_weight_decay_groups():
    net = sparsify_(
        nn.Sequential(nn.Linear(20, 30), nn.LayerNorm(30), nn.Linear(30, 20), nn.Conv2d(3, 3, 3)), 0.5, exclude=["2"]
    )
    decayed, others = weight_decay_groups(net, 0.1)
    assert {id(p) for p in decayed["params"]} == {id(net[0].values), id(net[2].weight), id(net[3].values)}
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    assert {id(p) for g in (decayed, others) for p in g["params"]} == {id(p) for p in net.parameters()}
    th.optim.AdamW([decayed, others], 1e-3)


def test_weight_decay_reaches_what_decays_in_the_dense_twin():
    net = nn.Sequential(NoisyLinear(20, 30), nn.Linear(30, 4))
    dense, _ = weight_decay_groups(net, 0.1)
    decayed, _ = weight_decay_groups(sparsify_(net, 0.5, "uniform"), 0.1)
    assert {id(p) for p in decayed["params"]} == {id(p) for p in (net[0].nonzeros, net[0].nonzeros_sigma, net[1].nonzeros)}
    assert len(dense["params"]) == len(decayed["params"])


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
def test_weight_decay_reaches_weights_that_are_computed():
    """Mistake: what they are computed from has one dimension and another name, and did not decay."""
    tools = {
        "parametrizations.nonzeros.original": lambda layer: parametrize.register_parametrization(layer, "nonzeros", nn.Tanh()),
        "parametrizations.nonzeros.original1": lambda layer: parametrizations.weight_norm(layer, "nonzeros"),
        "nonzeros_orig": lambda layer: prune.random_unstructured(layer, "nonzeros", 0.5),
        "nonzeros_v": lambda layer: weight_norm(layer, "nonzeros"),
    }
    for name, tool in tools.items():
        layer = SparseLinear(20, 30, density=0.5)
        tool(layer)
        decayed, others = weight_decay_groups(layer, 0.1)
        assert any(p is layer.get_parameter(name) for p in decayed["params"])
        assert len(others["params"]) == 1
        assert others["params"][0] is layer.bias
