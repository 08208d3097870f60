"""Convolutional encoders: sizes that are published, and padding as flax does it."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import NatureCNN
from torch.nn import functional as F

from sb3_sparse.networks.cnn import GridEncoder, ImpalaEncoder, NatureEncoder, _SamePadding


@pytest.mark.parametrize(("scale", "parameters"), [(1, 97_744), (2, 389_024), (3, 873_840), (4, 1_552_192)])
def test_sizes_of_impala(scale, parameters):
    encoder = ImpalaEncoder(4, scale)
    assert sum(p.numel() for p in encoder.parameters()) == parameters
    assert encoder(th.zeros(2, 4, 84, 84)).shape == (2, 3_872 * scale)
    assert len([layer for layer in encoder.modules() if isinstance(layer, th.nn.Conv2d)]) == 15


def test_sizes_of_nature():
    assert NatureEncoder(4)(th.zeros(1, 4, 84, 84)).shape == (1, 3_136)
    assert NatureEncoder(4, padding="same")(th.zeros(1, 4, 84, 84)).shape == (1, 7_744)
    assert NatureEncoder(4, 0.5)(th.zeros(1, 4, 84, 84)).shape == (1, 1_568)
    assert GridEncoder(4, 2)(th.zeros(1, 4, 10, 10)).shape == (1, 32 * 64)


def test_nature_is_sb3s():
    space = spaces.Box(0, 255, (4, 84, 84), np.uint8)
    theirs = NatureCNN(space).cnn
    ours = NatureEncoder(4)
    ours.load_state_dict(theirs.state_dict())
    x = th.rand(3, 4, 84, 84)
    assert th.equal(ours(x), theirs(x))


@pytest.mark.parametrize("size", [84, 42, 21, 11, 10, 7])
@pytest.mark.parametrize(("kernel", "stride"), [(8, 4), (4, 2), (3, 1), (3, 2)])
def test_same_padding_is_that_of_the_formula(size, kernel, stride):
    x = th.arange(1.0, size**2 + 1).view(1, 1, size, size)
    n_out = -(-size // stride)
    padded = _SamePadding(kernel, stride)(x)
    assert F.max_pool2d(padded, kernel, stride).shape[-1] == n_out
    total = padded.shape[-1] - size
    assert total == max(0, (n_out - 1) * stride + kernel - size)
    # The smaller half in front.
    assert (padded[0, 0] == 1).nonzero().tolist() == [[total // 2, total // 2]]


def test_pooling_never_takes_the_padding():
    encoder = ImpalaEncoder(1, 1 / 16)
    pool = th.nn.Sequential(encoder[1], encoder[2])
    x = -1 - th.rand(1, 1, 84, 84)
    assert (pool(x) < -1).all()
    # Windows begin at every second pixel, without the shift of torch's own padding.
    assert pool(x)[0, 0, 0, 0] == x[0, 0, :3, :3].max()
    assert pool(x)[0, 0, -1, -1] == x[0, 0, 82:, 82:].max()


@pytest.mark.parametrize("make", [lambda: ImpalaEncoder(4, 0), lambda: NatureEncoder(4, padding="SAME")])
def test_bad_arguments(make):
    with pytest.raises(ValueError, match=r"width_scale=0|padding='SAME'"):
        make()
