"""What users add to algorithms, policies, buffers, noises and callbacks goes on exactly, or is named."""

import collections
from dataclasses import dataclass

import numpy as np
import pytest
import torch as th
from sb3_contrib import MaskablePPO
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.buffers import ReplayBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback
from stable_baselines3.common.envs import IdentityEnv
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import nn

from sb3_sparse.resume import resume_exact
from sb3_sparse.resume.checkpoint import StoppedOnRequest
from tests.resume.cases import OFF_POLICY, SMALL, sac
from tests.resume.comparing import differences, everything
from tests.resume.test_exact import Interrupted, scramble


def nothing():
    return []


def both(folder, make, callbacks=nothing, total=300, more=lambda model: {}, **learn):
    """What differs between a run and one that was interrupted."""
    expected = make().learn(total, callback=callbacks(), **learn)
    wanted = everything(expected), more(expected)
    with pytest.raises(StoppedOnRequest):
        make().learn(total, callback=[Interrupted(folder / "run", 120), *callbacks()], **learn)
    scramble()
    found = resume_exact(folder / "run", callback=callbacks())
    return differences(wanted, (everything(found), more(found)))


class Curious(SAC):
    """With networks, an optimizer, a generator and counters that SB3's files know nothing of."""

    def _setup_model(self):
        super()._setup_model()
        self.bonus = nn.ModuleList([nn.Linear(3, 4)])
        self.ensemble = [nn.Linear(3, 1) for _ in range(2)]
        self.bonus_optimizer = th.optim.Adam([*self.bonus.parameters(), *self.ensemble[0].parameters()], 1e-2)
        self.generator = th.Generator().manual_seed(0)
        self.counts = collections.Counter()

    def train(self, gradient_steps, batch_size=64):
        super().train(gradient_steps, batch_size)
        obs = self.replay_buffer.sample(8).observations
        loss = (self.bonus[0](obs) ** 2).mean() + (self.ensemble[0](obs) ** 2).mean()
        self.bonus_optimizer.zero_grad()
        loss.backward()
        self.bonus_optimizer.step()
        self.counts["updates"] += 1
        with th.no_grad():
            noise = th.rand((), generator=self.generator)
            self.actor.mu.bias += 1e-3 * loss + 1e-3 * noise + 1e-6 * self.counts["updates"]


def test_networks_and_counters_of_an_algorithm(tmp_path):
    def more(model):
        states = [each.state_dict() for each in (model.bonus, *model.ensemble, model.bonus_optimizer)]
        return {"states": states, "counts": dict(model.counts)}

    def make():
        return Curious("MlpPolicy", "Pendulum-v1", seed=0, policy_kwargs=dict(SMALL), **OFF_POLICY)

    assert not both(tmp_path, make, more=more)


class Drifting(FlattenExtractor):
    """Keeps a number, a tensor, a whole number in a buffer that is not saved, and a dictionary."""

    def __init__(self, observation_space):
        super().__init__(observation_space)
        self.n, self.running, self.seen = 0, th.zeros(3), collections.defaultdict(float)
        self.register_buffer("k", th.zeros((), dtype=th.int64), persistent=False)

    def forward(self, observations):
        self.n += 1
        self.k += 1
        self.seen["x"] += 1e-4
        self.running = 0.9 * self.running + 0.1 * observations.detach().mean(0)
        return observations + 0.1 * self.running + 1e-4 * (self.n + self.k) + self.seen["x"]


def test_what_an_extractor_keeps_itself(tmp_path):
    assert not both(tmp_path, lambda: sac(policy_kwargs=dict(SMALL, features_extractor_class=Drifting)))


class Freezing(BaseCallback):
    """Some layers are not trained any more."""

    def _on_step(self):
        if self.num_timesteps == 100:
            for parameter in self.model.actor.latent_pi.parameters():
                parameter.requires_grad_(False)
        return True


def test_frozen_layers_stay_frozen(tmp_path):
    assert not both(tmp_path, sac, lambda: [Freezing()])


@dataclass
class Progress:
    """Of no library."""

    steps: int = 0


class Scheduling(BaseCallback):
    """A learning rate by a scheduler of torch, and counters in objects."""

    def __init__(self, network=None):
        super().__init__()
        self.network = network
        self.counts, self.progress = collections.Counter(), Progress()

    def _on_training_start(self):
        self.scheduler = th.optim.lr_scheduler.StepLR(self.model.ent_coef_optimizer, 7, 0.9)

    def _on_step(self):
        self.counts["steps"] += 1
        self.progress.steps += 1
        with th.no_grad():
            self.network.bias += 0.01
            if self.counts["steps"] % 100 == 0:
                self.model.actor.mu.bias += 0.01 * self.progress.steps + 0.01 * self.network.bias.sum()
        if self.counts["steps"] > 50:
            self.scheduler.step()
            for group in self.model.ent_coef_optimizer.param_groups:
                group["weight_decay"] = group["lr"]
        return True


def test_a_scheduler_and_counters_of_a_callback(tmp_path):
    # The network is one that it is given.
    assert not both(tmp_path, sac, lambda: [Scheduling(nn.Linear(1, 1, bias=True).requires_grad_(False).apply(zero))])


