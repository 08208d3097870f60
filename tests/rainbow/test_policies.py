"""Networks of Rainbow: sizes and densities of the paper's, noise where it belongs, files."""

import copy

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer

from sb3_sparse import sparsity_report, to_dense
from sb3_sparse.networks.noisy import noisy_layers
from sb3_sparse.rainbow import DER, ImageEncoder, Rainbow, RainbowPolicy
from sb3_sparse.replay import PrioritizedReplayBuffer

ATARI = spaces.Box(0, 255, (4, 84, 84), np.uint8)
GRID = spaces.Box(0.0, 1.0, (10, 10, 4), bool)
DICT = spaces.Dict({"vector": spaces.Box(-1, 1, (3,)), "image": spaces.Box(0, 255, (3, 40, 40), np.uint8)})
ALL = dict(distributional=True, dueling=True, noisy=True)


class Random(gym.Env):
    """Random observations; the action is the reward."""

    def __init__(self, space):
        self.observation_space, self.action_space, self.steps = space, spaces.Discrete(4), 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.steps += 1
        return self.observation_space.sample(), float(action), self.steps >= 15, False, {}


def network(n_actions, **kwargs):
    return RainbowPolicy(ATARI, spaces.Discrete(n_actions), lambda _: 1e-4, **ALL, **kwargs).q_net


@pytest.mark.parametrize(
    ("scale", "n_actions", "means", "with_deviations"),
    [
        (1, 6, 2_263_861, 4_429_978),
        (1, 18, 2_577_817, 5_057_890),
        (2, 18, 4_851_561, 9_314_098),
        (3, 6, 7_004_885, 13_135_930),
        (3, 18, 7_318_841, 13_763_842),
    ],
)
def test_sizes_of_the_network_with_impala(scale, n_actions, means, with_deviations):
    net = network(n_actions, encoder="impala", width_scale=scale)
    sizes = {name: p.numel() for name, p in net.named_parameters()}
    assert sum(sizes.values()) == with_deviations
    assert sum(size for name, size in sizes.items() if "sigma" not in name) == means


def test_a_report_counts_the_deviations_of_noisy_layers():
    kwargs = dict(encoder="impala", width_scale=0.25)
    dense = sparsity_report(network(6, **kwargs))
    net = network(6, **kwargs, sparsity=0.8)
    report = sparsity_report(net)
    assert report.total_parameters == dense.total_parameters == dense.learnable_parameters
    assert report.learnable_parameters == sum(p.numel() for p in net.parameters())
    assert report.sparsity == pytest.approx(0.8, abs=1e-3)


# Densities of the first convolution, the residual ones of the first stack, the second stack's first, all of 96 channels,
# the hidden layer, the advantages and the value.
DENSITIES = {
    (18, 0.4): (1, 1, 0.9991, 0.6594, 0.5633, 0.8404, 1),
    (18, 0.8): (1, 0.4441, 0.3266, 0.2155, 0.1841, 0.2747, 1),
    (6, 0.8): (1, 0.4417, 0.3248, 0.2144, 0.1831, 0.4689, 1),
}


@pytest.mark.parametrize(("n_actions", "sparsity"), DENSITIES)
def test_densities_of_the_sparse_network(n_actions, sparsity):
    rows = {row.shape: round(row.density, 4) for row in sparsity_report(network(n_actions, **PAPER, sparsity=sparsity)).layers}
    shapes = [(48, 4, 3, 3), (48, 48, 3, 3), (96, 48, 3, 3), (96, 96, 3, 3), (512, 11616), (n_actions * 51, 512), (51, 512)]
    assert len(rows) == len(shapes)
    assert tuple(rows[shape] for shape in shapes) == DENSITIES[n_actions, sparsity]


