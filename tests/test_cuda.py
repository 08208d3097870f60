"""
On a GPU what is right on the CPU: layers, policies, streaming, plasticity.

``pytest -m cuda`` runs the tests on the GPU. Each runs on the CPU too, which shows that the tests themselves are right.
They need no environment with a renderer, no rl-zoo3 and no network.
"""

import copy
import io

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import QRDQN, TQC, CrossQ
from stable_baselines3 import DDPG, DQN, PPO, SAC, TD3
from torch import nn

from sb3_sparse import SparseConv2d, SparseLinear, Topology, sparsify_, sparsity_report, to_dense
from sb3_sparse.plasticity import PlasticityCallback, ResetCallback, measure, reset_model_
from sb3_sparse.sparse.kernels import BACKEND_VARIABLE, available_backends
from sb3_sparse.sparse.kernels.backends.dense import _scratch
from sb3_sparse.streaming import StreamAC, StreamQ, StreamSARSA
from tests.envs import ReachEnv, SpaceEnv

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
# Of results whose sums have some hundred terms.
TOLERANCE = {th.float64: 1e-10, th.float32: 1e-4, th.bfloat16: 5e-2, th.float16: 1e-2}
# Backends and what they compute with, where they run at all.
BACKENDS = {
    "dense": TOLERANCE,
    "csr": (th.float64, th.float32),
    "compiled": (th.float32,),
    "blocked": (th.float32,),
    "auto": TOLERANCE,
}
OTHER = {"cpu": "cuda", "cuda": "cpu"}

VECTOR, IMAGE = spaces.Box(-1, 1, (5,)), spaces.Box(0, 255, (3, 36, 36), np.uint8)
CONTINUOUS, DISCRETE = spaces.Box(-1, 1, (2,)), spaces.Discrete(3)
ALGORITHMS = {"sac": SAC, "td3": TD3, "ddpg": DDPG, "tqc": TQC, "crossq": CrossQ, "dqn": DQN, "qrdqn": QRDQN}


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


def other_device(device):
    """Where a file of this device is loaded; the CPU's on the GPU where there is one."""
    return OTHER[device] if th.cuda.is_available() else "cpu"


def make_agent(name, device, observation_space=VECTOR, **policy_kwargs):
    algorithm = ALGORITHMS[name]
    env = SpaceEnv(observation_space, DISCRETE if name in ("dqn", "qrdqn") else CONTINUOUS)
    settings = {"buffer_size": 64, "learning_starts": 8, "batch_size": 8, "train_freq": 1, "seed": 0, "device": device}
    policy_kwargs = {"net_arch": [32], "sparsity": 0.7, **policy_kwargs}
    return algorithm("SparseSimBaPolicy", env, policy_kwargs=policy_kwargs, **settings)


def sparse_layers(module):
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, (SparseLinear, SparseConv2d))}


def observations(space=VECTOR, n=16):
    space = copy.deepcopy(space)
    space.seed(0)
    return np.stack([space.sample() for _ in range(n)])


def assert_on(module, device):
    assert {tensor.device.type for tensor in [*module.parameters(), *module.buffers()]} == {device}


@pytest.mark.parametrize(
    ("backend", "dtype"),
    [(backend, dtype) for backend, dtypes in BACKENDS.items() for dtype in dtypes],
    ids=lambda value: str(value).removeprefix("torch."),
)
@pytest.mark.parametrize(("out_features", "in_features", "batch"), [(24, 40, 5), (33, 70, 1), (256, 128, 64)])
@pytest.mark.parametrize("density", [0.0, 0.1, 0.5, 1.0])
def test_layer_is_its_dense_twin(device, backend, dtype, out_features, in_features, batch, density, monkeypatch):
    if backend != "auto" and backend not in available_backends(device, dtype):
        pytest.skip(f"{backend} does not run {dtype} on {device}")
    monkeypatch.setenv(BACKEND_VARIABLE, backend)
    th.manual_seed(0)
    layer = SparseLinear(in_features, out_features, density=density, seed=3, device=device, dtype=dtype)
    dense = layer.to_dense()
    assert dense.weight.device.type == device
    x = th.randn(batch, in_features, device=device).to(dtype)
    upstream = th.randn(batch, out_features, device=device).to(dtype)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [twin(inputs[i]) for i, twin in enumerate((layer, dense))]
    for output in outputs:
        output.backward(upstream)
    tolerance = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype] * in_features**0.5}
    th.testing.assert_close(outputs[0], outputs[1], **tolerance)
    th.testing.assert_close(inputs[0].grad, inputs[1].grad, **tolerance)
    living = dense.weight.grad.flatten()[layer.topology.flat_index(device)]
    th.testing.assert_close(layer.values.grad, living, **tolerance)
    th.testing.assert_close(layer.bias.grad, dense.bias.grad, **tolerance)
    with th.no_grad():
        th.testing.assert_close(layer(x), outputs[0].detach(), **tolerance)


