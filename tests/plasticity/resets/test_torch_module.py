"""Resets of plain torch modules. Several tests are named after a mistake that an earlier implementation made."""

import copy

import pytest
import torch as th
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from sb3_sparse import SparseConv2d, SparseLinear, Topology, sparsify_
from sb3_sparse.common.model_parts import leaves
from sb3_sparse.networks import RunningNorm, SimBaEncoder, orthogonal_linear
from sb3_sparse.networks.noisy import NoisyLinear
from sb3_sparse.plasticity.resets import (
    reset_full_,
    reset_last_layers_,
    shrink_perturb_,
)
from sb3_sparse.sparse.surgery.redraw import draw_fresh
from tests.test_imports import PACKAGE, RL_LIBRARIES, imports, roots


def simba(sparsity=0.8, rescale=False, width=16):
    net = nn.Sequential(SimBaEncoder(5, width, n_blocks=2), orthogonal_linear(width, 3))
    return sparsify_(net, sparsity, rescale=rescale)


def mlp():
    return nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))


def train(net, optimizer, steps=5):
    x = th.randn(32, 5)
    for _ in range(steps):
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()


def trained(build, optimizer_class=th.optim.AdamW, **kwargs):
    th.manual_seed(0)
    net = build()
    optimizer = optimizer_class(net.parameters(), **{"lr": 1e-2, **kwargs})
    train(net, optimizer)
    return net, optimizer


def snapshot(net):
    return {name: p.detach().clone() for name, p in net.named_parameters()}


STRATEGIES = [reset_full_, reset_last_layers_, shrink_perturb_]
OPTIMIZERS = [
    (th.optim.Adam, {}),
    (th.optim.AdamW, {}),
    (th.optim.AdamW, {"fused": True}),
    (th.optim.AdamW, {"foreach": True, "amsgrad": True}),
    (th.optim.SGD, {"momentum": 0.9}),
    (th.optim.RMSprop, {"momentum": 0.9}),
]


@pytest.mark.parametrize("reset", STRATEGIES)
@pytest.mark.parametrize(("optimizer_class", "kwargs"), OPTIMIZERS)
def test_parameters_stay_in_their_optimizer_and_its_state_of_them_is_forgotten(reset, optimizer_class, kwargs):
    """Mistakes: layers replaced, none left in the optimizer (Plasticine); Adam's moments never cleared (RLx2, lop)."""
    net, optimizer = trained(simba, optimizer_class, **kwargs)
    objects, groups = [id(p) for p in net.parameters()], [id(p) for p in optimizer.param_groups[0]["params"]]
    before, state = snapshot(net), {name: copy.copy(optimizer.state[p]) for name, p in net.named_parameters()}
    optimizer.param_groups[0]["lr"] = 3e-3
    reset(net, draw_fresh(simba, 1), optimizer)
    assert [id(p) for p in net.parameters()] == objects == groups
    assert optimizer.param_groups[0]["lr"] == 3e-3
    changed = 0
    for name, parameter in net.named_parameters():
        if th.equal(parameter, before[name]) and reset is reset_last_layers_:
            kept = optimizer.state[parameter]
            assert kept.keys() == state[name].keys()
            assert all(kept[key] is value for key, value in state[name].items())
        else:
            changed += 1
            assert parameter not in optimizer.state
    assert changed == (2 if reset is reset_last_layers_ else len(objects))
    before = snapshot(net)
    train(net, optimizer, 1)
    assert all(not th.equal(p, before[name]) for name, p in net.named_parameters())
    for parameter in net.parameters():
        for value in optimizer.state[parameter].values():
            assert not isinstance(value, th.Tensor) or value.dtype == parameter.dtype
            assert not isinstance(value, th.Tensor) or value.device == parameter.device