def zero(module):
    nn.init.zeros_(module.bias)


class Centred(RolloutBuffer):
    """Subtracts a running mean from rewards."""

    mean = 0.0

    def add(self, obs, action, reward, *rest):
        self.mean = 0.9 * self.mean + 0.1 * float(reward.mean())
        super().add(obs, action, reward - self.mean, *rest)


def ppo(kind=PPO, env="CartPole-v1", **kwargs):
    return kind("MlpPolicy", env, n_steps=64, seed=0, policy_kwargs=dict(SMALL), n_epochs=2, **kwargs)


def test_a_rollout_buffer_of_a_user(tmp_path):
    assert not both(tmp_path, lambda: ppo(rollout_buffer_class=Centred), total=512)


class Growing(ReplayBuffer):
    """Counts in an object."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.counts = collections.Counter()

    def add(self, obs, next_obs, action, reward, done, infos):
        self.counts["n"] += 1
        super().add(obs, next_obs, action, reward + 0.01 * self.counts["n"], done, infos)


@pytest.mark.parametrize("kind", ["of a user", "saves memory"])
def test_a_replay_buffer(kind, tmp_path):
    options = dict(replay_buffer_class=Growing)
    if kind == "saves memory":
        options = dict(optimize_memory_usage=True, replay_buffer_kwargs=dict(handle_timeout_termination=False))
    assert not both(tmp_path, lambda: sac(**options))


class Sine(ActionNoise):
    """Has a function among its attributes, and counts in an object."""

    def __init__(self):
        super().__init__()
        self.counts, self.wave = collections.Counter(), lambda n: np.array([0.1 * np.sin(n)])

    def __call__(self):
        self.counts["n"] += 1
        return self.wave(self.counts["n"])


def test_a_noise_of_a_user(tmp_path):
    assert not both(tmp_path, lambda: sac(action_noise=Sine()))


class Counting:
    """A schedule that counts how often it is asked."""

    def __init__(self):
        self.n = 0

    def __call__(self, progress):
        self.n += 1
        return 1e-3 / (1 + 0.01 * self.n)


@pytest.mark.parametrize("kind", ["sac", "ppo"])
def test_a_schedule_that_counts(kind, tmp_path):
    if kind == "sac":
        assert not both(tmp_path, lambda: sac(learning_rate=Counting()))
    else:
        assert not both(tmp_path, lambda: ppo(learning_rate=Counting(), clip_range=Counting()), total=512)


class Masked(IdentityEnv):
    """Says that only one action is allowed."""

    def action_masks(self):
        return np.array([True, False])


def test_arguments_of_learn(tmp_path):
    assert not both(tmp_path, lambda: ppo(MaskablePPO, Masked(dim=2, ep_length=20)), total=512, use_masking=False)


class WithArgument(SAC):
    """Its ``learn`` knows something that callbacks are not told."""

    def learn(self, total_timesteps, callback=None, beta=0.5, **kwargs):
        self.beta = beta
        return super().learn(total_timesteps, callback, **kwargs)


def test_an_argument_that_nobody_is_told_of_is_named(tmp_path):
    model = WithArgument("MlpPolicy", "Pendulum-v1", seed=0, policy_kwargs=dict(SMALL), **OFF_POLICY)
    with (
        pytest.warns(UserWarning, match=r"not exact if it matters: beta= of WithArgument\.learn"),
        pytest.raises(StoppedOnRequest),
    ):
        model.learn(200, callback=Interrupted(tmp_path / "run", 60), beta=0.1)


class Lost(BaseCallback):
    """Keeps things that cannot be written."""

    def __init__(self):
        super().__init__()
        self.numbers, self.code, self.networks = iter(i for i in range(9)), lambda x: x, {"a": (nn.Linear(1, 1), object())}
        self.hidden = Progress(nn.Linear(1, 1))

    def _on_step(self):
        return True


def test_what_cannot_be_written_is_named_when_training_begins(tmp_path):
    memory = []

    def remembers(local, _):
        memory.append(local["self"].num_timesteps)
        return True

    with pytest.warns(UserWarning, match="not exact") as caught:
        sac().learn(10, callback=[Interrupted(tmp_path / "run", 60), Lost(), ConvertCallback(remembers)])
    (message,) = [str(each.message) for each in caught if "not exact" in str(each.message)]
    assert "matters: ConvertCallback of a function, Lost.hidden, Lost.numbers, which cannot be written" in message


class Listed(BaseCallback):
    """With a setting that is no number."""

    def __init__(self, levels):
        super().__init__()
        self.levels = levels

    def _on_step(self):
        return True


def test_settings_that_are_no_numbers_are_compared(tmp_path):
    with pytest.raises(StoppedOnRequest):
        sac().learn(200, callback=[Interrupted(tmp_path / "run", 120), Listed(np.ones(2))])
    with pytest.warns(UserWarning, match=r"Listed goes on with levels=array\(\[0\., 0\.\]\) instead of array\(\[1\., 1\.\]\)"):
        resume_exact(tmp_path / "run", callback=Listed(np.zeros(2)))
