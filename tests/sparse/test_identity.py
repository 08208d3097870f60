"""What strangers do to a state dict leaves a layer's topology what it is, or is refused."""

import copy
import ctypes
import itertools
import pickle
import warnings

import numpy as np
import pytest
import torch as th
from torch import nn

from sb3_sparse.sparse import SparseConv2d, SparseLinear, Topology, sparsify_
from sb3_sparse.sparse.state.identity import N_DIGITS, DamagedIdentity, decode, encode
from sb3_sparse.sparse.topology import MAX_SEED

ABOUT = (0, 40, 50, 400)


def linear(seed=1):
    return SparseLinear(50, 40, density=0.2, seed=seed)


def given(seed=1):
    mask = Topology.random((40, 50), 400, seed).mask()
    return SparseLinear(50, 40, topology=Topology.from_mask(mask))


def convolution(seed=1):
    dense = nn.Conv2d(4, 6, 3)
    return SparseConv2d(dense, Topology.random(dense.weight.shape, 50, seed))


LAYERS = [linear, given, convolution]


@pytest.mark.parametrize("number", [0, 1, 255, 0xABCDEF, MAX_SEED - 1])
def test_numbers_survive_every_dtype(number):
    code = th.tensor(encode(number, ABOUT))
    for dtype in (th.float64, th.float32, th.float16, th.bfloat16, th.int32):
        assert decode(code.to(dtype).tolist(), ABOUT) == number


def test_of_a_thousand_mixtures_and_damages_none_is_another_number():
    rng = np.random.default_rng(0)
    codes = [np.array(encode(int(n), ABOUT)) for n in rng.integers(MAX_SEED, size=40)]
    for a, b in itertools.combinations(codes, 2):
        for share in (0.5, 0.25, 0.9, 0.995):
            with pytest.raises(DamagedIdentity):
                decode(share * a + (1 - share) * b, ABOUT)
    for code in codes:
        for factor in (0.5, 0.9, 0.99**5, 2.0, -1.0):
            with pytest.raises(DamagedIdentity):
                decode(factor * code, ABOUT)
        for place in range(N_DIGITS):
            changed = code.copy()
            changed[place] = 1024.0 * (rng.integers(1, 17))
            if changed[place] != code[place]:
                with pytest.raises(DamagedIdentity):
                    decode(changed, ABOUT)
        with pytest.raises(DamagedIdentity):
            decode(code, (0, 50, 40, 400))
        with pytest.raises(DamagedIdentity):
            decode([*code[:-1], float("nan")], ABOUT)


def average(states):
    return {key: th.stack([state[key].double() for state in states]).mean(0).to(states[0][key].dtype) for key in states[0]}


def smooth(states, decay=0.995, dtype=None):
    result = {key: value.clone() if dtype is None else value.to(dtype) for key, value in states[0].items()}
    for state in states * 200:
        for key, value in state.items():
            result[key] = decay * result[key] + (1 - decay) * value.to(result[key].dtype)
    return result


# As in SB3's documentation of evolution strategies: mutate and average.
def mutate_and_mean(states):
    mutants = [{key: v + th.randn_like(v) for key, v in state.items() if v.is_floating_point()} for state in states * 10]
    return states[0] | average(mutants)


SAFE = {
    "bfloat16": lambda states: {key: value.bfloat16() for key, value in states[0].items()},
    "float16": lambda states: {key: value.half() for key, value in states[0].items()},
    "float64": lambda states: {key: value.double() for key, value in states[0].items()},
    "average": average,
    "plain average": lambda states: {key: sum(state[key] for state in states) / len(states) for key in states[0]},
    "moving average": smooth,
    "moving average in bfloat16": lambda states: smooth(states, dtype=th.bfloat16),
    "moving average in float16": lambda states: smooth(states, dtype=th.float16),
    "mutate": lambda states: states[0] | {k: v + th.randn_like(v) for k, v in states[0].items() if v.is_floating_point()},
    "mutate and mean": mutate_and_mean,
    "numpy and back": lambda states: {key: th.from_numpy(value.numpy().copy()) for key, value in states[0].items()},
    "pickle": lambda states: pickle.loads(pickle.dumps(states[0])),
}


@pytest.mark.parametrize("make", LAYERS)
@pytest.mark.parametrize("name", list(SAFE))
def test_arithmetic_on_equal_checkpoints_keeps_the_topology(make, name):
    th.manual_seed(0)
    source = make()
    state = SAFE[name]([copy.deepcopy(source.state_dict()) for _ in range(3)])
    own = make()
    own.load_state_dict(state)
    assert own.topology == source.topology
    assert (own.topology_seed - source.topology_seed).abs().max() <= 4
    if make is not given or name not in ("bfloat16", "float16", "moving average in bfloat16", "moving average in float16"):
        # Into a layer with another topology, too, unless positions were rounded.
        other = make(2)
        other.load_state_dict(state)
        assert other.topology == source.topology
        assert th.equal(other.values, own.values)


