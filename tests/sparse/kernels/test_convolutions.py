"""Convolutions on our kernels against torch's with a dense weight in float64."""

import itertools
import weakref

import numpy as np
import pytest
import torch as th
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from sb3_sparse.networks.cnn import ImpalaEncoder, NatureEncoder
from sb3_sparse.sparse import SparseConv2d, Topology, sparsify_
from sb3_sparse.sparse.kernels import BACKEND_VARIABLE
from sb3_sparse.sparse.kernels.choosing import chooser, convolutions, measure
from sb3_sparse.sparse.kernels.convolution import autograd, shifted
from sb3_sparse.sparse.kernels.convolution.images import Result
from sb3_sparse.sparse.kernels.convolution.shifted import Shifted, can_shift
from sb3_sparse.sparse.kernels.convolution.window import Window
from sb3_sparse.sparse.kernels.native import threads


def dense_convolution(x, values, topology, window, bias, grad):
    """Result, and gradients of images and living weights, in float64 by torch; returned in float32."""
    x, weight = x.double().requires_grad_(), topology.scatter(values.double()).requires_grad_()
    (top, left), (bottom, right) = window.before, window.after
    padded = F.pad(x, (left, right, top, bottom))
    y = F.conv2d(padded, weight, bias.double(), window.stride, 0, window.dilation, window.groups)
    dx, dw = th.autograd.grad(y, (x, weight), grad.double())
    return y.detach().float(), dx.float(), topology.gather(dw).float()


@pytest.fixture
def on_kernels(monkeypatch):
    """Every convolution that can runs on our kernels; one that cannot is an error."""
    monkeypatch.setenv(BACKEND_VARIABLE, "blocked")

    def chosen(topology, window, shape, wants, dtype):
        assert can_shift(topology, window, shape)
        return True

    monkeypatch.setattr(autograd, "shifts", chosen)


def random_case(seed):
    """A convolution as anybody might write it, its input and a topology."""
    generator = np.random.default_rng(seed)

    def draw(*values):
        return values[generator.integers(len(values))]

    groups = draw(1, 1, 1, 2, 4)
    channels, out_channels = (groups * int(generator.integers(1, 7)) for _ in range(2))
    kernel, size = (tuple(map(int, generator.integers(low, high, 2))) for low, high in ((1, 6), (6, 31)))
    stride = draw((1, 1), (1, 1), (2, 2), (4, 4), (3, 1), (1, 2))
    padding = draw(0, 1, (2, 1), "same") if stride == (1, 1) else draw(0, 1, (2, 3))
    dilation = draw((1, 1), (1, 1), (2, 1), (1, 3)) if min(size) > 14 else (1, 1)
    mode = draw("zeros", "zeros", "zeros", "replicate", "circular")
    dense = nn.Conv2d(
        channels, out_channels, kernel, stride, padding, dilation, groups, bias=draw(True, True, False), padding_mode=mode
    )
    topology = Topology.random(dense.weight.shape, int(generator.integers(0, dense.weight.numel() + 1)), seed)
    x = th.from_numpy(generator.standard_normal((draw(1, 2, 3, 15, 16, 17, 32, 40), channels, *size)))
    return dense, topology, x


@pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel lengths")
@pytest.mark.parametrize("seed", range(60))
def test_any_convolution_and_its_gradients_are_those_of_a_dense_one(seed, on_kernels):
    dense, topology, x = random_case(seed)
    sparse = SparseConv2d.from_dense(dense, topology)
    twin = dense.double()
    with th.no_grad():
        twin.weight.copy_(sparse.weight)
    x.requires_grad_()
    ours = x.detach().float().requires_grad_()
    expected, y = twin(x), sparse(ours)
    grad = th.from_numpy(np.random.default_rng(seed).standard_normal(expected.shape))
    expected.backward(grad)
    y.backward(grad.float())
    pairs = [(y, expected), (ours.grad, x.grad), (sparse.values.grad, topology.gather(twin.weight.grad))]
    pairs += [(sparse.bias.grad, twin.bias.grad)] if dense.bias is not None else []
    for number, right in pairs:
        scale = 1 + (right.abs().max().item() if right.numel() else 0)
        th.testing.assert_close(number.double(), right, rtol=0, atol=1e-6 * scale * 10)