PAPER = dict(encoder="impala", width_scale=3)
AGENTS = {
    "nature": (ATARI, "CnnPolicy", dict(encoder="nature", width_scale=0.25, sparsity=0.5)),
    "sb3's": (ATARI, "CnnPolicy", {}),
    "impala": (ATARI, "CnnPolicy", dict(encoder="impala", width_scale=0.25, sparsity=0.8)),
    "grid": (GRID, "MlpPolicy", dict(encoder="grid", sparsity=0.5, mask_seed=3)),
    "dict": (DICT, "MultiInputPolicy", dict(sparsity=0.5, sparsity_distribution="uniform")),
    "vector": (spaces.Box(-1, 1, (5,)), "MlpPolicy", dict(sparsity=0.9, rescale=True)),
}
SETTINGS = dict(learning_starts=20, buffer_size=100, batch_size=8, seed=0, device="cpu", target_update_interval=10)


@pytest.mark.parametrize("name", AGENTS)
def test_agents_train_are_saved_and_go_on(name, tmp_path):
    space, policy, policy_kwargs = AGENTS[name]
    model = DER(policy, Random(space), policy_kwargs=policy_kwargs, n_steps=3, **SETTINGS)
    topologies = {n: layer.topology for n, layer in model.q_net.named_modules() if hasattr(layer, "topology")}
    assert bool(topologies) == bool(policy_kwargs)
    model.learn(30)
    for net in (model.q_net, model.q_net_target):
        assert topologies == {n: layer.topology for n, layer in net.named_modules() if hasattr(layer, "topology")}
    model.save(tmp_path / "agent")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = DER.load(tmp_path / "agent", env=Random(space))
    obs = np.stack([space.sample() for _ in range(9)]) if name != "dict" else space.sample()
    assert np.array_equal(model.predict(obs, deterministic=True)[0], loaded.predict(obs, deterministic=True)[0])
    loaded.load_replay_buffer(tmp_path / "buffer")
    weights = [buffer.priorities._tree.weights for buffer in (model.replay_buffer, loaded.replay_buffer)]
    assert np.array_equal(*weights)
    loaded.learn(10, reset_num_timesteps=False)
    assert loaded.num_timesteps == 40
    policy_file = tmp_path / "policy"
    model.policy.save(policy_file)
    again = type(model.policy).load(policy_file)
    assert np.array_equal(model.predict(obs, deterministic=True)[0], again.predict(obs, deterministic=True)[0])


@pytest.mark.parametrize(
    ("shape", "dtype", "channels", "is_last"),
    [
        ((10, 10, 4), bool, 4, True),
        # MinAtar's Seaquest.
        ((10, 10, 10), bool, 10, True),
        ((4, 10, 10), bool, 4, False),
        ((10, 10, 10), np.uint8, 10, False),
        ((84, 84, 4), np.uint8, 4, True),
        ((4, 84, 84), np.uint8, 4, False),
        # Frames that are stacked can be more than a side is long.
        ((10, 10, 16), bool, 16, True),
        ((16, 10, 10), bool, 16, False),
        ((36, 36, 48), np.uint8, 48, True),
        ((48, 36, 36), np.uint8, 48, False),
        ((40, 60, 3), np.uint8, 3, True),
        ((3, 40, 60), np.uint8, 3, False),
    ],
)
def test_where_channels_are(shape, dtype, channels, is_last):
    space = spaces.Box(0, 1 if dtype is bool else 255, shape, dtype)
    encoder = ImageEncoder(space, "grid")
    assert encoder.channels_last is is_last
    assert encoder.network[0].in_channels == channels
    obs = th.rand(2, *shape)
    channels_first = obs.permute(0, 3, 1, 2) if is_last else obs
    # Another layout in memory rounds otherwise.
    th.testing.assert_close(encoder(obs), encoder.network(channels_first))