@pytest.mark.parametrize("kwargs", [{}, {"fused": True}, {"foreach": True}])
def test_a_reset_network_trains_as_one_that_was_just_built(kwargs):
    net, optimizer = trained(simba, **kwargs)
    fresh = draw_fresh(simba, 1)
    reset_full_(net, fresh, optimizer)
    twin = copy.deepcopy(net)
    train_twin = th.optim.AdamW(twin.parameters(), lr=1e-2, **kwargs)
    for one, other in ((net, optimizer), (twin, train_twin)):
        th.manual_seed(5)
        train(one, other)
    assert all(th.equal(a, b) for a, b in zip(net.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize("rescale", [False, True])
def test_a_sparse_reset_is_the_dense_reset_masked(rescale):
    net, _ = trained(lambda: simba(0.8, rescale))
    masks = {name: m.topology.mask() for name, m in net.named_modules() if isinstance(m, SparseLinear)}
    topologies = {name: m.topology for name, m in net.named_modules() if isinstance(m, SparseLinear)}
    assert masks
    reset_full_(net, draw_fresh(lambda: simba(0.8, rescale), 7))
    dense = dict(draw_fresh(lambda: simba(0.0), 7).named_modules())
    for name, layer in net.named_modules():
        if isinstance(layer, SparseLinear):
            factor = layer.density**0.5 if rescale else 1.0
            assert layer.topology is topologies[name]
            assert th.allclose(layer.weight, dense[name].weight * masks[name] / factor, rtol=1e-6, atol=0)


@pytest.mark.parametrize("rescale", [False, True])
def test_values_from_a_dense_module_are_those_of_the_pruned_one(rescale):
    """Mistake: values of a layer with ``rescale`` were gathered from a dense draw as they were there."""

    def build(sparsity=0.0):
        th.manual_seed(3)
        noisy, convolution = NoisyLinear(12, 9), nn.Conv2d(5, 7, 3)
        noisy.weight_sigma.data.normal_()
        return sparsify_(nn.ModuleList([noisy, nn.Linear(8, 9), convolution]), sparsity, seed=1, rescale=rescale)

    net, pruned = build(0.8), build(0.8)
    for parameter in net.parameters():
        parameter.data.fill_(7.0)
    reset_full_(net, build())
    assert net[0].rescale is rescale
    assert all(th.equal(a, b) for a, b in zip(net.parameters(), pruned.parameters(), strict=True))
    empty = nn.Sequential(SparseLinear(3, 2, density=0.0, rescale=rescale))
    reset_full_(empty, nn.Sequential(nn.Linear(3, 2)))


def test_fresh_values_come_from_the_networks_own_initialisers():
    net, _ = trained(lambda: simba(0.0, width=64))
    before = snapshot(net)
    reset_full_(net, draw_fresh(lambda: simba(0.0, width=64)))
    head, block = net[1], net[0].blocks[0]
    assert th.allclose(head.weight @ head.weight.T, th.eye(3), atol=1e-5)
    assert block.fc1.weight.std().item() == pytest.approx((2 / 64) ** 0.5, rel=0.03)
    assert th.equal(block.norm.weight, th.ones(64))
    assert all(not p.any() for name, p in net.named_parameters() if name.endswith("bias"))
    assert all(not th.equal(p, before[name]) for name, p in net.named_parameters())


def test_a_fresh_module_of_dense_layers_or_of_the_same_topology_will_do():
    net, _ = trained(simba)
    topology = net[0].blocks[0].fc1.topology
    reset_full_(net, simba(0.0))
    same = copy.deepcopy(net)
    same[0].blocks[0].fc1.values.data.fill_(3.0)
    reset_full_(net, same)
    assert (net[0].blocks[0].fc1.values == 3).all()
    assert net[0].blocks[0].fc1.topology is topology
    th.manual_seed(9)
    with pytest.raises(ValueError, match=r"at other positions.*draw_fresh"):
        reset_full_(net, simba())


def test_only_a_fresh_module_remembers_its_dense_draw():
    fresh = draw_fresh(simba, 1)
    layers = [layer for layer in fresh.modules() if isinstance(layer, SparseLinear)]
    assert all(th.equal(layer.dense_draw * layer.topology.mask(), layer.weight) for layer in layers)
    assert not any("dense_draw" in name for name in fresh.state_dict())
    assert all(layer.dense_draw is None for layer in simba().modules() if isinstance(layer, SparseLinear))


def test_another_structure_is_refused():
    net = simba()
    for build in (lambda: simba(width=8), lambda: nn.Sequential(nn.Linear(5, 3)), mlp):
        with pytest.raises(ValueError, match=r"expected \(.*\) in the fresh module, found"):
            reset_full_(net, draw_fresh(build))


def test_drawing_fresh_weights_leaves_the_generator_alone_and_follows_the_seed():
    th.manual_seed(3)
    state = th.get_rng_state()
    first, second, other = (draw_fresh(simba, seed) for seed in (1, 1, 2))
    assert th.equal(state, th.get_rng_state())
    assert all(th.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not th.equal(first[0].blocks[0].fc1.values, other[0].blocks[0].fc1.values)
    th.manual_seed(3)
    third = draw_fresh(simba)
    th.manual_seed(3)
    assert th.equal(third[1].weight if hasattr(third[1], "weight") else third[1].values, draw_fresh(simba)[1].weight)
    assert th.initial_seed() == 3


def test_redrawing_changes_positions_and_keeps_counts():
    net, optimizer = trained(simba)
    layers = {name: m for name, m in net.named_modules() if isinstance(m, SparseLinear)}
    old = {name: m.topology for name, m in layers.items()}
    reset_full_(net, draw_fresh(simba, 7), optimizer, redraw_seed=11)
    dense = dict(draw_fresh(lambda: simba(0.0), 7).named_modules())
    for name, layer in layers.items():
        assert layer.topology != old[name]
        assert layer.topology.nnz == old[name].nnz == len(layer.values)
        assert th.equal(layer.weight, dense[name].weight * layer.topology.mask())
    again = simba()
    again.load_state_dict(net.state_dict())
    x = th.randn(4, 5)
    assert th.allclose(again(x), net(x))
    train(net, optimizer, 1)


def test_redrawing_replaces_a_given_topology_by_a_drawn_one():
    layer = SparseLinear(6, 4, topology=Topology.from_mask(th.eye(4, 6)))
    net = nn.Sequential(layer)
    reset_full_(net, draw_fresh(lambda: nn.Sequential(nn.Linear(6, 4)), 1), redraw_seed=3)
    assert layer.topology.nnz == 4
    assert {name for name, _ in layer.named_buffers()} == {"topology_seed"}
    twin = nn.Sequential(SparseLinear(6, 4, topology=Topology.from_mask(th.eye(4, 6))))
    twin.load_state_dict(net.state_dict())
    assert twin[0].topology is layer.topology
    with pytest.raises(ValueError, match="must stay the same"):
        layer.set_topology(Topology.random((4, 6), 5, 0))


def test_zeros_among_living_weights_stay_weights():
    """Mistake: the mask taken from ``weight != 0``, so that a weight at 0 is pruned for good."""
    net, _ = trained(simba)
    layer = net[0].blocks[0].fc2
    layer.values.data.zero_()
    reset_full_(net, draw_fresh(simba, 1))
    assert layer.topology.nnz == len(layer.values)
    assert layer.values.all()


def test_last_layers_are_counted_from_the_end():
    for n_layers, expected in ((1, {"5"}), (2, {"3", "5"}), (3, {"0", "1", "3", "5"})):
        net, optimizer = trained(mlp)
        before = snapshot(net)
        reset_last_layers_(net, draw_fresh(mlp, 1), optimizer, n_layers=n_layers)
        changed = {name.split(".")[0] for name, p in net.named_parameters() if not th.equal(p, before[name])}
        assert changed == expected
        forgotten = {name.split(".")[0] for name, p in net.named_parameters() if p not in optimizer.state}
        assert forgotten == expected
    for n_layers, message in ((4, "n_layers=4: the network has 3"), (0, "n_layers=0"), (True, "n_layers=True")):
        with pytest.raises(ValueError, match=message):
            reset_last_layers_(mlp(), mlp(), n_layers=n_layers)


def test_parametrized_layers_are_layers():
    """Mistake: a layer of ``spectral_norm`` was not counted, since it has modules inside; another was reset in its place."""

    def build(place):
        net = mlp()
        spectral_norm(net[place])
        return net

    for place, expected in ((5, {"5"}), (3, {"3", "5"})):
        net, optimizer = trained(lambda place=place: build(place))
        before = snapshot(net)
        reset_last_layers_(net, draw_fresh(lambda place=place: build(place), 1), optimizer, n_layers=len(expected))
        changed = {name for name, p in net.named_parameters() if not th.equal(p, before[name])}
        assert {name.split(".")[0] for name in changed} == expected
        assert f"{place}.parametrizations.weight.original" in changed
    net = nn.Sequential(weight_norm(SparseLinear(6, 4, density=0.5), "nonzeros", dim=None), nn.ReLU(), nn.Linear(4, 2))
    assert leaves(net) == list(net)


def test_norms_behind_a_reset_layer_go_with_it():
    net, _ = trained(simba)
    final_norm, head = net[0].norm, net[1]
    weight = final_norm.weight.detach().clone()
    reset_last_layers_(net, draw_fresh(simba, 1))
    assert th.equal(final_norm.weight, weight)
    assert not head.bias.any()
    reset_last_layers_(net, draw_fresh(simba, 1), n_layers=2)
    assert th.equal(final_norm.weight, th.ones(16))


def test_shrink_and_perturb_blends_every_parameter():
    net, _ = trained(simba)
    before, fresh = snapshot(net), draw_fresh(simba, 1)
    twin = copy.deepcopy(net)
    reset_full_(twin, fresh)
    shrink_perturb_(net, fresh, shrink=0.8, perturb=0.1)
    for (name, parameter), drawn in zip(net.named_parameters(), twin.parameters(), strict=True):
        assert th.allclose(parameter, 0.8 * before[name] + 0.1 * drawn)
    shrink_perturb_(net, fresh, shrink=1.0, perturb=0.0)
    assert th.allclose(net[1].bias, 0.8 * before["1.bias"])
    for name in ("shrink", "perturb"):
        with pytest.raises(ValueError, match=rf"{name}=1.5: expected a number in \[0, 1\]"):
            shrink_perturb_(net, fresh, **{name: 1.5})


def test_a_diverged_network_is_made_whole():
    net, optimizer = trained(simba)
    for parameter in net.parameters():
        parameter.data.fill_(float("nan"))
    reset_full_(net, draw_fresh(simba, 1), optimizer)
    assert all(p.isfinite().all() for p in net.parameters())


def test_statistics_of_the_data_stay_and_those_of_activations_go():
    def build():
        return nn.Sequential(RunningNorm((5,)), nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1))

    net = build()
    net[0].update(th.randn(50, 5) * 3 + 2)
    net(th.randn(50, 5))
    statistics = {name: value.clone() for name, value in net[0].named_buffers()}
    assert net[2].running_mean.any()
    reset_full_(net, draw_fresh(build, 1))
    assert all(th.equal(value, statistics[name]) for name, value in net[0].named_buffers())
    assert not net[2].running_mean.any()
    assert net[2].num_batches_tracked == 0


def test_a_shared_layer_is_reset_once():
    def build():
        layer = nn.Linear(4, 4)
        return nn.Sequential(layer, nn.ReLU(), layer)

    net, fresh = build(), draw_fresh(build, 1)
    old = net[0].weight.detach().clone()
    shrink_perturb_(net, fresh)
    assert net[0] is net[2]
    assert th.allclose(net[0].weight, 0.5 * old + 0.5 * fresh[0].weight)


def test_half_precision_and_frozen_parameters():
    net = simba().to(th.bfloat16)
    net[1].requires_grad_(False)
    reset_full_(net, draw_fresh(simba, 1))
    assert {p.dtype for p in net.parameters()} == {th.bfloat16}
    assert [p.requires_grad for p in net[1].parameters()] == [False, False]


@pytest.mark.parametrize("name", ["torch_module.py", "redo.py"])
def test_the_functions_on_modules_know_no_rl_library(name):
    names = imports(PACKAGE / "plasticity" / "resets" / name)
    assert not roots(names) & RL_LIBRARIES
    assert not any(name.endswith(("policies", "callback", "sb3_model", "sb3_models")) for name in names)


@pytest.mark.parametrize("rescale", [False, True])
def test_a_layer_that_draws_its_own_values_is_redrawn_as_it_was_drawn(rescale):
    def build():
        return nn.Sequential(SparseLinear(300, 200, density=0.25, seed=1, rescale=rescale))

    net = build()
    plain = draw_fresh(build, 3)[0].values.detach().clone()
    reset_full_(net, draw_fresh(build, 3))
    assert th.equal(net[0].values, plain)
    before = net[0].topology
    reset_full_(net, draw_fresh(build, 3), redraw_seed=7)
    assert net[0].topology != before
    both = net[0].topology.mask() & before.mask()
    assert th.equal(net[0].weight[both], before.scatter(plain)[both])
    bound = 300**-0.5 * (2 if rescale else 1)
    assert net[0].values.abs().max() <= bound
    assert net[0].values.std().item() == pytest.approx(bound / 3**0.5, rel=0.03)


MADE = {
    "by itself": lambda: SparseLinear(60, 50, density=0.2, seed=1),
    "from a dense one": lambda: SparseLinear.from_dense(nn.Linear(60, 50), Topology.random((50, 60), 300, 1)),
    "a convolution": lambda: SparseConv2d.from_dense(nn.Conv2d(10, 20, 3), Topology.random((20, 10, 3, 3), 300, 1)),
}


@pytest.mark.parametrize("made", MADE)
def test_layers_of_any_origin_can_be_redrawn(made):
    def build():
        return nn.Sequential(MADE[made]())

    net = build()
    before, plain = net[0].topology, draw_fresh(build, 3)[0].weight.detach()
    reset_full_(net, draw_fresh(build, 3), redraw_seed=7)
    both = net[0].topology.mask() & before.mask()
    assert net[0].topology != before
    assert both.any()
    assert th.equal(net[0].weight[both], plain[both])
    assert net[0].values.std().item() == pytest.approx(plain[before.mask()].std().item(), rel=0.2)


@pytest.mark.parametrize("seed", [1, None])
@pytest.mark.parametrize("redraw_seed", [None, 7])
def test_values_that_were_given_after_pruning_are_those_of_a_reset(seed, redraw_seed):
    def build():
        net = nn.Sequential(SparseLinear(60, 50, density=0.2, seed=seed))
        nn.init.constant_(net[0].values, 1e-3)
        return net

    net = build()
    nn.init.normal_(net[0].values)
    reset_full_(net, draw_fresh(build, 3), redraw_seed=redraw_seed)
    assert (net[0].values == 1e-3).all()


def test_a_fresh_module_holds_no_more_than_its_layers_and_what_they_were_drawn_from():
    fresh = draw_fresh(simba, 1)
    sources = [layer.dense_source() for layer in fresh.modules() if isinstance(layer, SparseLinear)]
    assert sources
    # The dense weights themselves are gone; their copies are kept.
    assert all(source is None for source in sources)
    assert copy.deepcopy(fresh)[0].blocks[0].fc1.dense_draw is not None
