"""ReDo on plain torch modules. Several tests are named after a mistake that an earlier implementation made."""

import inspect

import pytest
import torch as th
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from sb3_sparse import SparseLinear, Topology, sparsify_
from sb3_sparse.common.model_parts import leaves
from sb3_sparse.networks import SimBaEncoder, orthogonal_linear
from sb3_sparse.plasticity.resets import draw_fresh
from sb3_sparse.plasticity.resets.redo import hidden_layers, redo_, unit_scores


def mlp(sparsity=0.0):
    net = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 3))
    return sparsify_(net, sparsity)


def simba(sparsity=0.8):
    return sparsify_(nn.Sequential(SimBaEncoder(4, 8, n_blocks=2), orthogonal_linear(8, 3)), sparsity)


def kill(layer, units):
    """Units whose pre-activation is negative whatever comes in."""
    layer.bias.data[units] = -1e3


def wake_all(net):
    """No unit is silent."""
    layers = [layer for layer in net.modules() if isinstance(layer, (nn.Linear, SparseLinear))]
    for depth, layer in enumerate(layers):
        layer.bias.data.fill_(20.0 * 10**depth)


def moments(optimizer, parameter):
    state = optimizer.state[parameter]
    return {key: value for key, value in state.items() if isinstance(value, th.Tensor) and value.shape == parameter.shape}


def prepared(build, optimizer_class=th.optim.Adam, **kwargs):
    """A trained network with moments everywhere."""
    th.manual_seed(0)
    net = build()
    optimizer = optimizer_class(net.parameters(), **{"lr": 1e-3, **kwargs})
    x = th.randn(64, 4)
    for _ in range(3):
        optimizer.zero_grad()
        (net(x) + x.sum()).square().mean().backward()
        optimizer.step()
    for parameter in net.parameters():
        for value in moments(optimizer, parameter).values():
            value.add_(1.0)
    return net, optimizer, x


def weight_of(layer):
    return layer.weight.detach().clone()


def test_scores_are_relative_to_the_mean_of_the_layer():
    """Mistake (dopamine#209): scores that sum to 1, which makes the threshold depend on the width."""
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    net[0].weight.data = th.tensor([[1.0, 0, 0], [0, 2.0, 0], [0, 0, 0.01], [-1.0, -1, -1]])
    net[0].bias.data.zero_()
    layers = hidden_layers(net, [leaves(net)])
    (scores,) = unit_scores(net, layers, lambda: net(th.ones(5, 3)))
    assert scores.tolist() == pytest.approx([1 / 0.7525, 2 / 0.7525, 0.01 / 0.7525, 0.0], abs=1e-6)
    assert (scores <= 0.025).tolist() == [False, False, True, True]


def test_the_default_threshold_is_the_papers():
    """Mistake (dopamine#226): 0.1 here, 0 there."""
    assert inspect.signature(redo_).parameters["tau"].default == 0.025


@pytest.mark.parametrize("sparsity", [0.0, 0.6])
def test_exactly_the_weights_of_dormant_units_change(sparsity):
    """Mistake (timoklein/redo#3): the wrong outgoing weights."""
    net, optimizer, x = prepared(lambda: mlp(sparsity))
    dead = [1, 4, 11]
    wake_all(net)
    kill(net[0], dead)
    before = {i: (weight_of(net[i]), net[i].bias.detach().clone()) for i in (0, 2, 4)}
    topologies = {i: getattr(net[i], "topology", None) for i in (0, 2, 4)}
    fresh = draw_fresh(lambda: mlp(0.0), 5)
    report = redo_(net, fresh, lambda: net(x), optimizer)
    assert report.units == {"0": 12, "2": 10}
    assert report.recycled == {"0": 3, "2": 0}
    assert report.dormant_ratio == pytest.approx(3 / 22)
    mask = net[0].topology.mask() if sparsity else th.ones(12, 4)
    rows = th.zeros(12, 1, dtype=th.bool)
    rows[dead] = True
    assert th.equal(weight_of(net[0]), th.where(rows, fresh[0].weight * mask, before[0][0]))
    assert th.equal(net[0].bias, th.where(rows.flatten(), 0.0, before[0][1]))
    assert th.equal(weight_of(net[2]), th.where(rows.T, 0.0, before[2][0]))
    assert th.equal(weight_of(net[4]), before[4][0])
    assert {i: getattr(net[i], "topology", None) for i in (0, 2, 4)} == topologies


OPTIMIZERS = [
    (th.optim.Adam, {}, {}),
    (th.optim.AdamW, {"fused": True}, {}),
    (th.optim.AdamW, {"foreach": True, "amsgrad": True}, {}),
    (th.optim.SGD, {"momentum": 0.9}, {}),
    (th.optim.RMSprop, {"momentum": 0.9}, {}),
    (th.optim.Rprop, {"lr": 0.25}, {"step_size": 0.25}),
    (th.optim.Adagrad, {"initial_accumulator_value": 0.5}, {"sum": 0.5}),
    (RMSpropTFLike, {"momentum": 0.9}, {"square_avg": 1.0}),
]