@pytest.mark.parametrize("name", ["n_steps", "gamma", "v_min", "alpha", "replay_buffer_kwargs", "noisy"])
def test_a_saved_agent_keeps_what_made_it(name, tmp_path):
    model = DER("MlpPolicy", "CartPole-v1", **SETTINGS, policy_kwargs=dict(net_arch=[8]))
    model.save(tmp_path / "agent")
    with pytest.raises(ValueError, match=f"{name}=0.5.*the saved agent has its own"):
        DER.load(tmp_path / "agent", **{name: 0.5})
    assert DER.load(tmp_path / "agent", batch_size=5).batch_size == 5


def test_a_dense_copy_computes_the_same():
    policy = RainbowPolicy(GRID, spaces.Discrete(4), lambda _: 1e-4, **ALL, encoder="grid", sparsity=0.7)
    dense = to_dense(policy)
    obs = th.rand(5, 10, 10, 4)
    th.testing.assert_close(dense.q_net(obs), policy.q_net(obs), rtol=1e-5, atol=1e-5)
    assert dense.sparsity.amount == 0
    assert not any(hasattr(layer, "topology") for layer in dense.modules())


def test_noise_acts_when_acting_to_explore_and_not_otherwise():
    model = Rainbow("MlpPolicy", Random(spaces.Box(-1, 1, (5,))), sigma=3.0, **SETTINGS)
    obs = np.stack([model.observation_space.sample() for _ in range(50)])
    # As SB3 does while it collects experience.
    model.policy.set_training_mode(False)
    greedy = [model.predict(obs, deterministic=True)[0] for _ in range(5)]
    assert all(np.array_equal(greedy[0], other) for other in greedy)
    exploring = [model.predict(obs, deterministic=False)[0] for _ in range(5)]
    assert any(not np.array_equal(exploring[0], other) for other in exploring[1:])
    noise = [layer.noise_in.clone() for layer in noisy_layers(model.q_net)]
    model.predict(obs, deterministic=True)
    assert all(th.equal(a, layer.noise_in) for a, layer in zip(noise, noisy_layers(model.q_net), strict=True))
    assert all(layer.noisy for layer in noisy_layers(model.q_net))


def test_each_update_draws_noise_anew_for_both_networks():
    model = Rainbow("MlpPolicy", Random(spaces.Box(-1, 1, (5,))), **SETTINGS).learn(30)
    seen = []
    for _ in range(3):
        model.train(1, 8)
        seen.append([layer.noise_in.clone() for net in (model.q_net, model.q_net_target) for layer in noisy_layers(net)])
    flat = [noise for update in seen for noise in update]
    assert all(not th.equal(a, b) for i, a in enumerate(flat) for b in flat[:i] if a.shape == b.shape)


def test_no_random_actions_with_noise_and_sb3s_without():
    noisy = Rainbow("MlpPolicy", "CartPole-v1", **SETTINGS)
    assert (noisy.exploration_initial_eps, noisy.exploration_final_eps) == (0.0, 0.0)
    plain = Rainbow("MlpPolicy", "CartPole-v1", noisy=False, **SETTINGS)
    assert (plain.exploration_initial_eps, plain.exploration_final_eps) == (1.0, 0.05)
    assert Rainbow("MlpPolicy", "CartPole-v1", exploration_final_eps=0.2, **SETTINGS).exploration_final_eps == 0.2


@pytest.mark.parametrize(
    ("switches", "given", "fused"),
    [
        ({}, {}, True),
        ({"noisy": False}, {}, True),
        ({"distributional": False}, {"eps": 1e-3}, True),
        ({"noisy": False, "distributional": False}, {}, None),
        ({}, {"fused": False}, False),
        ({}, {"foreach": True}, None),
    ],
)
def test_adam_is_fused_where_it_need_not_be_that_of_dqn(switches, given, fused):
    model = Rainbow("MlpPolicy", "CartPole-v1", policy_kwargs=dict(optimizer_kwargs=given), **switches, **SETTINGS)
    group = model.policy.optimizer.param_groups[0]
    assert group["fused"] is fused
    assert group.items() >= given.items()
    model.learn(30)


