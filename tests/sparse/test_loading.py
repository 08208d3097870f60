"""A state dict loads as a whole, or not at all."""

import copy

import pytest
import torch as th
from stable_baselines3 import DQN, SAC, TD3
from torch import nn
from torch.nn.utils import parametrize, prune

from sb3_sparse.sparse import SparseConv2d, SparseLinear, Topology
from sb3_sparse.sparse.weight import SparseWeight

LAYERS = {
    "linear": lambda seed: SparseLinear(50, 40, density=0.2, seed=seed),
    "no bias": lambda seed: SparseLinear(50, 40, density=0.2, seed=seed, bias=False),
    "given": lambda seed: SparseLinear(50, 40, topology=Topology.from_mask(Topology.random((40, 50), 400, seed).mask())),
    "conv": lambda seed: SparseConv2d(nn.Conv2d(4, 6, 3), Topology.random((6, 4, 3, 3), 50, seed)),
}


def content(module):
    topologies = [layer.topology for layer in module.modules() if isinstance(layer, SparseWeight)]
    return copy.deepcopy(module.state_dict()), topologies


def assert_same(module, before):
    state, topologies = content(module)
    assert topologies == before[1]
    assert set(state) == set(before[0])
    assert all(th.equal(state[key], before[0][key]) for key in state)


@pytest.mark.filterwarnings("ignore:.*topology_seed of the state dict is missing")
@pytest.mark.parametrize("kind", list(LAYERS))
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("assign", [True, False])
def test_a_refused_layer_is_what_it_was(kind, strict, assign):
    layer, other = LAYERS[kind](1), LAYERS[kind](2)
    good, before = other.state_dict(), content(layer)
    bad = [good | {"nonzeros": th.zeros(3)}, {k: v for k, v in good.items() if k != "nonzeros"}]
    if layer.bias is not None:
        bad.append(good | {"bias": th.zeros(3)})
    if strict:
        needed = [key for key in good if key != "topology_index"]
        if kind == "given":
            # As version 0.1 saved it.
            needed.remove("topology_seed")
        bad += [{k: v for k, v in good.items() if k != key} for key in needed]
        bad.append(good | {"weight": layer.weight.detach().clone()})
    for state in bad:
        with pytest.raises(RuntimeError):
            layer.load_state_dict(state, strict=strict, assign=assign)
        assert_same(layer, before)
    layer.load_state_dict(good, strict=strict, assign=assign)
    assert th.equal(layer.weight, other.weight)


@pytest.mark.parametrize("kind", ["linear", "given"])
def test_tensors_assigned_to_a_layer_without_data_are_a_layer(kind):
    source = LAYERS[kind](1)
    with th.device("meta"):
        layer = LAYERS["linear"](3)
    layer.load_state_dict(source.state_dict(), assign=True)
    assert all(tensor.device.type == "cpu" for tensor in layer.state_dict().values())
    other = LAYERS["linear"](2)
    other.load_state_dict(layer.state_dict())
    assert th.equal(other.weight, source.weight)


def test_a_dense_checkpoint_says_what_to_do():
    with pytest.raises(RuntimeError, match="load it into the dense module, then call sparsify_"):
        LAYERS["linear"](1).load_state_dict(nn.Linear(50, 40).state_dict())


def test_values_alone_load_where_that_is_asked_for():
    layer, other = LAYERS["linear"](1), LAYERS["linear"](2)
    topology = layer.topology
    with pytest.warns(UserWarning, match="the layer keeps its own"):
        layer.load_state_dict(dict(other.named_parameters()), strict=False)
    assert layer.topology is topology
    assert th.equal(layer.values, other.values)
    layer.load_state_dict({"bias": th.ones(40)}, strict=False)
    assert (layer.bias == 1).all()


