"""
What a user of the package writes, for ``scripts/release_check.py``: mypy reads it in strict mode, and it runs, with the
installed wheel alone.

    python scripts/release_user.py FOLDER
"""

import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from stable_baselines3 import DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import CallbackList
from torch import nn
from typing_extensions import assert_type

from sb3_sparse import (
    DER,
    DrQv2,
    ExactCheckpoint,
    PlasticityCallback,
    Rainbow,
    ResetCallback,
    SparseLinear,
    SparseSimBaDQNPolicy,
    SparseSimBaPolicy,
    SparseSimBaTD3Policy,
    Sparsity,
    StreamAC,
    StreamQ,
    Topology,
    load_safe,
    measure,
    reset_model_,
    resume_exact,
    save_safe,
    sparsify_,
    sparsify_by_masks_,
    sparsity_report,
    to_dense,
    weight_decay_groups,
)
from sb3_sparse.export import PredictModule, export_torch, predict_module
from sb3_sparse.plasticity import fraction_active_units, srank
from sb3_sparse.results import Run, bootstrap_interval, read_runs
from sb3_sparse.sparse import SparsityReport, erdos_renyi

Array = npt.NDArray[np.float32]
# A copy for each: SAC writes `use_sde` into the dictionary that it is given.
SMALL: dict[str, Any] = {"width_scale": 0.1, "sparsity": 0.8}


class Line(gym.Env[Array, Array]):
    """Stay near the middle: an environment that needs nothing but Gymnasium."""

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(-2.0, 2.0, (3,), np.float32)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.place, self.steps = 0.0, 0

    def _observation(self) -> Array:
        return np.array([self.place, self.place**2 / 2, 1.0], dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=seed)
        self.place, self.steps = float(self.np_random.uniform(-1.0, 1.0)), 0
        return self._observation(), {}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        self.place = float(np.clip(self.place + 0.2 * float(action[0]), -2.0, 2.0))
        self.steps += 1
        return self._observation(), -abs(self.place), False, self.steps >= 50, {}


