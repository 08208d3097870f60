"""The compiled update holds addresses: what others do to networks and optimisers while it learns is noticed."""

import copy
import warnings

import gymnasium as gym
import pytest
import torch as th
from torch import nn

from sb3_sparse.sparse import Topology
from sb3_sparse.streaming import ObGD, StreamAC, StreamQ
from sb3_sparse.streaming.learners import AutogradLearner, CompiledLearner
from tests.streaming.test_algorithms import Each, state_of

CHANGE_AT = 12


def layer_of(model):
    return model.policy.actor.trunk[3]


def load_state_dict(model):
    state = model.policy.state_dict()
    model.policy.load_state_dict({name: value if "topology" in name else 0.9 * value for name, value in state.items()})


def load_state_dict_assigned(model):
    state = {name: 0.9 * value for name, value in model.policy.actor.state_dict().items() if "topology" not in name}
    with th.no_grad():
        for name, p in model.policy.actor.named_parameters():
            p.data = state[name]


def copy_of_the_policy(model):
    # Looked at, and trained, elsewhere.
    twin = copy.deepcopy(model.policy)
    with th.no_grad():
        for p in twin.parameters():
            p.fill_(7.0)
        for name in model.optimizer_names:
            for state in getattr(twin, name).state.values():
                state["trace"].fill_(7.0)


def another_policy(model):
    model.policy = copy.deepcopy(model.policy)
    with th.no_grad():
        for p in model.policy.parameters():
            p.mul_(0.5)


def another_optimizer(model):
    optimizer = ObGD(model.policy.actor.parameters(), lr=1.0, gamma=0.99, trace_lambda=0.8, kappa=3.0)
    model.policy.actor_optimizer = optimizer


def load_optimizer(model):
    state = copy.deepcopy(model.policy.actor_optimizer.state_dict())
    for entry in state["state"].values():
        entry["trace"] *= 2.0
    model.policy.actor_optimizer.load_state_dict(state)


def trace_data(model):
    for state in model.policy.actor_optimizer.state.values():
        state["trace"].data = 2.0 * state["trace"].data


def forgotten_trace(model):
    model.policy.actor_optimizer.state.pop(next(model.policy.actor.parameters()))


def cleared_state(model):
    model.policy.actor_optimizer.state.clear()


def to_and_back(model):
    model.policy.double()
    model.policy.float()


def set_topology(model):
    layer = layer_of(model)
    layer.set_topology(Topology.random(layer.topology.shape, layer.topology.nnz, seed=99))


def assign_topology(model):
    layer = layer_of(model)
    layer.set_topology(Topology.random(layer.topology.shape, layer.topology.nnz, seed=98))


def freeze_some(model):
    model.policy.actor.trunk.requires_grad_(False)


def freeze_all(model):
    model.policy.actor.requires_grad_(False)


def forward_hook(model):
    model.policy.actor.trunk[3].register_forward_hook(lambda module, args, output: 0.5 * output)


def forward_pre_hook(model):
    model.policy.actor.trunk[3].register_forward_pre_hook(lambda module, args: (0.5 * args[0],))


def backward_hook(model):
    model.policy.actor.trunk[3].register_full_backward_hook(lambda module, grads, _: tuple(0.5 * g for g in grads))


def tensor_hook(model):
    next(model.policy.actor.parameters()).register_hook(lambda grad: 0.5 * grad)


def another_forward(model):
    actor = model.policy.actor
    actor.forward = lambda features: 0.5 * type(actor).forward(actor, features)


def one_more_layer(model):
    model.policy.actor.trunk.append(nn.Tanh())


def another_activation(model):
    model.policy.actor.trunk[2] = nn.ReLU()


def another_slope(model):
    model.policy.actor.trunk[2].negative_slope = 0.3


def another_epsilon(model):
    model.policy.actor.trunk[1].eps = 0.3


SPARSE_ONLY = [set_topology, assign_topology]
CHANGES = [
    *(load_state_dict, load_state_dict_assigned, copy_of_the_policy, another_policy, another_optimizer, load_optimizer),
    *(trace_data, forgotten_trace, cleared_state, to_and_back, freeze_some, freeze_all, forward_hook, forward_pre_hook),
    *(backward_hook, tensor_hook, another_forward, one_more_layer, another_activation, another_slope, another_epsilon),
    *SPARSE_ONLY,
]