@pytest.mark.parametrize("batch", [3, 16, 20])
@pytest.mark.parametrize(("width", "stride"), [(28, 2), (15, 1), (54, 4), (25, 2)])
def test_a_weight_that_never_sees_an_infinite_pixel_has_a_finite_gradient(batch, width, stride, on_kernels):
    sparse = SparseConv2d(nn.Conv2d(2, 3, 3, stride), Topology.random((3, 2, 3, 3), 40, 0))
    for row, column in ((0, 0), (width - 1, width - 1), (4, width - 1), (width - 1, 3)):
        x = th.randn(batch, 2, width, width)
        # The last rows and columns may be seen by nobody, or by some taps only.
        x[-1, 1, row, column] = float("inf")
        y = sparse(x)
        grad = th.randn(y.shape)
        (values,) = th.autograd.grad(y, sparse.values, grad)
        right = dense_convolution(x, sparse.values.detach(), sparse.topology, sparse._window, sparse.bias.detach(), grad)[2]
        assert th.equal(values.isfinite(), right.isfinite())
        assert values.isfinite().any()
        th.testing.assert_close(values[values.isfinite()], right[right.isfinite()], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("batch", "size"), [(16, 5), (48, 11), (3, 7)])
@pytest.mark.parametrize("product", ["forward", "grad_input"])
def test_no_two_threads_write_the_same_number(batch, size, product, monkeypatch):
    """Of many channels sums are added up block by block, where they are: nobody else may write there meanwhile."""
    topology, window = Topology.random((64, 64, 3, 3), 3686, 0), Window((3, 3), (1, 1), (1, 1), (1, 1))
    products = Shifted(topology, window, (batch, 64, size, size))
    images, values = th.randn(batch, 64, size, size), th.randn(topology.nnz)
    packed = products.pack(images) if product == "forward" else products.pack_gradient(images)
    results, written = [], []
    monkeypatch.setattr(shifted, "Result", lambda *args: results.append(Result(*args)) or results[-1])
    monkeypatch.setattr(threads, "MIN_WORK", 1)
    monkeypatch.setattr(threads.th, "get_num_threads", lambda: 1000)

    def one_after_the_other(kernel, arguments, bounds):
        data, whole = results[-1].data, None
        for begin, end in itertools.pairwise(bounds):
            data.fill_(float("nan"))
            kernel.call(*arguments, begin, end)
            written.append(~data.isnan())
            whole = data.nan_to_num(0.0) + (0.0 if whole is None else whole)
        data.copy_(whole)

    monkeypatch.setattr(shifted, "run", one_after_the_other)
    y = products.forward(packed, values, None) if product == "forward" else products.grad_input(packed, values)
    assert len(written) > 1
    assert (th.stack(written).sum(dim=0) == 1).all()
    weight = topology.scatter(values.double())
    convolve = F.conv2d if product == "forward" else F.conv_transpose2d
    th.testing.assert_close(y.double(), convolve(images.double(), weight, padding=1), rtol=1e-4, atol=1e-4)


def test_gradients_that_nobody_wants_are_not_made(on_kernels, monkeypatch):
    made = []
    for name in ("grad_input", "grad_values"):
        original = getattr(Shifted, name)
        monkeypatch.setattr(Shifted, name, lambda *args, name=name, original=original: made.append(name) or original(*args))
    layer = SparseConv2d(nn.Conv2d(3, 4, 3), Topology.random((4, 3, 3, 3), 40, 0))
    layer(th.randn(16, 3, 8, 8)).sum().backward()
    assert made == ["grad_values"]
    layer.requires_grad_(False)
    made.clear()
    layer(th.randn(16, 3, 8, 8, requires_grad=True)).sum().backward()
    assert made == ["grad_input"]
    assert not layer(th.randn(16, 3, 8, 8)).requires_grad