@pytest.mark.parametrize("make", LAYERS)
@pytest.mark.parametrize(
    "mix",
    [
        lambda a, b: average([a, b]),
        lambda a, b: {key: 0.9 * a[key] + 0.1 * b[key] for key in a},
        lambda a, b: {key: 0.995 * a[key] + 0.005 * b[key] for key in a},
        lambda a, b: {key: 2 * a[key] - b[key] for key in a},
        lambda a, b: {key: 0.9 * a[key] for key in a},
        lambda a, b: a | {"topology_seed": th.full_like(a["topology_seed"], 1e9)},
        lambda a, b: a | {"topology_seed": th.full_like(a["topology_seed"], float("nan"))},
        lambda a, b: a | {"topology_seed": a["topology_seed"][:-1]},
        lambda a, b: {key: value for key, value in a.items() if key != "nonzeros"},
    ],
)
def test_mixtures_of_different_networks_are_refused_and_change_nothing(make, mix):
    a, b, target = make(1), make(2), make(3)
    before = copy.deepcopy(target.state_dict())
    topology = target.topology
    with pytest.raises(RuntimeError, match=r"topology_seed|values"):
        target.load_state_dict(mix(a.state_dict(), b.state_dict()), strict=False)
    assert target.topology is topology
    assert all(th.equal(before[key], value) for key, value in target.state_dict().items())


def test_positions_that_were_rounded_are_refused_by_a_layer_with_others():
    state = {key: value.bfloat16() for key, value in given(1).state_dict().items()}
    with pytest.raises(RuntimeError, match="topology_index holds other positions"):
        given(2).load_state_dict(state)


@pytest.mark.parametrize("make", LAYERS)
@pytest.mark.parametrize("fill", [th.zeros_like, th.rand_like, th.randn_like])
def test_numbers_near_zero_keep_the_topology_with_a_warning(make, fill):
    layer = make()
    topology = layer.topology
    state = {key: fill(v) if v.is_floating_point() else v for key, v in layer.state_dict().items()}
    with pytest.warns(UserWarning, match="the layer keeps its own"):
        layer.load_state_dict(state)
    assert layer.topology is topology
    assert th.equal(layer.values, state["nonzeros"])
    # What was saved afterwards is a layer again.
    other = make(2)
    other.load_state_dict(layer.state_dict())
    assert other.topology == topology
    assert th.equal(other.weight, layer.weight)


def writes():
    def by_address(buffer, source):
        ctypes.memmove(buffer.data_ptr(), source.data_ptr(), 4 * buffer.numel())

    return {
        "copy_": lambda buffer, source: buffer.copy_(source),
        ".data": lambda buffer, source: buffer.data.copy_(source),
        "numpy": lambda buffer, source: np.copyto(buffer.numpy(), source.numpy()),
        "set_": lambda buffer, source: buffer.set_(source.clone()),
        "assigned .data": lambda buffer, source: setattr(buffer, "data", source.clone()),
        "address": by_address,
    }


@pytest.mark.parametrize("name", list(writes()))
@pytest.mark.parametrize("make", [linear, convolution])
def test_a_layer_notices_that_its_buffer_was_written(name, make):
    a, b = make(1), make(2)
    x = th.randn(3, 50) if make is linear else th.randn(2, 4, 9, 9)
    a(x)
    with th.no_grad():
        # Values and buffers of all, as DistributedDataParallel broadcasts them.
        for mine, theirs in zip([*a.parameters(), *a.buffers()], [*b.parameters(), *b.buffers()], strict=True):
            writes()[name](mine, theirs)
    assert th.equal(a(x), b(x))
    assert a.topology is b.topology
    assert th.equal(a.weight, b.weight)


def test_a_given_topology_is_noticed_too():
    a, b = given(1), given(2)
    with th.no_grad():
        for mine, theirs in zip([*a.parameters(), *a.buffers()], [*b.parameters(), *b.buffers()], strict=True):
            mine.copy_(theirs)
    x = th.randn(3, 50)
    assert th.equal(a(x), b(x))
    a.topology_seed.copy_(given(3).topology_seed)
    with pytest.raises(ValueError, match="topology_index holds other positions"):
        a(x)


def test_garbage_in_the_buffer_is_an_error_in_the_next_call_and_in_saving():
    layer = linear()
    layer.topology_seed += 500
    for use in (lambda: layer(th.randn(2, 50)), layer.state_dict, lambda: layer.weight, lambda: copy.deepcopy(layer).topology):
        with pytest.raises(ValueError, match="stands for no topology now"):
            use()