def trained(change, sparsity, where="step"):
    model = StreamAC("MlpPolicy", gym.make("Pendulum-v1", max_episode_steps=10), seed=0, policy_kwargs=dict(sparsity=sparsity))
    kinds = []

    class Changes(Each):
        def _on_step(self):
            kinds.append(type(model._learners[0]))
            if where == "step" and self.num_timesteps == CHANGE_AT:
                change(model)
            return True

        def _on_rollout_start(self):
            if where == "rollout" and self.num_timesteps == 10:
                change(model)

    model.learn(30, callback=Changes(None))
    return model, kinds


@pytest.mark.parametrize("sparsity", [0.0, 0.6])
@pytest.mark.parametrize("where", ["step", "rollout"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_both_ways_to_learn_notice(change, where, sparsity, monkeypatch):
    if change in SPARSE_ONLY and not sparsity:
        pytest.skip("dense layers have no topology")
    model, kinds = trained(change, sparsity, where)
    assert kinds[0] is CompiledLearner
    state, traces = state_of(model)
    monkeypatch.setattr(CompiledLearner, "supports", staticmethod(lambda network, optimizer: False))
    other, kinds = trained(change, sparsity, where)
    assert set(kinds) == {AutogradLearner}
    expected, expected_traces = state_of(other)
    th.testing.assert_close(state, expected, rtol=1e-3, atol=2e-4)
    th.testing.assert_close(traces, expected_traces, rtol=1e-2, atol=1e-2)


def test_frozen_parameters_stay_from_then_on():
    frozen = {}

    def freeze(callback):
        if callback.num_timesteps == 10:
            freeze_some(model)
            frozen.update({name: p.clone() for name, p in model.policy.actor.trunk.named_parameters()})

    for adaptive in (False, True):
        frozen.clear()
        model = StreamAC("MlpPolicy", "Pendulum-v1", seed=0, adaptive=adaptive)
        model.learn(30, callback=Each(freeze))
        assert frozen
        for name, p in model.policy.actor.trunk.named_parameters():
            assert th.equal(p, frozen[name])


def test_a_network_in_double_precision_stays_so():
    def change(callback):
        if callback.num_timesteps == 10:
            model.policy.q_net.double()

    model = StreamQ("MlpPolicy", "CartPole-v1", seed=0)
    with pytest.raises(RuntimeError, match="dtype"):
        # Features are float32, which torch refuses to multiply: an error, and no network that is changed back in silence.
        model.learn(20, callback=Each(change))
    assert {p.dtype for p in model.policy.q_net.parameters()} == {th.float64}


@pytest.mark.parametrize("replace", ["layer", "parameter", "network"])
def test_parameters_that_no_optimiser_knows_are_refused_at_once(replace):
    def change(callback):
        if callback.num_timesteps == 10:
            if replace == "layer":
                model.policy.q_net.trunk[3] = nn.Linear(32, 32)
            elif replace == "parameter":
                model.policy.q_net.trunk[3].bias = nn.Parameter(th.zeros(32))
            else:
                model.policy.q_net = copy.deepcopy(model.policy.q_net)

    model = StreamQ("MlpPolicy", "CartPole-v1", seed=0)
    with pytest.raises(ValueError, match="parameters that its optimiser does not know"):
        model.learn(20, callback=Each(change))
    assert model.num_timesteps == 10


def test_one_more_parameter_group_is_refused():
    def change(callback):
        if callback.num_timesteps == 10:
            model.policy.q_optimizer.add_param_group({"params": [nn.Parameter(th.zeros(3))]})

    model = StreamQ("MlpPolicy", "CartPole-v1", seed=0)
    with pytest.raises(ValueError, match="2 parameter groups"):
        model.learn(20, callback=Each(change))


def test_between_two_calls_of_learn_hooks_and_frozen_layers_count_too():
    for change in (forward_hook, freeze_some, freeze_all, another_slope):
        model = StreamAC("MlpPolicy", "Pendulum-v1", seed=0).learn(10)
        change(model)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model.learn(10, reset_num_timesteps=False)
        assert isinstance(model._learners[0], CompiledLearner if change is another_slope else AutogradLearner)
        assert isinstance(model._learners[1], CompiledLearner)
