"""Noisy layers by their formula and moments."""

import copy
import math
from contextlib import nullcontext

import pytest
import torch as th

from sb3_sparse import sparsify_, to_dense
from sb3_sparse.networks.noisy import NoisyLinear, SparseNoisyLinear, noise_added


def formula(layer, x):
    noise = th.outer(layer.noise_out, layer.noise_in)
    weight = layer.weight + layer.weight_sigma * noise
    return x @ weight.T + layer.bias + layer.bias_sigma * layer.noise_out


def test_the_formula_and_its_gradients():
    layer, x = NoisyLinear(7, 5).double(), th.randn(11, 7, dtype=th.float64, requires_grad=True)
    layer.reset_noise()
    parameters = [x, *layer.parameters()]
    found, expected = layer(x), formula(layer, x)
    th.testing.assert_close(found, expected)
    direction = th.randn_like(found)
    for a, b in zip(*(th.autograd.grad(y, parameters, direction) for y in (found, expected)), strict=True):
        th.testing.assert_close(a, b)


def test_noise_that_is_added_once_is_the_formula_and_has_its_gradients():
    layer, x = NoisyLinear(7, 5).double(), th.randn(11, 7, dtype=th.float64, requires_grad=True)
    with th.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    parameters = [x, *layer.parameters()]
    for _ in range(2):
        layer.reset_noise()
        with noise_added(layer):
            found = layer(x)
            with th.no_grad():
                assert th.equal(layer(x), found)
        expected = formula(layer, x)
        th.testing.assert_close(found, expected)
        direction = th.randn_like(found)
        for a, b in zip(*(th.autograd.grad(y, parameters, direction) for y in (found, expected)), strict=True):
            th.testing.assert_close(a, b)
    assert sorted(layer.state_dict()) == ["bias", "bias_sigma", "weight", "weight_sigma"]


def test_noise_is_added_for_no_longer_than_it_holds():
    layer, x = NoisyLinear(7, 5), th.randn(11, 7)
    layer.reset_noise()
    with noise_added(layer):
        before = layer(x)
        layer.noisy = False
        th.testing.assert_close(layer(x), th.nn.functional.linear(x, layer.weight, layer.bias))
        layer.noisy = True
        layer.reset_noise()
        th.testing.assert_close(layer(x), formula(layer, x))
        assert not th.allclose(layer(x), before)
    with pytest.raises(KeyError), noise_added(layer):
        raise KeyError
    with th.no_grad():
        layer.weight.add_(1)
    th.testing.assert_close(layer(x), formula(layer, x))
    layer.double()
    with noise_added(layer):
        th.testing.assert_close(layer(x.double()), formula(layer, x.double()))


def test_where_noise_cannot_be_added_once_a_layer_computes_as_ever():
    layer, x = NoisyLinear(7, 5), th.randn(4, 3, 7)
    layer.reset_noise()
    for cast in (False, True):
        grads = []
        for around in (nullcontext(), noise_added(layer)):
            layer.zero_grad()
            with around, th.autocast("cpu", th.bfloat16, enabled=cast):
                found = layer(x.flatten(0, 1) if cast else x).float()
            found.square().sum().backward()
            grads.append([p.grad.clone() for p in layer.parameters()])
        for a, b in zip(*grads, strict=True):
            th.testing.assert_close(a, b)


def test_gradients_of_noise_that_is_added_once_can_be_differentiated_again():
    layer, x = NoisyLinear(7, 5), th.randn(11, 7, requires_grad=True)
    layer.reset_noise()
    found, tensors = [], [x, *layer.parameters()]
    for around in (nullcontext(), noise_added(layer)):
        with around:
            value, derivatives = layer(x).tanh().square().sum(), []
        for _ in range(3):
            grads = th.autograd.grad(value, tensors, create_graph=True)
            derivatives += grads
            value = sum(each.square().mean() for each in grads)
        found.append(derivatives)
    for ours, theirs in zip(*found, strict=True):
        th.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_a_gradient_of_noise_that_is_gone_is_refused():
    layer, x = NoisyLinear(7, 5), th.randn(11, 7)
    with noise_added(layer):
        loss = layer(x).sum()
    with noise_added(layer), pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_initial_values_and_moments_of_the_noise():
    th.manual_seed(0)
    layer = NoisyLinear(400, 300, sigma=0.1)
    bound = 1 / math.sqrt(400)
    assert layer.weight.abs().max() <= bound
    assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert (layer.weight_sigma == th.tensor(0.1 * bound)).all()
    assert (layer.bias_sigma == th.tensor(0.1 * bound)).all()
    samples = []
    for _ in range(400):
        layer.reset_noise()
        samples.append(layer.noise_in.clone())
    noise = th.stack(samples)
    # sign(z) sqrt|z|: mean 0, variance E|z| = sqrt(2 / pi), fourth moment E z^2 = 1.
    assert noise.mean().item() == pytest.approx(0.0, abs=0.01)
    assert noise.var().item() == pytest.approx(math.sqrt(2 / math.pi), rel=0.02)
    assert (noise**4).mean().item() == pytest.approx(1.0, rel=0.03)