def test_zeros_in_the_buffer_keep_the_topology():
    layer = linear()
    topology = layer.topology
    layer.topology_seed.zero_()
    with pytest.warns(UserWarning, match="keeps its own"):
        layer(th.randn(2, 50))
    assert layer.topology is topology
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(th.randn(2, 50))


def test_a_layer_notices_nothing_when_nothing_was_written(monkeypatch):
    net = sparsify_(nn.Sequential(nn.Linear(50, 40), nn.ReLU(), nn.Linear(40, 30)), 0.8)
    net(th.randn(3, 50))
    looks = []
    monkeypatch.setattr(SparseLinear, "_look_again", lambda self: looks.append(self))
    optimizer = th.optim.AdamW(net.parameters())
    for _ in range(3):
        net(th.randn(3, 50)).sum().backward()
        optimizer.step()
        net.state_dict()
    assert looks == []


@pytest.mark.parametrize("seed", [0, 7, MAX_SEED - 1])
def test_files_of_version_0_1_load(seed):
    source = linear(seed)
    old = source.state_dict() | {"topology_seed": th.tensor(float(seed))}
    for target in (linear(3), given(3)):
        target.load_state_dict(old)
        assert target.topology is source.topology
        assert th.equal(target.weight, source.weight)
    for damaged in (old["topology_seed"].bfloat16(), th.tensor(0.3), th.tensor(-1.0), th.tensor(float("nan"))):
        with pytest.raises(RuntimeError, match=r"topology_seed: .* version 0\.1"):
            linear(3).load_state_dict(old | {"topology_seed": damaged})
    old = {k: v for k, v in given(5).state_dict().items() if k != "topology_seed"}
    old["topology_index"] = old["topology_index"].long()
    target = linear(3)
    target.load_state_dict(old)
    assert target.topology == given(5).topology
    with pytest.raises(RuntimeError, match="expected 400 integers"):
        linear(3).load_state_dict(old | {"topology_index": old["topology_index"].float()})


def test_averages_of_modules_with_their_buffers():
    net = nn.Sequential(linear(), nn.ReLU())
    averaged = th.optim.swa_utils.AveragedModel(net, use_buffers=True)
    for _ in range(20):
        averaged.update_parameters(net)
    assert averaged.module[0].topology is net[0].topology
    other = nn.Sequential(linear(2), nn.ReLU())
    averaged.update_parameters(other)
    with pytest.raises(ValueError, match="stands for no topology now"):
        averaged(th.randn(2, 50))


def test_a_moving_average_of_a_given_topology_is_that_topology():
    """Mistake: torch averages integers with a loss of digits, and the positions were saved as they were then."""
    net = nn.Sequential(given(), nn.ReLU())
    average = th.optim.swa_utils.get_ema_multi_avg_fn(0.9999)
    averaged = th.optim.swa_utils.AveragedModel(net, multi_avg_fn=average, use_buffers=True)
    for _ in range(60):
        averaged.update_parameters(net)
    layer = averaged.module[0]
    assert not th.equal(layer.topology_index, net[0].topology_index)
    assert th.equal(layer(th.ones(1, 50)), net[0](th.ones(1, 50)))
    for state in (averaged.module.state_dict(), copy.deepcopy(averaged).module.state_dict()):
        assert th.equal(state["0.topology_index"], net[0].topology_index)
        other = nn.Sequential(given(2), nn.ReLU())
        other.load_state_dict(state)
        assert other[0].topology == net[0].topology


@pytest.mark.parametrize("theirs", [linear, given])
@pytest.mark.parametrize("ours", [linear, given])
def test_a_layer_that_was_called_with_the_state_of_another_is_what_it_was(ours, theirs):
    """Mistake: the positions of a given topology went away with the buffer that stood for it."""
    layer, other, x = ours(1), theirs(2), th.randn(3, 50)
    topology, before = layer.topology, layer(x)
    for state in (other.state_dict(), dict(other.named_parameters()) | dict(other.named_buffers())):
        assert th.equal(th.func.functional_call(layer, state, (x,)), other(x))
        assert th.equal(layer(x), before)
        assert layer.topology == topology
    again = ours(3)
    again.load_state_dict(layer.state_dict())
    assert th.equal(again(x), before)


def test_a_changed_topology_changes_the_state_dict_and_the_other_way_round():
    layer, topology = linear(), Topology.random((40, 50), 400, 9)
    buffer = layer.topology_seed
    layer.set_topology(topology, th.arange(400.0))
    assert layer.topology_seed is buffer
    assert buffer.tolist() == topology.identity
    assert th.equal(layer.weight[topology.mask()], th.arange(400.0))
    with pytest.raises(ValueError, match="values of shape"):
        layer.set_topology(linear(2).topology, th.zeros(3))
    assert layer.topology is topology