@pytest.mark.parametrize("sparsity", [0.0, 0.6])
@pytest.mark.parametrize("reset_step", [False, True])
@pytest.mark.parametrize(("optimizer_class", "kwargs", "starts"), OPTIMIZERS)
def test_moments_begin_anew_where_a_weight_was_touched_and_nowhere_else(optimizer_class, kwargs, starts, reset_step, sparsity):
    """
    Mistakes: moments found by the position in a list of parameters (timoklein/redo#6); only ``momentum_buffer`` looked for
    (RLx2); never reached with plain Adam (lop#10); a silent except around it (Neuroplastic Expansion).
    """
    net, optimizer, x = prepared(lambda: mlp(sparsity), optimizer_class, **kwargs)
    dead = th.zeros(12, dtype=th.bool)
    dead[[0, 7]] = True
    wake_all(net)
    kill(net[0], [0, 7])
    steps = {name: float(optimizer.state[p].get("step", -1)) for name, p in net.named_parameters()}
    report = redo_(net, draw_fresh(lambda: mlp(sparsity), 5), lambda: net(x), optimizer, tau=0.0, reset_step=reset_step)
    assert report.recycled == {"0": 2, "2": 0}
    if sparsity:
        rows = th.repeat_interleave(th.arange(12), net[0].topology.fan_in())
        columns = net[2].topology.tensors().col.long()
        touched = {"0.nonzeros": dead[rows], "0.bias": dead, "2.nonzeros": dead[columns]}
    else:
        touched = {"0.weight": dead[:, None].expand(12, 4), "0.bias": dead, "2.weight": dead[None].expand(10, 12)}
    n_moments = 0
    for name, parameter in net.named_parameters():
        for key, value in moments(optimizer, parameter).items():
            n_moments += 1
            is_new = value == starts.get(key, 0.0)
            assert th.equal(is_new, touched[name]) if name in touched else not is_new.any()
        # A plain number, as of RMSpropTFLike, corrects no bias.
        if th.is_tensor(optimizer.state[parameter].get("step")):
            assert float(optimizer.state[parameter]["step"]) == (0 if reset_step and name in touched else steps[name])
    assert n_moments >= 6
    (net(x) + 1).square().mean().backward()
    optimizer.step()
    assert all(p.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("sparsity", [0.0, 0.8])
def test_hidden_units_of_residual_blocks(sparsity):
    net, optimizer, x = prepared(lambda: simba(sparsity))
    block = net[0].blocks[1]
    for part in net[0].blocks:
        wake_all(part)
    kill(block.fc1, [3])
    other = {name: p.detach().clone() for name, p in net.named_parameters() if "blocks.1.fc" not in name}
    layers = hidden_layers(net, [leaves(net)])
    assert [layer.name for layer in layers] == ["0.blocks.0.fc1", "0.blocks.1.fc1"]
    assert [layer.outgoing for layer in layers] == [[b.fc2] for b in net[0].blocks]
    out = net(x).detach()
    report = redo_(net, draw_fresh(lambda: simba(sparsity), 1), lambda: net(x), optimizer, tau=0.0)
    assert report.recycled == {"0.blocks.0.fc1": 0, "0.blocks.1.fc1": 1}
    assert all(th.equal(p, other[name]) for name, p in net.named_parameters() if name in other)
    assert th.allclose(net(x), out, atol=1e-6), "units that never fire are recycled without a trace"
    assert weight_of(block.fc1)[3].any()
    assert block.fc1.bias[3] == 0
    assert not weight_of(block.fc2)[:, 3].any()


def test_every_head_that_reads_a_unit_forgets_it():
    trunk = nn.Sequential(nn.Linear(4, 6), nn.ReLU())
    net = nn.ModuleDict({"trunk": trunk, "mu": nn.Linear(6, 2), "log_std": nn.Linear(6, 2)})
    wake_all(trunk)
    kill(trunk[0], [2])
    chains = [[*trunk, net["mu"]], [*trunk, net["log_std"]]]
    fresh = draw_fresh(lambda: nn.ModuleDict({"trunk": nn.Sequential(nn.Linear(4, 6)), "mu": nn.Linear(6, 2)}), 1)
    redo_(net, fresh, lambda: trunk(th.randn(8, 4)), tau=0.0, chains=chains)
    for head in ("mu", "log_std"):
        assert not net[head].weight[:, 2].any()
        assert net[head].weight[:, [0, 1, 3, 4, 5]].all(), "the others keep what they have"


@pytest.mark.parametrize("norm_first", [True, False])
def test_a_norm_at_the_units_is_reset_at_the_unit(norm_first):
    def build():
        middle = [nn.LayerNorm(6), nn.ReLU()] if norm_first else [nn.ReLU(), nn.LayerNorm(6)]
        return nn.Sequential(nn.Linear(4, 6), *middle, nn.Linear(6, 2))

    net = build()
    norm = next(part for part in net if isinstance(part, nn.LayerNorm))
    norm.weight.data.fill_(3.0)
    norm.bias.data.fill_(-1e3 if norm_first else 2.0)
    if norm_first:
        norm.bias.data[1:] = 2.0
        dead = [0]
    else:
        kill(net[0], [0])
        dead = [0]
    redo_(net, draw_fresh(build, 1), lambda: net(th.randn(8, 4)), tau=0.0)
    for unit in range(6):
        assert (norm.weight[unit], norm.bias[unit]) == ((1, 0) if unit in dead else (3, 2))


def test_statistics_of_a_recycled_unit_start_anew():
    def build():
        return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.BatchNorm1d(6, momentum=1.0), nn.Linear(6, 2))

    net = build()
    wake_all(net)
    kill(net[0], [4])
    x = th.randn(8, 4)
    net(x)
    mean, var = net[2].running_mean.clone(), net[2].running_var.clone()
    assert var[4] == 0
    redo_(net, draw_fresh(build, 1), lambda: net(x), tau=0.0)
    mean[4], var[4] = 0, 1
    assert th.equal(net[2].running_mean, mean)
    assert th.equal(net[2].running_var, var)