def test_another_optimizer_gets_its_own_arguments_alone():
    policy_kwargs = dict(optimizer_class=th.optim.SGD, optimizer_kwargs=dict(momentum=0.5))
    model = Rainbow("MlpPolicy", "CartPole-v1", policy_kwargs=policy_kwargs, **SETTINGS).learn(30)
    assert model.policy.optimizer.param_groups[0]["momentum"] == 0.5


@pytest.mark.parametrize("encoder", ["nature", "nature_same", "impala"])
@pytest.mark.parametrize("sparsity", [0.0, 0.8])
def test_the_layout_of_images_in_memory_changes_no_result(encoder, sparsity):
    policy_kwargs = dict(encoder=encoder, sparsity=sparsity, width_scale=0.5, net_arch=[16])
    net = DER("CnnPolicy", Random(ATARI), policy_kwargs=policy_kwargs, **SETTINGS).q_net.features_extractor
    images = th.rand(3, *ATARI.shape)
    expected = net.network(images)
    with th.no_grad():
        th.testing.assert_close(net(images), expected, rtol=1e-4, atol=1e-5)
    found, parameters = net(images), list(net.parameters())
    th.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    direction = th.randn_like(found)
    for a, b in zip(*(th.autograd.grad(y, parameters, direction) for y in (found, expected)), strict=True):
        th.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * b.abs().max().item())
        assert a.shape == b.shape


def test_defaults_of_der_are_table_5():
    model = DER("MlpPolicy", "CartPole-v1")
    assert (model.replay_buffer.n_steps, model.gamma, model.batch_size, model.gradient_steps) == (10, 0.99, 32, 1)
    assert (model.learning_starts, model.target_update_interval, model.tau, model.train_freq.frequency) == (1600, 2000, 1, 1)
    group = model.policy.optimizer.param_groups[0]
    assert (type(model.policy.optimizer), group["lr"], group["eps"]) == (th.optim.Adam, 1e-4, 1.5e-4)
    assert (model.replay_buffer.priorities.alpha, model.replay_buffer.beta) == (0.5, 0.5)
    assert next(iter(noisy_layers(model.q_net))).weight_sigma[0, 0].item() == pytest.approx(0.5 / 2)
    assert model.q_net.support.n_atoms == 51


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        ({"n_atoms": 1}, "n_atoms=1"),
        ({"v_min": 3, "v_max": 3}, "v_min below v_max"),
        ({"n_steps": 0}, "n_steps=0"),
        ({"alpha": 2}, "alpha=2"),
        ({"beta": -1}, "beta=-1"),
        ({"sigma": -1}, "sigma=-1"),
        ({"noisy": 1}, "noisy=1"),
        ({"double": None}, "double=None"),
        ({"policy_kwargs": {"dueling": True}}, "'dueling'.* are keywords of Rainbow itself"),
        ({"policy_kwargs": {"encoder": "nature"}}, "encoder='nature' for the observation space"),
        ({"policy_kwargs": {"sparsity": 1.0}}, r"sparsity=1\.0"),
        ({"policy_kwargs": {"width_scale": 2}}, r"width_scale=2.*encoder="),
    ],
)
def test_bad_arguments(kwargs, expected):
    with pytest.raises(ValueError, match=expected):
        Rainbow("MlpPolicy", "CartPole-v1", **kwargs)


def test_bad_spaces():
    with pytest.raises(AssertionError, match="Discrete"):
        Rainbow("MlpPolicy", "Pendulum-v1")
    with pytest.raises(ValueError, match="too small"):
        DER("MlpPolicy", Random(spaces.Box(0, 255, (3, 20, 20), np.uint8)), policy_kwargs=dict(encoder="nature"))
    with pytest.raises(ValueError, match="encoder='cnn'"):
        DER("MlpPolicy", Random(ATARI), policy_kwargs=dict(encoder="cnn"))