def test_noise_is_one_for_a_batch_stays_until_it_is_drawn_and_can_be_off():
    layer, x = NoisyLinear(7, 5), th.randn(1, 7).expand(3, 7)
    th.testing.assert_close(layer(x), th.nn.functional.linear(x, layer.weight, layer.bias))
    layer.reset_noise()
    noisy = layer(x)
    th.testing.assert_close(noisy[0], noisy[2])
    assert th.equal(layer.eval()(x), noisy)
    layer.reset_noise()
    assert not th.allclose(layer(x), noisy)
    layer.noisy = False
    th.testing.assert_close(layer(x), th.nn.functional.linear(x, layer.weight, layer.bias))


def test_noise_is_no_part_of_a_state_dict_and_copies_keep_it():
    layer = NoisyLinear(3, 2)
    layer.reset_noise()
    assert sorted(layer.state_dict()) == ["bias", "bias_sigma", "weight", "weight_sigma"]
    assert th.equal(copy.deepcopy(layer).noise_in, layer.noise_in)
    with pytest.raises(ValueError, match=r"sigma=-0\.1"):
        NoisyLinear(3, 2, sigma=-0.1)


def pruned(sigma=0.5, density=0.3):
    th.manual_seed(0)
    dense = NoisyLinear(40, 30, sigma)
    dense.weight_sigma.data.uniform_(0, 0.2)
    dense.bias_sigma.data.uniform_(0, 0.2)
    dense.reset_noise()
    layer = sparsify_(copy.deepcopy(dense), 1 - density, "uniform", seed=1)
    assert isinstance(layer, SparseNoisyLinear)
    return dense, layer


def test_a_sparse_noisy_layer_is_the_masked_one():
    dense, layer = pruned()
    mask = layer.topology.mask()
    with th.no_grad():
        for parameter in (dense.weight, dense.weight_sigma):
            parameter *= mask
    x, direction = th.randn(9, 40, requires_grad=True), th.randn(9, 30)
    th.testing.assert_close(layer(x), formula(dense, x), rtol=1e-5, atol=1e-5)
    ours = th.autograd.grad(layer(x), [x, layer.values, layer.nonzeros_sigma, layer.bias, layer.bias_sigma], direction)
    theirs = th.autograd.grad(dense(x), [x, dense.weight, dense.weight_sigma, dense.bias, dense.bias_sigma], direction)
    for a, b in zip(ours, theirs, strict=True):
        th.testing.assert_close(a, layer.topology.gather(b) if b.shape == mask.shape else b, rtol=1e-5, atol=1e-5)
    with noise_added(layer):
        th.testing.assert_close(layer(x), formula(dense, x), rtol=1e-5, atol=1e-5)
    layer.noisy = False
    th.testing.assert_close(layer(x), th.nn.functional.linear(x, dense.weight, dense.bias), rtol=1e-5, atol=1e-5)


def test_a_sparse_noisy_layer_travels_as_other_sparse_layers():
    _, layer = pruned()
    state = layer.state_dict()
    assert sorted(state) == ["bias", "bias_sigma", "nonzeros", "nonzeros_sigma", "topology_seed"]
    other = sparsify_(NoisyLinear(40, 30), 0.7, "uniform", seed=2)
    other.load_state_dict(state)
    assert other.topology is layer.topology
    x = th.randn(3, 40)
    other.noise_in.copy_(layer.noise_in)
    other.noise_out.copy_(layer.noise_out)
    assert th.equal(other(x), layer(x))
    dense = to_dense(layer)
    assert type(dense) is NoisyLinear
    th.testing.assert_close(dense(x), layer(x), rtol=1e-5, atol=1e-5)
    before = dense.noise_in.clone()
    dense.reset_noise()
    assert not th.equal(dense.noise_in, before)
    assert th.equal(layer.noise_in, before)


def test_positions_come_with_means_and_deviations():
    """With ``strict=False`` deviations stayed what they were, at other positions."""
    layer, other = (sparsify_(NoisyLinear(40, 30), 0.7, "uniform", seed=seed) for seed in (1, 2))
    topology, state = layer.topology, other.state_dict()
    del state["nonzeros_sigma"]
    with pytest.raises(RuntimeError, match="without nonzeros_sigma: positions and values belong together"):
        layer.load_state_dict(state, strict=False)
    assert layer.topology == topology
    assert layer.topology != other.topology


@pytest.mark.parametrize("frozen", ["nonzeros", "nonzeros_sigma", "bias", "bias_sigma"])
def test_a_frozen_sparse_noisy_layer_is_a_frozen_dense_one(frozen):
    """Mistake: the weights of the dense copy learned again."""
    _, layer = pruned()
    getattr(layer, frozen).requires_grad_(False)
    for dense in (to_dense(layer), layer.to_dense()):
        found = {name for name, parameter in dense.named_parameters() if not parameter.requires_grad}
        assert found == {layer.gathered.get(frozen, frozen)}


def test_optimizers_train_means_and_deviations_on():
    module = th.nn.Module()
    module.layer = NoisyLinear(40, 30)
    module.optimizer = th.optim.Adam(module.parameters(), lr=0.01)
    for sparse in (False, True):
        if sparse:
            sparsify_(module, 0.5)
        module.layer.reset_noise()
        module.optimizer.zero_grad()
        module.layer(th.randn(8, 40)).square().mean().backward()
        before = {name: p.clone() for name, p in module.named_parameters()}
        module.optimizer.step()
        assert all(not th.equal(p, before[name]) for name, p in module.named_parameters())
    assert int(module.optimizer.state[module.layer.nonzeros_sigma]["step"]) == 2