class Pictures(gym.Env[npt.NDArray[np.uint8], Array]):
    """Noise to look at, for the algorithms that learn from pixels."""

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(0, 255, (3, 48, 48), np.uint8)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.uint8], dict[str, Any]]:
        super().reset(seed=seed)
        return self.np_random.integers(0, 256, (3, 48, 48), np.uint8), {}

    def step(self, action: Array) -> tuple[npt.NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        return self.np_random.integers(0, 256, (3, 48, 48), np.uint8), float(action[0]), False, False, {}


def policies(folder: Path) -> SAC:
    """SB3's algorithms: trained, measured, reset, saved, loaded, gone on with."""
    callbacks = CallbackList(
        [
            PlasticityCallback(log_freq=100, n_samples=32, csv_path=folder / "plasticity.csv"),
            ResetCallback(every_env_steps=150, strategy="last_layers", networks=["critic"]),
        ]
    )
    model = SAC(SparseSimBaPolicy, Line(), policy_kwargs=dict(SMALL), learning_starts=50, seed=0)
    assert_type(model.learn(200, callback=callbacks), SAC)
    assert_type(sparsity_report(model.policy), SparsityReport)
    assert_type(measure(model, n_samples=32, metrics=["srank", "dormant_redo"]), dict[str, float])
    reset_model_(model, "shrink_perturb")

    model.save(folder / "agent")
    loaded = SAC.load(folder / "agent", env=Line())
    observation, _ = Line().reset(seed=1)
    action, _ = loaded.predict(observation, deterministic=True)
    np.testing.assert_array_equal(action, model.predict(observation, deterministic=True)[0])

    assert_type(save_safe(model, folder / "agent.safetensors"), Path)
    assert_type(load_safe(folder / "agent.safetensors"), BaseAlgorithm)
    assert_type(load_safe(folder / "agent.safetensors", algorithm=SAC), SAC)

    SAC("SparseSimBaPolicy", Line(), policy_kwargs=dict(SMALL), learning_starts=20).learn(
        60, callback=ExactCheckpoint(folder / "run", every=30)
    )
    assert_type(resume_exact(folder / "run"), BaseAlgorithm)
    TD3(SparseSimBaTD3Policy, Line(), policy_kwargs=dict(SMALL), learning_starts=20).learn(40)
    DQN(SparseSimBaDQNPolicy, "CartPole-v1", policy_kwargs=dict(SMALL), learning_starts=20).learn(40)
    return loaded


def algorithms(folder: Path) -> None:
    """Those of this package."""
    rainbow = Rainbow("MlpPolicy", "CartPole-v1", n_steps=3, policy_kwargs={"sparsity": 0.5}, learning_starts=20)
    assert_type(rainbow.learn(60), Rainbow)
    rainbow.save(folder / "rainbow")
    assert_type(Rainbow.load(folder / "rainbow"), Rainbow)
    der = DER("MlpPolicy", "CartPole-v1", learning_starts=20)
    assert_type(der.learn(30), DER)
    der.save(folder / "der")
    assert_type(DER.load(folder / "der"), DER)
    pixels = DrQv2("CnnPolicy", Pictures(), buffer_size=50, batch_size=8, learning_starts=20, policy_kwargs={"sparsity": 0.8})
    assert_type(pixels.learn(24), DrQv2)
    pixels.save(folder / "pixels")
    assert_type(DrQv2.load(folder / "pixels"), DrQv2)

    stream = StreamAC("MlpPolicy", Line(), policy_kwargs={"sparsity": 0.5}, seed=0)
    assert_type(stream.learn(100), StreamAC)
    stream.save(folder / "stream")
    assert_type(StreamAC.load(folder / "stream"), StreamAC)
    assert_type(StreamQ("MlpPolicy", "CartPole-v1").learn(50), StreamQ)


def modules() -> None:
    """Any module of torch."""
    net = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64))
    net = assert_type(sparsify_(net, sparsity=0.8, exclude=["0"], seed=0), nn.Sequential)
    layer = net[2]
    assert isinstance(layer, SparseLinear)
    assert_type(layer.values, nn.Parameter)
    assert_type(layer.weight, torch.Tensor)
    assert_type(layer.topology, Topology)
    features = net(torch.randn(32, 16))
    assert_type(srank(features), float)
    assert_type(fraction_active_units(features), float)
    torch.optim.AdamW(weight_decay_groups(net, 1e-2)).step()
    plain = assert_type(to_dense(net), nn.Sequential)
    torch.testing.assert_close(plain(torch.ones(1, 16)), net(torch.ones(1, 16)))

    masked = sparsify_by_masks_(nn.Sequential(nn.Linear(4, 4)), {"0": torch.eye(4) > 0})
    assert_type(masked, nn.Sequential)
    assert_type(Sparsity(0.9, "uniform").apply_(nn.Sequential(nn.Linear(8, 8))), nn.Sequential)
    assert_type(erdos_renyi({"a": (64, 16), "b": (64, 64)}, 0.8), dict[str, float])
    sparsify_(PPO("MlpPolicy", "CartPole-v1", n_steps=16, batch_size=16).policy, sparsity=0.5)


def files(model: SAC, folder: Path) -> None:
    """Export, and what runs leave behind."""
    observation, _ = Line().reset(seed=2)
    predict = assert_type(predict_module(model), PredictModule)
    action = predict(torch.as_tensor(observation)[None])
    np.testing.assert_allclose(action[0].detach().numpy(), model.predict(observation, deterministic=True)[0], atol=1e-5)
    assert_type(export_torch(model, folder / "agent.pt2"), Path)
    runs, _ = read_runs([str(folder)])
    assert_type(runs, list[Run])
    low, high = bootstrap_interval(np.array([[1.0], [2.0], [4.0]]))
    assert low[0] <= high[0]


def main(folder: Path) -> None:
    model = policies(folder)
    algorithms(folder)
    modules()
    files(model, folder)
    print("works")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
