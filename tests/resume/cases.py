"""Runs that are interrupted: small, fast, and with everything in them that a checkpoint has to hold."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from sb3_contrib import QRDQN, TQC, TRPO, CrossQ, RecurrentPPO
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3, HerReplayBuffer
from stable_baselines3.common.callbacks import CheckpointCallback, EvalCallback, EveryNTimesteps
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack, VecMonitor, VecNormalize

from sb3_sparse import PlasticityCallback, ResetCallback, StreamAC, StreamQ, StreamSARSA, make_dmc, make_dmc_pixels
from sb3_sparse.atari import make_atari
from sb3_sparse.rainbow import DER, Rainbow
from sb3_sparse.replay import FrameReplayBuffer
from tests.drqv2 import pictures as drqv2
from tests.pixels.tasks import FASTEST
from tests.resume.pictures import PictureEnv

# Copied for each model: SB3 writes into what it is given.
SMALL = dict(net_arch=[16, 16])
SPARSE = dict(net_arch={"pi": [16], "qf": [16]}, sparsity=0.5)
SPARSE_Q = dict(net_arch=[16], sparsity=0.5)
OFF_POLICY = dict(learning_starts=40, buffer_size=1000, batch_size=16)
VALUES = dict(OFF_POLICY, train_freq=2, target_update_interval=50)


@dataclass
class Case:
    """A run, and where it is interrupted."""

    make: Callable[[Path], Any]
    """The model, given a folder that it may write to."""
    total: int = 400
    every: int = 137
    """A checkpoint at the first point after so many steps."""
    callbacks: Callable[[Path], list[Any]] = field(default=lambda folder: [])


def pendulum(n: int = 1, kind: Any = DummyVecEnv) -> Any:
    return make_vec_env("Pendulum-v1", n, seed=3, vec_env_cls=kind)


def ou_noise(n: int = 1) -> OrnsteinUhlenbeckActionNoise:
    return OrnsteinUhlenbeckActionNoise(np.zeros(n), 0.3 * np.ones(n))


def sac(env: Any = "Pendulum-v1", policy: Any = "MlpPolicy", **kwargs: Any) -> Any:
    kwargs.setdefault("policy_kwargs", dict(SMALL if policy == "MlpPolicy" else SPARSE))
    return SAC(policy, env, seed=0, device="cpu", **{**OFF_POLICY, **kwargs})


def dqn(kind: Any, policy: Any = "MlpPolicy", env: Any = "CartPole-v1", **kwargs: Any) -> Any:
    kwargs.setdefault("policy_kwargs", dict(SMALL if policy == "MlpPolicy" else SPARSE_Q))
    return kind(policy, env, seed=0, device="cpu", **{**VALUES, **kwargs})


def pictures(n: int = 1) -> Any:
    return VecFrameStack(DummyVecEnv([PictureEnv for _ in range(n)]), 4)


def stored(folder: Path | None) -> Any:
    """Single frames, in a file or in memory, in a ring that begins anew between a checkpoint and the end."""
    in_a_file = {} if folder is None else dict(storage_path=folder / "store", flush_every=30, rewind=500)
    return dqn(
        DQN,
        "CnnPolicy",
        pictures(2),
        policy_kwargs=dict(features_extractor_kwargs=dict(features_dim=8), net_arch=[8]),
        replay_buffer_class=FrameReplayBuffer,
        replay_buffer_kwargs=dict(n_stack=4, n_steps=3, **in_a_file),
        buffer_size=100,
        train_freq=8,
    )


def visual(env: Any, folder: Path | None = None, **kwargs: Any) -> Any:
    """DrQ-v2 with a sparse critic, its frames in a file or in memory, in a ring that begins anew before the end."""
    in_a_file = {} if folder is None else dict(storage_path=folder / "store", flush_every=30, rewind=500)
    policy_kwargs = dict(sparsity=0.8, critic_width_scale=2)
    return drqv2.agent(env, policy_kwargs, learning_starts=40, exploration_steps=150, replay_buffer_kwargs=in_a_file, **kwargs)


def dots(n: int, ends: bool) -> Any:
    return make_vec_env(drqv2.Dot, n, seed=3, env_kwargs=dict(length=17, ends=ends))


def small_cartpole(folder: Path) -> Any:
    # Episodes of 50 decisions.
    short = dict(task_kwargs={"time_limit": 1})
    return visual(make_dmc_pixels("cartpole", "balance", size=24, rendering=FASTEST, **short), folder)


def falling(progress: float) -> float:
    return 1e-3 * progress


CASES: dict[str, Case] = {
    "sac": Case(lambda _: sac()),
    "sac sparse": Case(lambda _: sac(policy="SparseSimBaPolicy")),
    "sac schedule": Case(lambda _: sac(learning_rate=falling)),
    "sac gsde": Case(lambda _: sac(use_sde=True, train_freq=8, sde_sample_freq=-1)),
    "sac gsde often": Case(lambda _: sac(use_sde=True, train_freq=8, sde_sample_freq=3, use_sde_at_warmup=True)),
    "sac episodes": Case(lambda _: sac(train_freq=(1, "episode"), gradient_steps=5), total=1000, every=300),
    "sac n-step": Case(lambda _: sac(n_steps=3)),
    "sac wraps": Case(lambda _: sac(buffer_size=60)),
    "sac 3 envs": Case(lambda _: sac(pendulum(3), train_freq=2, gradient_steps=-1), total=600),
    "sac subproc": Case(lambda _: sac(pendulum(2, SubprocVecEnv)), total=300, every=100),
    "sac normalised": Case(lambda _: sac(VecNormalize(pendulum(3))), total=600),
    "sac normalised monitor": Case(
        lambda _: sac(VecMonitor(VecNormalize(DummyVecEnv([lambda: gym.make("Pendulum-v1")] * 2)))), total=500
    ),
    "sac noise on 2": Case(lambda _: sac(pendulum(2), action_noise=ou_noise()), total=500),
    "sac halfcheetah": Case(lambda _: sac("HalfCheetah-v5"), total=250, every=80),
    "sac ant": Case(lambda _: sac("Ant-v5"), total=250, every=80),
    "sac humanoid": Case(lambda _: sac("Humanoid-v5"), total=250, every=80),
    "sac walker": Case(lambda _: sac(make_dmc("walker", "walk")), total=700, every=260),
    "sac reacher": Case(lambda _: sac(make_dmc("reacher", "easy")), total=700, every=260),
    "sac fish": Case(lambda _: sac(make_dmc("fish", "swim")), total=700, every=260),
    "sac dog": Case(lambda _: sac(make_dmc("dog", "walk")), total=150, every=60),
    "td3": Case(
        lambda _: TD3("MlpPolicy", "Pendulum-v1", seed=0, policy_kwargs=dict(SMALL), action_noise=ou_noise(), **OFF_POLICY)
    ),
    "td3 sparse": Case(lambda _: TD3("SparseSimBaPolicy", "Pendulum-v1", seed=0, policy_kwargs=dict(SPARSE), **OFF_POLICY)),
    "ddpg": Case(
        lambda _: DDPG(
            "MlpPolicy",
            "Pendulum-v1",
            seed=0,
            policy_kwargs=dict(SMALL),
            action_noise=NormalActionNoise(np.zeros(1), np.ones(1)),
            **OFF_POLICY,
        )
    ),
    "tqc": Case(lambda _: TQC("SparseSimBaPolicy", "Pendulum-v1", seed=0, policy_kwargs=dict(SPARSE), **OFF_POLICY)),
    "crossq": Case(lambda _: CrossQ("MlpPolicy", "Pendulum-v1", seed=0, policy_kwargs=dict(SMALL), **OFF_POLICY)),
    "crossq sparse": Case(
        lambda _: CrossQ("SparseSimBaPolicy", "Pendulum-v1", seed=0, policy_kwargs=dict(SPARSE), **OFF_POLICY)
    ),
    "dqn": Case(lambda _: dqn(DQN)),
    "dqn sparse": Case(lambda _: dqn(DQN, "SparseSimBaPolicy")),
    "qrdqn": Case(lambda _: dqn(QRDQN, "SparseSimBaPolicy")),
    "rainbow": Case(lambda _: dqn(Rainbow)),
    "rainbow sparse": Case(lambda _: dqn(Rainbow, "SparseSimBaPolicy")),
    "der": Case(lambda _: dqn(DER, beta=lambda progress: 1 - 0.5 * progress)),
    "rainbow frames": Case(
        lambda _: dqn(
            Rainbow,
            "CnnPolicy",
            pictures(2),
            policy_kwargs=dict(features_extractor_kwargs=dict(features_dim=8), net_arch=[8]),
            replay_buffer_kwargs=dict(n_stack=4),
            buffer_size=160,
            train_freq=8,
        ),
        total=500,
        every=170,
    ),
    "dqn stored": Case(stored, total=600, every=170),
    "drqv2": Case(lambda _: visual(dots(1, ends=False)), total=200, every=70),
    "drqv2 stored": Case(lambda folder: visual(dots(2, ends=True), folder, gradient_steps=-1), total=200, every=70),
    "drqv2 pixels": Case(small_cartpole, total=150, every=60),
    "her": Case(
        lambda _: SAC(
            "MultiInputPolicy",
            BitFlippingEnv(n_bits=4, continuous=True, max_steps=6),
            replay_buffer_class=HerReplayBuffer,
            seed=0,
            policy_kwargs=dict(SMALL),
            **OFF_POLICY,
        )
    ),
    "ppo": Case(
        lambda _: PPO("MlpPolicy", "CartPole-v1", n_steps=64, seed=0, policy_kwargs=dict(SMALL), n_epochs=2), total=512
    ),
    "ppo gsde": Case(
        lambda _: PPO(
            "MlpPolicy",
            VecNormalize(pendulum(2)),
            n_steps=32,
            seed=0,
            use_sde=True,
            policy_kwargs=dict(SMALL),
            learning_rate=falling,
        ),
        total=512,
    ),
    "recurrent ppo": Case(
        lambda _: RecurrentPPO(
            "MlpLstmPolicy",
            "CartPole-v1",
            seed=0,
            n_steps=64,
            n_epochs=2,
            policy_kwargs=dict(lstm_hidden_size=8, **SMALL),
        ),
        total=400,
    ),
    "trpo": Case(lambda _: TRPO("MlpPolicy", "CartPole-v1", n_steps=128, seed=0, policy_kwargs=dict(SMALL)), total=512),
    "dqn atari": Case(
        lambda _: dqn(
            DQN,
            "CnnPolicy",
            VecFrameStack(DummyVecEnv([lambda: make_atari("Breakout")]), 4),
            policy_kwargs=dict(features_extractor_kwargs=dict(features_dim=8), net_arch=[8]),
            replay_buffer_class=FrameReplayBuffer,
            train_freq=16,
        )
    ),
    "a2c": Case(lambda _: A2C("MlpPolicy", "CartPole-v1", seed=0, policy_kwargs=dict(SMALL))),
    "stream ac": Case(lambda _: StreamAC("MlpPolicy", "Pendulum-v1", seed=0, policy_kwargs=dict(net_arch=[16])), 800, 300),
    "stream ac discrete": Case(
        lambda _: StreamAC("MlpPolicy", "CartPole-v1", seed=0, adaptive=True, policy_kwargs=dict(net_arch=[16]))
    ),
    "stream q": Case(lambda _: StreamQ("MlpPolicy", "CartPole-v1", seed=0, policy_kwargs=dict(net_arch=[16]))),
    "stream sarsa": Case(lambda _: StreamSARSA("MlpPolicy", "CartPole-v1", seed=0, policy_kwargs=dict(net_arch=[16]))),
    "sac resets": Case(
        lambda _: sac(policy="SparseSimBaPolicy"),
        callbacks=lambda _: [
            ResetCallback(every_env_steps=110, strategy="full"),
            ResetCallback(at=[90, 310], strategy="redo"),
        ],
    ),
    "sac plasticity": Case(
        lambda _: sac(),
        callbacks=lambda folder: [PlasticityCallback(log_freq=90, n_samples=32, csv_path=folder / "plasticity.csv")],
    ),
    "ppo plasticity": Case(
        lambda _: PPO("MlpPolicy", "CartPole-v1", n_steps=64, seed=0, policy_kwargs=dict(SMALL), n_epochs=2),
        512,
        callbacks=lambda folder: [PlasticityCallback(log_freq=100, n_samples=100, csv_path=folder / "plasticity.csv")],
    ),
    "stream plasticity": Case(
        lambda _: StreamQ("MlpPolicy", "CartPole-v1", seed=0, policy_kwargs=dict(net_arch=[16])),
        callbacks=lambda folder: [PlasticityCallback(log_freq=90, n_samples=80, csv_path=folder / "plasticity.csv")],
    ),
    "dqn evaluated": Case(
        lambda _: dqn(DQN),
        callbacks=lambda folder: [
            EvalCallback(
                make_vec_env("CartPole-v1", seed=5),
                n_eval_episodes=2,
                eval_freq=50,
                log_path=str(folder),
                verbose=0,
                warn=False,
            ),
            EveryNTimesteps(60, CheckpointCallback(1, str(folder / "saved"))),
        ],
    ),
}

# What not everybody has installed.
NEEDS = {"dqn atari": ("ale_py", "cv2"), **dict.fromkeys(("sac halfcheetah", "sac ant", "sac humanoid"), ("mujoco",))}
NEEDS |= dict.fromkeys(("sac walker", "sac reacher", "sac fish", "sac dog", "drqv2 pixels"), ("dm_control",))


def skip_without_packages(name: str) -> None:
    """Skip a test of a case that cannot be made here."""
    for package in NEEDS.get(name, ()):
        pytest.importorskip(package)
