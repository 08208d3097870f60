"""Networks, noise and shifts, each against what is published or can be worked out."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC
from torch.nn import functional as F

from sb3_sparse.drqv2 import DrQFeatures, DrQv2Policy, ShiftedFeatures
from sb3_sparse.drqv2.noise import noisy_actions
from sb3_sparse.networks.drq import DrQActor, DrQCritic
from sb3_sparse.networks.random_shift import RandomShift, shifted
from sb3_sparse.sparse.layers import SparseLayer, sparse_layers
from tests.envs import SpaceEnv

IMAGES = spaces.Box(0, 255, (9, 84, 84), np.uint8)
ACTIONS = spaces.Box(-1, 1, (12,), np.float32)


def size(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_sizes_as_published():
    encoder = DrQFeatures(IMAGES)
    assert encoder.features_dim == 39_200 == encoder(th.rand(1, 9, 84, 84)).shape[1]
    assert (size(encoder), size(DrQActor(39_200, 12)), size(DrQCritic(39_200, 12))) == (30_368, 3_074_274, 4_190_424)
    assert size(DrQCritic(39_200, 12).trunk) == 1_960_150


@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 84), (15, 15), (16, 17)])
def test_features_of_other_sizes(height, width):
    encoder = DrQFeatures(spaces.Box(0, 255, (9, height, width), np.uint8), channels=3)
    assert encoder(th.rand(2, 9, height, width)).shape == (2, encoder.features_dim)


@pytest.mark.parametrize(
    ("scale", "parameters", "heads", "densities_of_all", "densities_of_heads"),
    [
        (1, 4.19e6, 2.23e6, (0.367, 0.314, 0.0358, 1), (1, 0.151, 1)),
        (2, 10.6e6, 8.65e6, (0.821, 0.681, 0.0400, 1), (1, 0.175, 1)),
        (4, 36.0e6, 34.1e6, (1, 1, 0.141, 1), (1, 0.188, 1)),
    ],
)
def test_the_critic_alone_grows_and_is_pruned(scale, parameters, heads, densities_of_all, densities_of_heads, monkeypatch):
    # Sizes alone matter here, and what large layers start with takes long.
    monkeypatch.setattr(th.nn.init, "orthogonal_", lambda tensor, gain=1: tensor)

    def policy(**kwargs):
        return DrQv2Policy(IMAGES, ACTIONS, lambda _: 1e-4, critic_width_scale=scale, **kwargs)

    dense = policy()
    assert size(dense.critic) == pytest.approx(parameters, rel=0.005)
    assert sum(layer.weight.numel() for q in dense.critic.q_networks for layer in q[::2]) == pytest.approx(heads, rel=0.005)
    assert (size(dense.encoder), size(dense.actor)) == (30_368, 3_074_274)
    for scope, expected in (("critic", densities_of_all), ("heads", densities_of_heads)):
        pruned = policy(sparsity=0.8, sparsity_scope=scope)
        layers = [layer for layer in pruned.critic.chains()[1] if hasattr(layer, "weight") and layer.weight.dim() == 2]
        found = [layer.density if isinstance(layer, SparseLayer) else 1 for layer in layers]
        assert found[-len(expected) :] == pytest.approx(expected, rel=0.005)
        assert not sparse_layers(pruned.encoder)
        assert not sparse_layers(pruned.actor)
        online, target = sparse_layers(pruned.critic), sparse_layers(pruned.critic_target)
        assert online.keys() == target.keys()
        assert all(online[name].topology is target[name].topology for name in online)
        first, second = ([layer for name, layer in online.items() if f"q_networks.{i}" in name] for i in range(2))
        assert all(not np.array_equal(a.topology.mask(), b.topology.mask()) for a, b in zip(first, second, strict=True))


def test_every_network_can_be_pruned_by_name():
    policy = DrQv2Policy(
        spaces.Box(0, 255, (3, 20, 20), np.uint8),
        ACTIONS,
        lambda _: 1e-4,
        net_arch=[64, 64],
        sparsity={"encoder": 0.5, "pi": 0.6, "qf": 0.0},
        features_extractor_kwargs=dict(channels=8),
    )
    assert sparse_layers(policy.encoder)
    assert sparse_layers(policy.actor)
    assert not sparse_layers(policy.critic)


def resampled(images, right, down, pad=4):
    """Published: the padded image, sampled between its pixels at the shifted grid of a smaller one."""
    n, _, size, _ = images.shape
    padded = F.pad(images.float(), (pad,) * 4, mode="replicate")
    whole = size + 2 * pad
    centres = (th.arange(size) * 2 + 1) / whole - 1
    grid = th.stack([centres.expand(size, size), centres[:, None].expand(size, size)], dim=2).expand(n, -1, -1, -1)
    move = 2 * th.stack([right + pad, down + pad], dim=1).float() / whole
    return F.grid_sample(padded, grid + move[:, None, None], padding_mode="zeros", align_corners=False)


@pytest.mark.parametrize("n", [500, pytest.param(10_000, marks=pytest.mark.full)])
def test_shifts_are_the_published_resampling(n):
    for _ in range(n // 500):
        images = th.randint(0, 256, (500, 9, 84, 84), dtype=th.uint8)
        right, down = th.randint(-4, 5, (2, 500))
        assert (shifted(images, right, down).float() - resampled(images, right, down)).abs().max() < 0.01


def test_images_are_shifted_apart_from_each_other_and_their_channels_together():
    th.manual_seed(0)
    picture = th.randint(0, 256, (1, 1, 30, 40), dtype=th.uint8)
    images = RandomShift(4)(picture.expand(4000, 9, -1, -1))
    assert all(th.equal(images[:, 0], images[:, i]) for i in range(9))
    windows = {
        shifted(picture, th.tensor([x]), th.tensor([y])).numpy().tobytes(): (x, y) for x in range(-4, 5) for y in range(-4, 5)
    }
    assert len(windows) == 81
    counts = np.zeros((9, 9))
    for image in images[:, :1]:
        x, y = windows[image.numpy().tobytes()]
        counts[x + 4, y + 4] += 1
    # Chi-squared with 80 degrees of freedom; beyond 140 with a probability of 4e-5.
    assert ((counts - 4000 / 81) ** 2 / (4000 / 81)).sum() < 140


def test_shifts_are_for_training_and_of_whole_images():
    images = th.rand(3, 3, 20, 20)
    assert RandomShift(4).eval()(images) is images
    assert RandomShift(0)(images) is images
    with pytest.raises(ValueError, match=r"images of shape \(3, 20, 20\)"):
        RandomShift(4)(images[0])
    with pytest.raises(ValueError, match="pad=-1"):
        RandomShift(-1)


def test_noise_is_cut_off_and_passes_gradients_through_the_bounds():
    th.manual_seed(0)
    means = th.tensor([[-0.9, 0.0, 0.95]]).repeat(100_000, 1).requires_grad_()
    free, clipped = noisy_actions(means.detach(), 0.5), noisy_actions(means, 0.5, 0.3)
    assert free.abs().max() == pytest.approx(1 - 1e-6, abs=1e-7)
    assert (clipped - means).detach().abs().max() <= 0.3 + 1e-6
    middle = free[:, 1]
    # Beyond two deviations the bounds cut it off.
    assert middle.std() == pytest.approx(0.4797, abs=0.005)
    assert (middle.abs() > 1 - 2e-6).float().mean() == pytest.approx(0.0455, abs=0.004)
    assert (clipped[:, 1].detach().abs() > 0.2999).float().mean() == pytest.approx(0.5485, abs=0.01)
    (clipped * th.arange(1.0, 4)).sum().backward()
    assert th.equal(means.grad, th.arange(1.0, 4).expand_as(means))


def test_shifts_in_front_of_another_extractor():
    from stable_baselines3 import DQN, SAC

    from tests.drqv2.pictures import Dot

    for algo, env in ((SAC, Dot(size=40)), (DQN, "discrete")):
        if env == "discrete":
            from gymnasium.wrappers import TransformAction

            env = TransformAction(Dot(size=40), lambda a: np.array([a, 0], np.float32), spaces.Discrete(3))
        kwargs = dict(features_extractor_class=ShiftedFeatures, features_extractor_kwargs=dict(features_dim=8), net_arch=[8])
        model = algo("CnnPolicy", env, policy_kwargs=kwargs, learning_starts=5, buffer_size=50, batch_size=4, seed=0)
        model.learn(12)
        network = model.actor if algo is SAC else model.q_net
        images = model.policy.obs_to_tensor(model.replay_buffer.observations[:4, 0])[0]
        passes = {}
        for mode in (True, False):
            network.set_training_mode(mode)
            th.manual_seed(0)
            passes[mode] = network.extract_features(images, network.features_extractor)
            assert th.equal(passes[mode], network.extract_features(images, network.features_extractor)) != mode
        network.set_training_mode(False)
        th.manual_seed(0)
        right, down = th.randint(-4, 5, (2, 4))
        assert th.allclose(passes[True], network.extract_features(shifted(images, right, down), network.features_extractor))
        obs = model.env.reset()
        assert np.array_equal(model.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])


@pytest.mark.parametrize("normalize_images", [True, False])
@pytest.mark.parametrize("space", [IMAGES, spaces.Box(0, 1, (3, 40, 40), np.float32)], ids=["bytes", "scaled"])
def test_shifts_in_front_of_images_of_either_kind(space, normalize_images):
    """SB3 tells NatureCNN itself, and not what is around it, that images are scaled already."""
    if space is not IMAGES and normalize_images:
        pytest.skip("SB3 takes no such images")
    policy_kwargs = dict(features_extractor_class=ShiftedFeatures, normalize_images=normalize_images, net_arch=[4])
    kwargs = dict(buffer_size=10, learning_starts=4, batch_size=4, policy_kwargs=policy_kwargs)
    SAC("CnnPolicy", SpaceEnv(space, spaces.Box(-1, 1, (2,))), **kwargs).learn(6)