def test_a_buffer_of_ones_own_gets_the_settings_too():
    class Mine(PrioritizedReplayBuffer):
        pass

    model = Rainbow("MlpPolicy", "CartPole-v1", replay_buffer_class=Mine, alpha=0.9, beta=0.3, n_steps=2, gamma=0.9)
    buffer = model.replay_buffer
    assert (buffer.priorities.alpha, buffer.beta, buffer.n_steps, buffer.gamma) == (0.9, 0.3, 2, 0.9)


@pytest.mark.parametrize(
    ("prioritized", "buffer_class"), [(True, ReplayBuffer), (False, PrioritizedReplayBuffer), (True, NStepReplayBuffer)]
)
def test_buffers_that_do_not_fit_are_refused(prioritized, buffer_class):
    with pytest.raises(ValueError, match=f"prioritized={prioritized}.*{buffer_class.__name__}"):
        Rainbow("MlpPolicy", "CartPole-v1", prioritized=prioritized, replay_buffer_class=buffer_class)


def test_a_buffer_of_another_agent_is_refused(tmp_path):
    model = Rainbow("MlpPolicy", "CartPole-v1", buffer_size=50)
    before = model.replay_buffer
    others = {
        "prioritized": Rainbow("MlpPolicy", "CartPole-v1", buffer_size=50, prioritized=False, n_steps=1),
        "n_steps=5": Rainbow("MlpPolicy", "CartPole-v1", buffer_size=50, n_steps=5),
        "gamma=0.5": Rainbow("MlpPolicy", "CartPole-v1", buffer_size=50, gamma=0.5),
        "observation_space": Rainbow("MlpPolicy", "Acrobot-v1", buffer_size=50),
    }
    for expected, other in others.items():
        other.save_replay_buffer(tmp_path / "buffer.pkl")
        with pytest.raises(ValueError, match=expected):
            model.load_replay_buffer(tmp_path / "buffer.pkl")
        assert model.replay_buffer is before
    model.save_replay_buffer(tmp_path / "buffer.pkl")
    model.load_replay_buffer(tmp_path / "buffer.pkl")
    assert model.replay_buffer is not before


@pytest.mark.parametrize("sparsity", [0.0, 0.8])
def test_updates_encode_large_images_in_pieces_and_measurements_do_not(sparsity, monkeypatch):
    policy_kwargs = dict(
        encoder="impala", width_scale=0.25, net_arch=[8], sparsity=sparsity, optimizer_class=th.optim.SGD, optimizer_kwargs={}
    )
    model = DER("CnnPolicy", Random(ATARI), policy_kwargs=policy_kwargs, **{**SETTINGS, "learning_starts": 50})
    model.learn(40)
    whole = DER("CnnPolicy", Random(ATARI), policy_kwargs=policy_kwargs, **{**SETTINGS, "learning_starts": 50})
    whole.policy.load_state_dict(model.policy.state_dict())
    whole.replay_buffer, whole._logger = copy.deepcopy(model.replay_buffer), model.logger
    for net in (whole.q_net, whole.q_net_target):
        net.features_extractor.piece_size = None
    sizes, forward = [], ImageEncoder.forward
    monkeypatch.setattr(ImageEncoder, "forward", lambda self, x: sizes.append(len(x)) or forward(self, x))
    # Of one update: of the next observations by both networks, and of the observations.
    for agent, expected in ((whole, 3 * [37]), (model, 3 * [16, 16, 5])):
        sizes.clear()
        np.random.seed(0)
        th.manual_seed(0)
        agent.train(1, 37)
        assert sizes == expected
    for name, tensor in whole.policy.state_dict().items():
        th.testing.assert_close(model.policy.state_dict()[name], tensor, rtol=1e-4, atol=1e-6, msg=name)
    sizes.clear()
    model.per_sample_losses("critic", model._sample(37))
    assert sizes == 3 * [37]