@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
def test_convolution_is_its_dense_twin(device, padding_mode):
    th.manual_seed(0)
    conv = nn.Conv2d(3, 8, 3, stride=2, padding=1, padding_mode=padding_mode).to(device)
    layer = SparseConv2d(conv, Topology.random((8, 3, 3, 3), 70, seed=1))
    dense = layer.to_dense()
    x = th.randn(4, 3, 9, 9, device=device)
    outputs = [twin(x) for twin in (layer, dense)]
    for output in outputs:
        output.square().sum().backward()
    th.testing.assert_close(outputs[0], outputs[1], rtol=1e-4, atol=1e-4)
    living = dense.weight.grad.flatten()[layer.topology.flat_index(device)]
    th.testing.assert_close(layer.values.grad, living, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [th.bfloat16, th.float16], ids=["bfloat16", "float16"])
def test_autocast(device, dtype):
    th.manual_seed(0)
    layer = SparseLinear(64, 32, density=0.3, seed=1, device=device)
    dense = layer.to_dense()
    x = th.randn(16, 64, device=device)
    outputs = []
    for twin in (layer, dense):
        with th.autocast(device, dtype=dtype):
            outputs.append(twin(x))
        outputs[-1].float().sum().backward()
    assert outputs[0].dtype == outputs[1].dtype == dtype
    th.testing.assert_close(outputs[0], outputs[1], rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    assert layer.values.grad.dtype == th.float32
    living = dense.weight.grad.flatten()[layer.topology.flat_index(device)]
    th.testing.assert_close(layer.values.grad, living, rtol=TOLERANCE[dtype], atol=10 * TOLERANCE[dtype])


def test_two_streams_compute_with_layers_of_one_topology(device, monkeypatch):
    """Each has a dense weight of its own: one waits between writing and multiplying, while the other does both."""
    monkeypatch.setenv(BACKEND_VARIABLE, "dense")
    topology = Topology.random((24, 40), 200, seed=1)
    layers = [SparseLinear(40, 24, topology=topology, device=device) for _ in range(2)]
    x = th.randn(8, 40, device=device)
    with th.no_grad():
        expected = [layer.to_dense()(x) for layer in layers]
        streams = [th.cuda.Stream(device) if device == "cuda" else None for _ in layers]
        scatter = _scratch.scatter

        def scatter_and_wait(*args):
            weight = scatter(*args)
            if device == "cuda" and th.cuda.current_stream() == streams[0]:
                th.cuda._sleep(200_000_000)
            return weight

        for warm in (True, False):
            if not warm:
                monkeypatch.setattr(_scratch, "scatter", scatter_and_wait)
            if device == "cuda":
                th.cuda.synchronize()
            found = []
            for layer, stream in zip(layers, streams, strict=True):
                with th.cuda.stream(stream):
                    found.append(layer(x))
            if device == "cuda":
                th.cuda.synchronize()
    for y, right in zip(found, expected, strict=True):
        th.testing.assert_close(y, right, rtol=1e-4, atol=1e-4)


def test_topology_is_the_same_on_every_device(device):
    drawn = SparseLinear(40, 24, density=0.25, seed=5)
    there = SparseLinear(40, 24, density=0.25, seed=5, device=device)
    assert there.topology is drawn.topology
    given = SparseLinear(10, 12, topology=Topology.from_mask(th.eye(12, 10)))
    for layer in (drawn, given, SparseConv2d(nn.Conv2d(3, 8, 3), Topology.random((8, 3, 3, 3), 70, seed=1))):
        weight, topology = layer.weight.clone(), layer.topology
        moved = copy.deepcopy(layer).to(device)
        assert moved.topology == topology
        assert_on(moved, device)
        assert th.equal(moved.weight.cpu(), weight)
        for tensors in (topology.tensors(device), [topology.flat_index(device)]):
            assert {tensor.device.type for tensor in tensors} == {device}
        back = copy.deepcopy(moved).cpu()
        assert th.equal(back.weight, weight)
        file = io.BytesIO()
        th.save(moved.state_dict(), file)
        file.seek(0)
        layer.load_state_dict(th.load(file, map_location="cpu", weights_only=True))
        assert th.equal(layer.weight, weight)
        moved.load_state_dict(layer.state_dict())
        assert th.equal(moved.weight.cpu(), weight)


def test_a_module_is_pruned_and_made_dense_where_it_is(device):
    th.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 8)).to(device)
    elsewhere = sparsify_(copy.deepcopy(net).cpu(), 0.8, seed=3)
    sparsify_(net, 0.8, seed=3)
    assert_on(net, device)
    for name, layer in sparse_layers(net).items():
        assert layer.topology == sparse_layers(elsewhere)[name].topology
        assert th.equal(layer.weight.cpu(), sparse_layers(elsewhere)[name].weight)
    x = th.randn(5, 20, device=device)
    th.testing.assert_close(to_dense(net)(x), net(x), rtol=1e-4, atol=1e-4)
    assert sparsity_report(net).sparsity == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_agents_train_and_travel(name, device, tmp_path):
    model, twin = make_agent(name, device), make_agent(name, "cpu")
    for (key, value), other in zip(model.policy.state_dict().items(), twin.policy.state_dict().values(), strict=True):
        assert th.equal(value.cpu(), other), f"{key} does not follow from the seed alone"
    before = {key: layer.values.detach().cpu().clone() for key, layer in sparse_layers(model.policy).items()}
    model.learn(24)
    assert_on(model.policy, device)
    layers = sparse_layers(model.policy)
    assert layers
    assert any(not th.equal(before[key], layer.values.cpu()) for key, layer in layers.items())
    assert all(parameter.isfinite().all() for parameter in model.policy.parameters())
    obs = observations()
    actions, _ = model.predict(obs, deterministic=True)
    model.save(tmp_path / "agent")
    for place in (other_device(device), device):
        loaded = type(model).load(tmp_path / "agent", device=place)
        assert_on(loaded.policy, place)
        for key, layer in sparse_layers(loaded.policy).items():
            assert layer.topology == layers[key].topology
            assert th.equal(layer.values.cpu(), layers[key].values.cpu())
        np.testing.assert_allclose(loaded.predict(obs, deterministic=True)[0], actions, atol=1e-4)
        loaded.set_env(model.get_env())
        loaded.learn(12)
        assert_on(loaded.policy, place)