@pytest.mark.parametrize("kind", list(LAYERS))
def test_an_interrupted_layer_is_what_it_was(kind, monkeypatch):
    layer, other = LAYERS[kind](1), LAYERS[kind](2)
    before = content(layer)

    def interrupted(self, *args):
        raise KeyboardInterrupt

    def half(self, state_dict, prefix, *args):
        with th.no_grad():
            self.values.copy_(state_dict[prefix + "nonzeros"])
        raise KeyboardInterrupt

    for patch in (interrupted, half):
        with monkeypatch.context() as patched:
            patched.setattr(nn.Module, "_load_from_state_dict", patch)
            with pytest.raises(KeyboardInterrupt):
                layer.load_state_dict(other.state_dict())
        assert_same(layer, before)


SMALL = dict(width_scale=0.1, sparsity=0.5)


@pytest.mark.parametrize(("algorithm", "env"), [(SAC, "Pendulum-v1"), (TD3, "Pendulum-v1"), (DQN, "CartPole-v1")])
def test_a_refused_policy_is_what_it_was(algorithm, env, monkeypatch):
    def policy(seed, **kwargs):
        settings = dict(seed=seed, buffer_size=10, device="cpu", policy_kwargs=SMALL | kwargs)
        return algorithm("SparseSimBaPolicy", env, **settings).policy

    model, wider = policy(1), policy(2, width_scale=0.2)
    for module, other in [(model, wider), *zip(model.children(), wider.children(), strict=True)]:
        if not any(isinstance(layer, SparseLinear) for layer in module.modules()):
            continue
        before = content(module)
        with pytest.raises(RuntimeError, match="size mismatch"):
            module.load_state_dict(other.state_dict())
        assert_same(module, before)
    same = policy(3)
    seed = [key for key in same.state_dict() if key.endswith("topology_seed")][-1]
    damaged = copy.deepcopy(same.state_dict())
    damaged[seed] += 300
    incomplete = dict(list(same.state_dict().items())[:-1])
    before = content(model)
    for state in (damaged, incomplete):
        with pytest.raises(RuntimeError):
            model.load_state_dict(state)
        assert_same(model, before)
    before, calls = content(model), []
    real = nn.Module._load_from_state_dict

    def interrupted(self, *args):
        calls.append(self)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return real(self, *args)

    with monkeypatch.context() as patched:
        patched.setattr(nn.Module, "_load_from_state_dict", interrupted)
        with pytest.raises(KeyboardInterrupt):
            model.load_state_dict(same.state_dict())
    assert_same(model, before)
    model.load_state_dict(same.state_dict())
    assert_same(model, content(same))


@pytest.mark.parametrize("kind", list(LAYERS))
def test_weights_that_a_tool_of_torch_computes_load_with_it(kind):
    """``prune`` and parametrizations keep the parameter under another name."""
    for tool in (lambda layer: prune.l1_unstructured(layer, "nonzeros", 0.5), parametrized):
        layer, other = LAYERS[kind](1), LAYERS[kind](1)
        tool(layer)
        tool(other)
        other.load_state_dict(layer.state_dict())
        x = th.randn(2, *((4, 5, 5) if kind == "conv" else (50,)))
        assert th.equal(other(x), layer(x))
        # Another topology's identity alone is another matter, and still one without its values; whichever has the tool.
        plain, before = LAYERS[kind](2), content(layer)
        for strict in (True, False):
            for one, state in ((layer, plain.state_dict()), (plain, layer.state_dict())):
                expected = content(one)
                with pytest.raises(RuntimeError, match="positions and values belong together"):
                    one.load_state_dict(state, strict=strict)
                assert_same(one, expected)
        # Nor are values loaded without a word that do not say whose they are; `topology_index` says it, too.
        if kind != "given":
            del (state := layer.state_dict())["topology_seed"]
            with pytest.raises(RuntimeError, match="topology_seed"), pytest.warns(UserWarning, match="topology_seed of"):
                layer.load_state_dict(state)
            assert_same(layer, before)


def parametrized(layer):
    parametrize.register_parametrization(layer, "nonzeros", nn.Tanh())