def test_a_silent_layer_is_recycled_as_a_whole():
    net, optimizer, x = prepared(mlp)
    kill(net[0], list(range(12)))
    assert redo_(net, draw_fresh(mlp, 1), lambda: net(x), optimizer).recycled["0"] == 12
    assert net[0](x).relu().mean(0).bool().any()


def test_unconnected_units_are_told_apart():
    mask_in, mask_out = th.ones(6, 4), th.ones(2, 6)
    mask_in[0] = 0
    mask_out[:, 5] = 0

    def build():
        first = SparseLinear(4, 6, topology=Topology.from_mask(mask_in))
        return nn.Sequential(first, nn.ReLU(), SparseLinear(6, 2, topology=Topology.from_mask(mask_out)))

    net = build()
    kill(net[0], [0, 2, 5])
    report = redo_(net, draw_fresh(build, 1), lambda: net(th.randn(8, 4)), tau=0.0)
    # Unit 0 has no input: new weights would not help it.
    assert report.units == {"0": 5}
    assert report.recycled == {"0": 2}
    assert report.unconnected == {"0": 1}


def test_scoring_changes_nothing():
    net, _, x = prepared(lambda: nn.Sequential(mlp()[:4], nn.Dropout(0.5), nn.BatchNorm1d(10), nn.Linear(10, 3)))
    net[1].eval()
    modes = [part.training for part in net.modules()]
    state = {name: value.clone() for name, value in net.state_dict().items()}
    rng = th.get_rng_state()
    unit_scores(net, hidden_layers(net, [leaves(net)]), lambda: net(x))
    assert [part.training for part in net.modules()] == modes
    assert all(th.equal(value, state[name]) for name, value in net.state_dict().items())
    assert th.equal(rng, th.get_rng_state())
    assert not any(part._forward_hooks for part in net.modules())


def test_an_activation_that_cannot_be_seen_is_an_error():
    """Mistake (Plasticine): hooks on activation modules, and silently no unit at all with ``F.relu``."""
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    with pytest.raises(ValueError, match=r"found no hidden layer.*use its module"):
        redo_(net, net, lambda: net(th.randn(2, 4)))
    net = mlp()
    with pytest.raises(ValueError, match="does not reach '2'"):
        redo_(net, net, lambda: net[:2](th.randn(2, 4)))
    with pytest.raises(ValueError, match=r"tau=1.0: expected a number in \[0, 1\)"):
        redo_(net, net, lambda: None, tau=1.0)


class OneReLU(nn.Module):
    """Several layers, one module for their activations."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.relu, self.head = nn.Linear(4, 8), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.relu(self.second(self.relu(self.first(x)))))


def test_an_activation_that_several_layers_share_is_an_error():
    """Mistake of ours: units were scored by the outputs of both layers."""
    net = OneReLU()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(ValueError, match=r"behind 'second' is called 2 times, that layer 1 times: .*a module for each"):
        redo_(net, draw_fresh(OneReLU, 1), lambda: net(th.randn(8, 4)))
    assert all(th.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("place", [0, 2, 4])
def test_a_parametrized_layer_is_an_error(place):
    """Mistake: the next layer was taken for the one that reads the units, whose silence then changed the output."""

    def build():
        net = mlp()
        spectral_norm(net[place])
        return net

    net = build()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(ValueError, match=rf"cannot recycle units at '{place}'.*remove_parametrizations"):
        redo_(net, draw_fresh(build, 1), lambda: net(th.randn(8, 4)))
    assert all(th.equal(value, before[name]) for name, value in net.state_dict().items())
    # Where it has nothing to do with units that learn, it is in nobody's way.
    net[2].requires_grad_(False)
    assert not hidden_layers(net, [leaves(net)])


def test_convolutions_are_left_alone():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))
    assert [layer.name for layer in hidden_layers(net, [leaves(net)])] == ["3"]