@pytest.mark.parametrize("name", ["sac", "td3", "dqn"])
def test_one_observation(name, device):
    """By the compiled pass where it can be, and wherever the agent goes."""
    model, obs = make_agent(name, device).learn(12), observations()[0]
    network = next(getattr(model.policy, part) for part in ("actor", "q_net") if hasattr(model.policy, part))
    for place in (device, other_device(device), device, "cpu"):
        model.policy.to(place)
        with th.no_grad():
            # The memory that was left is given out again, with other numbers.
            for parameter in network.parameters():
                parameter.mul_(1.1)
        action, _ = model.policy.predict(obs, deterministic=True)
        together, _ = model.policy.predict(obs[None].repeat(2, 0), deterministic=True)
        np.testing.assert_allclose(action, together[0], atol=1e-4)
        acts_compiled = place == "cpu"
        assert (getattr(model.policy._pass, "fits", bool)()) == acts_compiled


def test_images_and_parts(device):
    space = spaces.Dict({"vector": VECTOR, "image": IMAGE})
    model = make_agent("sac", device, observation_space=space, features_extractor_kwargs={"cnn_output_dim": 16})
    model.learn(12)
    assert_on(model.policy, device)


def test_training_under_autocast(device):
    model = make_agent("sac", device)
    model.learn(12)
    with th.autocast(device, dtype=th.bfloat16):
        model.train(2, 8)
    assert all(parameter.isfinite().all() for parameter in model.policy.parameters())


