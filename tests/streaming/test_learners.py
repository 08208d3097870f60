"""The compiled learner against autograd, and what callbacks may do to both."""

import copy

import numpy as np
import pytest
import torch as th
from torch import nn
from torch.distributions import Categorical, Normal
from torch.utils.flop_counter import FlopCounterMode

from sb3_sparse.sparse import SparseLinear, Topology, sparsify_
from sb3_sparse.streaming import AdaptiveObGD, ObGD, StreamAC
from sb3_sparse.streaming.learners import AutogradLearner, CompiledLearner
from sb3_sparse.streaming.networks import StreamNetwork, lecun_uniform_, mlp_trunk, sparse_init_
from sb3_sparse.streaming.stream_ac import categorical_gradient, gaussian_gradient

N_IN = 11


def network(widths=(32, 32), heads=(("mu", 3), ("pre_std", 3)), sparsity=0.0, seed=0):
    th.manual_seed(seed)
    trunk, latent_dim = mlp_trunk(N_IN, widths)
    net = StreamNetwork(trunk, latent_dim, dict(heads))
    lecun_uniform_(net)
    for p in net.parameters():
        p.data += 0.1 * th.randn_like(p)
    return sparsify_(net, sparsity, seed=seed)


def both(net, **kwargs):
    twin = copy.deepcopy(net)
    return (
        CompiledLearner(net, ObGD(net.parameters(), **kwargs)),
        AutogradLearner(twin, ObGD(twin.parameters(), **kwargs)),
    )


def current(learner):
    """What an algorithm goes on with after others may have changed something."""
    return learner if learner.notice_changes() else type(learner)(learner.network, learner.optimizer)


def stream(n, n_out, seed=0):
    rng = np.random.default_rng(seed)
    for i in range(n):
        x, direction = rng.standard_normal(N_IN).astype(np.float32), rng.standard_normal(n_out).astype(np.float32)
        yield i, x, direction, float(2 * rng.standard_normal())