@pytest.mark.parametrize("batch", [3, 20])
def test_what_gradients_need_is_kept_by_torch_alone(batch, on_kernels, monkeypatch):
    """Mistake of ours: behind an activation checkpoint packed images stayed, and hooks of saved tensors did not see them."""
    kept, pack = [], Shifted.pack

    def watched(self, x):
        images = pack(self, x)
        kept.append(weakref.ref(images.data))
        return images

    monkeypatch.setattr(Shifted, "pack", watched)
    layer = SparseConv2d(nn.Conv2d(2, 3, 3), Topology.random((3, 2, 3, 3), 30, 0))
    x = th.randn(batch, 2, 8, 8, requires_grad=True)
    expected = th.autograd.grad(layer(x).square().sum(), [x, layer.values])
    y = checkpoint(layer, x, use_reentrant=False)
    assert [images() for images in kept] == [None, None]
    assert all(map(th.equal, th.autograd.grad(y.square().sum(), [x, layer.values]), expected))
    with th.autograd.graph.save_on_cpu():
        assert all(map(th.equal, th.autograd.grad(layer(x).square().sum(), [x, layer.values]), expected))


def test_results_lie_channel_by_channel_and_stay_so(on_kernels):
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(4, 5, 3), nn.Flatten())
    sparsify_(net, 0.5)
    x = th.randn(16, 3, 9, 9)
    y = net[0](x)
    assert y.stride() == (1, 9 * 9 * 16, 9 * 16, 16)
    # The next one reads it where it is, and what flattens it is what a sparse linear layer reads.
    assert Shifted(net[2].topology, net[2]._window, tuple(y.shape)).pack(y).data.data_ptr() == y.data_ptr()
    flat = net(x)
    assert flat.stride() == (1, 16)
    assert flat.shape == (16, 5 * 7 * 7)
    # In place, as by the ReLU, while gradients are recorded.
    net(x).sum().backward()
    assert net[2](th.randn(4, 4, 9, 9)).is_contiguous()


def test_gradients_of_gradients_and_many_at_once_are_those_of_a_dense_layer(on_kernels):
    layer = SparseConv2d(nn.Conv2d(2, 3, 3, stride=2, padding=1), Topology.random((3, 2, 3, 3), 20, 0))
    dense = layer.to_dense()
    x = th.randn(16, 2, 7, 7)
    results = []
    for module, weight in ((layer, layer.values), (dense, dense.weight)):
        image = x.clone().requires_grad_()
        (slope,) = th.autograd.grad(module(image).square().sum(), image, create_graph=True)
        second = th.autograd.grad(slope.square().sum(), weight)[0]
        y = module(image).mean((2, 3))
        basis = th.eye(3).view(3, 1, 3).expand(3, 16, 3)
        many = th.autograd.grad(y, (image, weight), basis, is_grads_batched=True)
        results.append((slope, second, *many))
    topology = layer.topology
    slope, second, images, weights = results[1]
    expected = (slope, topology.gather(second), images, th.stack([topology.gather(w) for w in weights]))
    for number, right in zip(results[0], expected, strict=True):
        th.testing.assert_close(number, right, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel lengths")
def test_padding_on_one_side_only_has_gradients_of_gradients(on_kernels):
    dense = nn.Conv2d(2, 3, 4, padding="same")
    layer = SparseConv2d.from_dense(dense, Topology.random((3, 2, 4, 4), 50, 0))
    x = th.randn(16, 2, 7, 7)
    results = []
    for module in (layer, layer.to_dense()):
        image = x.clone().requires_grad_()
        (slope,) = th.autograd.grad(module(image).square().sum(), image, create_graph=True)
        results.append(slope)
    th.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda x: x.double(), "another dtype, of which torch says so"),
        (lambda x: x[:, :2], "too few channels"),
        (lambda x: x[0, 0], "not an image"),
        (lambda x: x[:, :, :2, :2], "smaller than the window"),
    ],
)
def test_what_does_not_fit_is_an_error_of_torchs(change, why):
    layer = SparseConv2d(nn.Conv2d(3, 4, 3), Topology.random((4, 3, 3, 3), 40, 0))
    with pytest.raises(RuntimeError):
        layer(change(th.randn(16, 3, 8, 8)))


@pytest.mark.parametrize(
    "x", [th.randn(3, 8, 8), th.randn(0, 3, 8, 8), th.randn(16, 3, 8, 8).double()], ids=["one image", "none", "float64"]
)
def test_what_kernels_do_not_take_is_computed_densely(x, on_kernels):
    layer = SparseConv2d(nn.Conv2d(3, 4, 3), Topology.random((4, 3, 3, 3), 40, 0)).to(x.dtype)
    if len(x) == 0:
        assert not can_shift(layer.topology, layer._window, tuple(x.shape))
        return
    th.testing.assert_close(layer(x), layer.to_dense()(x), rtol=0, atol=0)