@pytest.mark.filterwarnings("ignore:You are trying to run PPO on the GPU")
def test_on_policy(device):
    model = PPO("MlpPolicy", ReachEnv(), n_steps=32, batch_size=16, n_epochs=1, device=device, seed=0)
    sparsify_(model.policy, 0.8)
    model.policy.optimizer = th.optim.Adam(model.policy.parameters(), lr=1e-3)
    model.learn(64)
    assert_on(model.policy, device)


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("algorithm", [StreamAC, StreamQ, StreamSARSA])
def test_streaming(algorithm, adaptive, device, tmp_path):
    env = SpaceEnv(VECTOR, CONTINUOUS if algorithm is StreamAC else DISCRETE)
    policy_kwargs = {"net_arch": [16, 16], "sparsity": 0.5}
    model = algorithm("MlpPolicy", env, policy_kwargs=policy_kwargs, adaptive=adaptive, seed=0, device=device)
    model.learn(40)
    # Statistics of observations and rewards are numpy's, and stay in main memory.
    statistics = {id(buffer) for name in ("obs_norm", "reward_scaler") for buffer in getattr(model.policy, name).buffers()}
    tensors = [*model.policy.parameters(), *model.policy.buffers()]
    assert {tensor.device.type for tensor in tensors if id(tensor) not in statistics} == {device}
    assert all(parameter.isfinite().all() for parameter in model.policy.parameters())
    obs = observations()
    actions, _ = model.predict(obs, deterministic=True)
    model.save(tmp_path / "agent")
    loaded = algorithm.load(tmp_path / "agent", env=env, device=other_device(device))
    np.testing.assert_allclose(loaded.predict(obs, deterministic=True)[0], actions, atol=1e-4)
    loaded.learn(20, reset_num_timesteps=False)


@pytest.mark.parametrize("name", ["sac", "dqn", "qrdqn", "tqc"])
def test_plasticity_is_measured(name, device, tmp_path):
    model = make_agent(name, device).learn(40)
    weights = {key: value.clone() for key, value in model.policy.state_dict().items()}
    values = measure(model, n_samples=16, seed=1)
    assert all(th.equal(weights[key], value) for key, value in model.policy.state_dict().items())
    model.save(tmp_path / "agent")
    model.save_replay_buffer(tmp_path / "buffer")
    elsewhere = type(model).load(tmp_path / "agent", device="cpu")
    elsewhere.load_replay_buffer(tmp_path / "buffer")
    elsewhere.replay_buffer.device = th.device("cpu")
    expected = measure(elsewhere, n_samples=16, seed=1)
    assert values.keys() == expected.keys()
    # Noise in the losses is drawn on the device, and counts of units change by the last bit.
    same = [key for key in values if key.endswith(("parameter_norm", "feature_norm"))]
    assert same
    for key in same:
        assert values[key] == pytest.approx(expected[key], rel=1e-3), key
    assert all(np.isfinite(value) for value in values.values())


@pytest.mark.parametrize(
    ("strategy", "redraw"),
    [("full", False), ("full", True), ("last_layers", False), ("redo", False), ("shrink_perturb", False)],
)
def test_resets(strategy, redraw, device):
    model = make_agent("sac", device).learn(20)
    topologies = {key: layer.topology for key, layer in sparse_layers(model.policy).items()}
    options = {"batch_size": 8} if strategy == "redo" else {}
    reset_model_(model, strategy, redraw_topology=redraw, seed=1, **options)
    assert_on(model.policy, device)
    now = {key: layer.topology for key, layer in sparse_layers(model.policy).items()}
    assert (now == topologies) != redraw
    model.learn(20, reset_num_timesteps=False)
    assert all(parameter.isfinite().all() for parameter in model.policy.parameters())


def test_callbacks(device, tmp_path):
    model = make_agent("sac", device)
    callbacks = [
        PlasticityCallback(log_freq=16, n_samples=8, csv_path=tmp_path / "plasticity.csv"),
        ResetCallback(at=[24], strategy="full"),
    ]
    model.learn(40, callback=callbacks)
    assert len((tmp_path / "plasticity.csv").read_text().splitlines()) == 3
    assert_on(model.policy, device)