def assert_equal(learner, other, atol=1e-6):
    for p, q in zip(learner.network.parameters(), other.network.parameters(), strict=True):
        th.testing.assert_close(p.data, q.data, rtol=0, atol=atol)
        th.testing.assert_close(learner.optimizer.state[p]["trace"], other.optimizer.state[q]["trace"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("widths", "sparsity"),
    [(widths, sparsity) for widths in [(), (1,), (17,), (32, 32), (40, 7, 33)] for sparsity in (0.0, 0.5)]
    + [((32, 32), 0.95), ((40, 7, 33), 0.95)],
    ids=str,
)
@pytest.mark.parametrize("heads", [(("value", 1),), (("mu", 3), ("pre_std", 3))], ids=["one head", "two heads"])
def test_compiled_equals_autograd(sparsity, widths, heads):
    learner, other = both(network(widths, heads, sparsity), kappa=3.0)
    n_out = sum(size for _, size in heads)
    for i, x, direction, delta in stream(60, n_out):
        np.testing.assert_allclose(learner.outputs(x), other.outputs(x), rtol=1e-4, atol=1e-5)
        learner.learn(x, direction, delta, i % 25 == 24)
        other.learn(x, direction, delta, i % 25 == 24)
        assert learner.step_size == pytest.approx(other.step_size, rel=1e-4)
        assert learner.trace_l1 == pytest.approx(other.trace_l1, rel=1e-4)
    assert_equal(learner, other)


def test_a_layer_of_zeros():
    """With few inputs SparseInit leaves a first layer of zeros: LayerNorm of zeros, and gradients through it."""
    net = network()
    sparse_init_(net, 1.0)
    learner, other = both(net)
    for _, x, direction, delta in stream(20, 6):
        learner.learn(x, direction, delta, False)
        other.learn(x, direction, delta, False)
    assert_equal(learner, other)


def test_rows_of_every_length():
    """None to all of 30 inputs: the kernels work on eight weights at a time, and on what is left over."""
    net = network(widths=(30, 31))
    mask = th.rand(31, 30, generator=th.Generator().manual_seed(0)).argsort(dim=1) < th.arange(31)[:, None]
    net.trunk[3] = SparseLinear.from_dense(net.trunk[3], Topology.from_mask(mask))
    assert sorted(net.trunk[3].topology.fan_in().tolist()) == list(range(31))
    learner, other = both(net)
    for i, x, direction, delta in stream(30, 6):
        np.testing.assert_allclose(learner.both_outputs(x, -x), other.both_outputs(x, -x), rtol=1e-4, atol=1e-5)
        learner.learn(x, direction, delta, i % 25 == 24)
        other.learn(x, direction, delta, i % 25 == 24)
    assert_equal(learner, other)


@pytest.mark.parametrize("heads_first", [False, True])
def test_an_optimiser_in_another_order(heads_first):
    """Mistake of ours: the second learner of a run took another parameter's traces, or found that their sizes differ."""

    def listed(net):
        heads = list(net.mu.parameters())
        others = [p for p in net.parameters() if all(p is not head for head in heads)]
        return [*heads, *others] if heads_first else [*reversed(others), *heads]

    # Widths for which other orders are of equal sizes.
    net = network((N_IN, N_IN), (("mu", N_IN),))
    twin = copy.deepcopy(net)
    optimizers = ObGD(listed(net)), ObGD(listed(twin))
    for i, x, direction, delta in stream(6, N_IN):
        if i % 3 == 0:
            learner, other = CompiledLearner(net, optimizers[0]), AutogradLearner(twin, optimizers[1])
        learner.learn(x, direction, delta, False)
        other.learn(x, direction, delta, False)
    assert_equal(learner, other)


def test_two_samples_in_one_pass():
    for sparsity in (0.0, 0.8):
        learner, other = both(network(sparsity=sparsity))
        samples = [x for _, x, _, _ in stream(2, 6)]
        ours, theirs = learner.both_outputs(*samples), other.both_outputs(*samples)
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
        # Now the first is kept.
        np.testing.assert_array_equal(learner.both_outputs(*samples)[0], ours[0])
        learner.learn(samples[0], np.ones(6, dtype=np.float32), 0.3, False)
        other.learn(samples[0], np.ones(6, dtype=np.float32), 0.3, False)
        assert_equal(learner, other)


def test_looking_elsewhere_does_not_change_what_is_learned():
    learner, other = both(network())
    for _, x, direction, delta in stream(10, 6):
        learner.outputs(x, keep=True)
        learner.outputs(-x)
        learner.learn(x, direction, delta, False)
        other.learn(x, direction, delta, False)
    assert_equal(learner, other)


@pytest.mark.parametrize("learner_class", [AutogradLearner, CompiledLearner])
@pytest.mark.parametrize("change", ["in place", "data", "vector"])
def test_weights_changed_after_acting_are_the_ones_that_learn(learner_class, change):
    net = network()
    learner = learner_class(net, ObGD(net.parameters()))
    (_, x, direction, delta), *_ = stream(1, 6)
    learner.outputs(x, keep=True)
    with th.no_grad():
        if change == "in place":
            for p in net.parameters():
                p.mul_(0.5)
        elif change == "data":
            for p in net.parameters():
                p.data = 0.5 * p.data
        else:
            nn.utils.vector_to_parameters(0.5 * nn.utils.parameters_to_vector(net.parameters()), net.parameters())
    other = AutogradLearner(copy.deepcopy(net), ObGD(net.parameters()))
    other.optimizer = ObGD(other.network.parameters())
    learner = current(learner)
    np.testing.assert_allclose(learner.outputs(-x), other.outputs(-x), rtol=1e-4, atol=1e-6)
    learner.learn(x, direction, delta, False)
    other.learn(x, direction, delta, False)
    assert_equal(learner, other)


@pytest.mark.parametrize("how", ["load", "drop"])
@pytest.mark.parametrize("after_acting", [False, True])
@pytest.mark.parametrize("cleared", [False, True])
def test_traces_replaced_by_a_callback_are_used(how, after_acting, cleared):
    learner, other = both(network())
    for _, x, direction, delta in stream(5, 6):
        learner.learn(x, direction, delta, False)
        other.learn(x, direction, delta, False)
    if after_acting:
        for one in (learner, other):
            one.outputs(x, keep=True)
    for one in (learner, other):
        if how == "load":
            state = copy.deepcopy(one.optimizer.state_dict())
            for entry in state["state"].values():
                entry["trace"] *= 2.0
            one.optimizer.load_state_dict(state)
        else:
            one.optimizer.state[next(one.network.parameters())].clear()
    learner, other = current(learner), current(other)
    for one in (learner, other):
        if cleared:
            one.reset_traces()
            assert not any(state["trace"].any() for state in one.optimizer.state.values())
        if after_acting:
            one.learn(x, direction, delta, False)
    for _, x, direction, delta in stream(5, 6, seed=1):
        learner.learn(x, direction, delta, False)
        other.learn(x, direction, delta, False)
    assert_equal(learner, other)


def test_a_topology_replaced_by_a_callback_is_used():
    learner, other = both(network(sparsity=0.8))
    for one in (learner, other):
        layer = one.network.trunk[3]
        layer.set_topology(Topology.random(layer.topology.shape, layer.topology.nnz, seed=123))
    assert not learner.notice_changes()
    learner, other = current(learner), current(other)
    for _, x, direction, delta in stream(5, 6):
        learner.learn(x, direction, delta, False)
        other.learn(x, direction, delta, False)
    assert_equal(learner, other)


def test_who_is_supported(monkeypatch):
    net = network(sparsity=0.8)
    assert CompiledLearner.supports(net, ObGD(net.parameters()))
    assert not CompiledLearner.supports(net, AdaptiveObGD(net.parameters()))
    assert CompiledLearner.supports(net, ObGD(reversed(list(net.parameters()))))
    assert not CompiledLearner.supports(net, ObGD(list(net.parameters())[1:]))
    double = network().double()
    assert not CompiledLearner.supports(double, ObGD(double.parameters()))
    other = network()
    other.trunk[2] = nn.ReLU()
    assert not CompiledLearner.supports(other, ObGD(other.parameters()))

    class Subclass(StreamNetwork):
        pass

    trunk, latent_dim = mlp_trunk(N_IN, [8])
    own = Subclass(trunk, latent_dim, {"value": 1})
    assert not CompiledLearner.supports(own, ObGD(own.parameters()))
    for hook in (
        lambda one: one.trunk[0].register_forward_hook(lambda *_: None),
        lambda one: one.trunk[0].register_forward_pre_hook(lambda *_: None),
        lambda one: one.trunk[0].register_full_backward_hook(lambda *_: None),
        lambda one: one.trunk[0].weight.register_hook(lambda grad: None),
        lambda one: one.trunk[0].weight.register_post_accumulate_grad_hook(lambda p: None),
        lambda one: setattr(one, "forward", lambda features: features),
    ):
        hooked = network()
        hook(hooked)
        assert not CompiledLearner.supports(hooked, ObGD(hooked.parameters()))
    for backend in ("dense", "csr"):
        monkeypatch.setenv("SB3_SPARSE_BACKEND", backend)
        assert not CompiledLearner.supports(net, ObGD(net.parameters()))
    for backend in ("compiled", "blocked"):
        monkeypatch.setenv("SB3_SPARSE_BACKEND", backend)
        assert CompiledLearner.supports(net, ObGD(net.parameters()))


@pytest.mark.parametrize("sign", [-1.0, 0.0, 1.0])
def test_gradient_of_a_gaussian(sign):
    outputs = th.tensor([0.3, -1.0, 2.0, 0.5, -3.0, 4.0], dtype=th.float64, requires_grad=True)
    action = th.tensor([0.5, -1.2, 5.0], dtype=th.float64)
    normal = Normal(outputs[:3], nn.functional.softplus(outputs[3:]))
    (normal.log_prob(action).sum() + 0.01 * sign * normal.entropy().sum()).backward()
    ours = gaussian_gradient(outputs.detach().numpy(), action.numpy(), 0.01 * sign)
    np.testing.assert_allclose(ours, outputs.grad, rtol=1e-6)


@pytest.mark.parametrize("sign", [-1.0, 0.0, 1.0])
def test_gradient_of_a_categorical(sign):
    logits = th.tensor([0.3, -1.0, 2.0, 7.0], dtype=th.float64, requires_grad=True)
    categorical = Categorical(logits=logits)
    (categorical.log_prob(th.tensor(2)) + 0.01 * sign * categorical.entropy()).backward()
    ours = categorical_gradient(logits.detach().numpy(), 2, 0.01 * sign)
    np.testing.assert_allclose(ours, logits.grad, rtol=1e-5)


def test_gradients_stay_finite_where_softplus_underflows():
    outputs = np.array([0.0, -800.0], dtype=np.float32)
    assert np.isfinite(gaussian_gradient(outputs, np.array([1e-7]), 0.01)).all()
    assert np.isfinite(categorical_gradient(np.array([1000.0, -1000.0], dtype=np.float32), 0, 0.01)).all()


def test_operations_of_learning_can_be_counted():
    model = StreamAC("MlpPolicy", "Pendulum-v1", seed=0)
    model.learn(3)
    assert all(isinstance(learner, CompiledLearner) for learner in model._learners)
    with FlopCounterMode(display=False) as counter:
        model.learn(3)
    n_weights = sum(p.numel() for p in model.policy.parameters() if p.ndim > 1)
    # A multiplication and an addition for each weight, forward and for its gradient, in each of three updates.
    assert counter.get_total_flops() >= 3 * 2 * 2 * n_weights
    model.learn(3)
    assert all(isinstance(learner, CompiledLearner) for learner in model._learners)


def test_a_learner_is_on_the_cpu_whatever_torchs_default_device_is():
    net = network()
    values = [p.detach().clone() for p in net.parameters()]
    optimizer = ObGD(net.parameters(), lr=1.0, gamma=0.99, trace_lambda=0.8, kappa=3.0)
    with th.device("meta"):
        CompiledLearner(net, optimizer)
    for p, value in zip(net.parameters(), values, strict=True):
        assert th.equal(p, value)