def test_an_empty_batch_has_an_empty_result():
    layer = SparseConv2d(nn.Conv2d(3, 4, 3), Topology.random((4, 3, 3, 3), 40, 0))
    assert layer(th.empty(0, 3, 8, 8)).shape == (0, 4, 6, 6)


def test_a_window_that_does_not_fit_into_the_panel_is_left_to_torch(monkeypatch):
    monkeypatch.setenv(BACKEND_VARIABLE, "blocked")
    dense = nn.Conv2d(1, 1, 140, stride=70)
    layer = SparseConv2d.from_dense(dense, Topology.random(dense.weight.shape, 900, 0))
    x = th.randn(16, 1, 210, 210)
    assert not can_shift(layer.topology, layer._window, tuple(x.shape))
    with pytest.raises(ValueError, match="do not fit into a panel"):
        Shifted(layer.topology, layer._window, tuple(x.shape))
    th.testing.assert_close(layer(x), layer.to_dense()(x))


def test_a_window_that_fits_for_some_of_the_batches_that_are_chosen_for_together(monkeypatch):
    monkeypatch.setenv(BACKEND_VARIABLE, "blocked")
    dense = nn.Conv2d(1, 2, 40)
    layer = SparseConv2d.from_dense(dense, Topology.random(dense.weight.shape, 900, 0))
    for batch, fits in ((9, True), (15, False)):
        x = th.randn(batch, 1, 42, 42)
        assert can_shift(layer.topology, layer._window, tuple(x.shape)) is fits
        th.testing.assert_close(layer(x), layer.to_dense()(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("encoder", [lambda: ImpalaEncoder(2, 0.25), lambda: NatureEncoder(2, 0.25, "same")])
@pytest.mark.parametrize("layout", [th.contiguous_format, th.channels_last])
def test_encoders_compute_what_dense_ones_do(encoder, layout, on_kernels):
    th.manual_seed(0)
    net = encoder()
    sparsify_(net, 0.6)
    twin = encoder().double()
    living = {name: layer.weight for name, layer in net.named_modules() if isinstance(layer, SparseConv2d)}
    state = dict(net.state_dict())
    dense_state = {
        key: living[key.removesuffix(".weight")] if key.removesuffix(".weight") in living else state[key]
        for key in twin.state_dict()
    }
    twin.load_state_dict(dense_state)
    x = th.rand(16, 2, 84, 84).contiguous(memory_format=layout)
    y, expected = net(x), twin(x.double())
    th.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-5)
    y.square().sum().backward()
    expected.square().sum().backward()
    for name, parameter in twin.named_parameters():
        prefix, _, kind = name.rpartition(".")
        if kind == "weight" and prefix in living:
            layer = net.get_submodule(prefix)
            number, right = layer.values.grad, layer.topology.gather(parameter.grad)
        else:
            number, right = net.get_parameter(name).grad, parameter.grad
        th.testing.assert_close(number.double(), right, rtol=1e-3, atol=1e-3 * right.abs().max().item())


class TestChoice:
    """Whether a convolution runs on our kernels."""

    window, shape = Window((3, 3)), (32, 16, 20, 20)
    topology = Topology.random((16, 16, 3, 3), 200, 0)

    def chosen(self, monkeypatch, mode, shape=None, topology=None):
        monkeypatch.setenv(BACKEND_VARIABLE, mode)
        topology = topology or Topology.random((16, 16, 3, 3), 200, 0)
        return convolutions.shifts(topology, self.window, shape or self.shape, (True, True))

    @pytest.mark.parametrize(
        ("backend", "expected"), [("blocked", True), ("compiled", True), ("dense", False), ("csr", False)]
    )
    def test_the_environment_names_it(self, backend, expected, monkeypatch):
        assert self.chosen(monkeypatch, backend) is expected
        with pytest.raises(ValueError, match="nonsense"):
            self.chosen(monkeypatch, "nonsense")

    def test_the_rule_measures_nothing(self, monkeypatch):
        monkeypatch.setattr(convolutions, "_measure", None)
        assert self.chosen(monkeypatch, "deterministic")
        assert not self.chosen(monkeypatch, "deterministic", shape=(1, 16, 20, 20))
        assert not self.chosen(monkeypatch, "deterministic", shape=(16, 16, 4, 4))
        full = Topology.random((16, 16, 3, 3), 16 * 16 * 9, 0)
        assert not self.chosen(monkeypatch, "deterministic", topology=full)

    @pytest.mark.parametrize(("dense", "shifted", "expected"), [(1.0, 2.0, False), (2.0, 1.0, True), (1.02, 1.0, False)])
    def test_the_faster_one_is_taken_and_remembered(self, dense, shifted, expected, fresh, monkeypatch):
        clock = [0.0]

        def taking(seconds):
            def step(*args):
                clock[0] += seconds
                return th.zeros(1)

            return step

        with monkeypatch.context() as pretended:
            pretended.setattr(measure.time, "perf_counter", lambda: clock[0])
            pretended.setattr(convolutions.F, "conv2d", taking(dense))
            pretended.setattr(Shifted, "forward", taking(shifted))
            assert self.chosen(monkeypatch, "auto") is expected
        monkeypatch.setattr(convolutions, "_measure", None)
        assert self.chosen(monkeypatch, "auto") is expected
        # Another process reads it in the file.
        chooser.forget_choices()
        assert self.chosen(monkeypatch, "auto") is expected

    @pytest.mark.parametrize("wants", [(False, False), (False, True), (True, False), (True, True)])
    @pytest.mark.parametrize("batch", [1, 16, 100])
    def test_a_measurement_times_both(self, wants, batch, fresh, monkeypatch):
        measured = []
        original = convolutions.compete
        monkeypatch.setattr(convolutions, "compete", lambda steps: measured.append(set(steps)) or original(steps))
        monkeypatch.setenv(BACKEND_VARIABLE, "auto")
        convolutions.shifts(self.topology, self.window, (batch, 16, 30, 30), wants)
        assert measured == [{"dense", "shifted"}]

    def test_weights_that_fit_where_others_of_that_density_do_not_are_measured(self, fresh, monkeypatch):
        monkeypatch.setenv(BACKEND_VARIABLE, "auto")
        mask = th.zeros(8, 8, 3, 3)
        mask[..., 1, 1] = 1
        topology, window = Topology.from_mask(mask), Window((3, 3), dilation=(20, 20))
        assert can_shift(topology, window, (16, 8, 60, 60))
        convolutions.shifts(topology, window, (16, 8, 60, 60), (True, True))

    @pytest.mark.parametrize("surroundings", [lambda: th.device("meta"), th.inference_mode])
    def test_a_measurement_is_of_float32_on_the_cpu_whatever_the_default_is(self, surroundings, fresh, monkeypatch):
        measured, forward = [], Shifted.forward
        monkeypatch.setattr(convolutions, "compete", lambda steps: measured.append(steps) or original(steps))
        original = measure.compete
        monkeypatch.setattr(Shifted, "forward", lambda *args: measured.append(args[2]) or forward(*args))
        monkeypatch.setenv(BACKEND_VARIABLE, "auto")
        x = th.randn(16, 16, 20, 20)
        layer = SparseConv2d(nn.Conv2d(16, 16, 3), Topology.random((16, 16, 3, 3), 200, 4712))
        default = th.get_default_dtype()
        try:
            th.set_default_dtype(th.float64)
            with surroundings():
                y = layer(x).clone()
        finally:
            th.set_default_dtype(default)
        assert all(values.is_cpu and values.dtype is th.float32 for values in measured[1:])
        assert len(measured) > 2
        th.testing.assert_close(y, layer.to_dense()(x), rtol=1e-4, atol=1e-4)
        layer(x).sum().backward()

    def test_nothing_is_measured_on_a_busy_machine(self, fresh, monkeypatch):
        monkeypatch.setattr(measure.os, "getloadavg", lambda: (1000.0, 0.0, 0.0))
        monkeypatch.setattr(convolutions, "_measure", None)
        assert self.chosen(monkeypatch, "auto")
