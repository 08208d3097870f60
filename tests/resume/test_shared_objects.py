"""When training starts, an environment is tested: what it holds are the same objects afterwards, with the same content."""

import random
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnvWrapper

from sb3_sparse.resume import ExactCheckpoint
from sb3_sparse.resume.environments.vec_env import capture_env, why_not_exact
from tests.resume.cases import sac
from tests.resume.comparing import differences, everything


@dataclass
class Config:
    """Of no library."""

    level: float = 1.0
    history: list = field(default_factory=list)


class Slots:
    """Without a dictionary."""

    __slots__ = ("config", "unset")

    def __init__(self, config):
        self.config = config


class Plain(dict):
    """A dictionary of a user."""


def inside(kind):
    """Something that is shared, by which way the environment holds it, and what it looks like inside."""
    config = Config()
    return config, {
        "itself": config,
        "in a dictionary": {"a": {"b": config}},
        "in a list": [[config], 1],
        "in a tuple": ((config,),),
        "as a method": SimpleNamespace(get=config.history.copy, config=config),
        "in a dictionary of a user": Plain(a=config),
        "by keyword": partial(dict, config=config),
        "in slots": Slots(config),
        "in an array": np.array([config, None], dtype=object),
    }[kind]


def found(value):
    """The configuration that is in there."""
    if isinstance(value, Config):
        return value
    if isinstance(value, partial):
        return value.keywords["config"]
    if isinstance(value, (dict, list, tuple, np.ndarray)):
        return found(next(iter(value.values() if isinstance(value, dict) else value)))
    return value.config


class Scaled(gym.Wrapper):
    """Multiplies rewards by a level that somebody else may change, too."""

    def __init__(self, env, held):
        super().__init__(env)
        self.held = held

    def step(self, action):
        obs, reward, *rest = self.env.step(action)
        found(self.held).history.append(reward)
        return obs, reward * found(self.held).level, *rest


class Raising(BaseCallback):
    """Changes the level now and then."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.rewards = []

    def _on_step(self):
        self.rewards.append(float(self.locals["rewards"][0]))
        if self.num_timesteps % 20 == 0:
            self.config.level += 1
        return True


KINDS = (
    *("itself", "in a dictionary", "in a list", "in a tuple", "as a method", "in a dictionary of a user"),
    *("by keyword", "in slots", "in an array"),
)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_shared_with_a_callback_stays_shared(kind, tmp_path):
    def run(*callbacks):
        config, held = inside(kind)
        model = sac(Scaled(gym.make("Pendulum-v1"), held))
        raising = Raising(config)
        model.learn(100, callback=[*callbacks, raising])
        return everything(model), raising.rewards, config.level, config.history

    assert not differences(run(), run(ExactCheckpoint(tmp_path / "run")))


class Together(gym.Wrapper):
    """Of several environments with one list, the length of which is seen in rewards."""

    def __init__(self, env, seen):
        super().__init__(env)
        self.seen = seen

    def step(self, action):
        obs, reward, *rest = self.env.step(action)
        return obs, reward + 0.1 * len(self.seen), *rest


class Around(VecEnvWrapper):
    """Knows the list of the environments, too."""

    def __init__(self, venv, seen):
        super().__init__(venv)
        self.seen = seen

    def reset(self):
        return self.venv.reset()

    def step_wait(self):
        obs, rewards, dones, infos = self.venv.step_wait()
        return obs, rewards + len(self.seen), dones, infos


class Adding(BaseCallback):
    """Lets the list grow."""

    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def _on_step(self):
        self.seen.append(self.num_timesteps)
        return True


def test_what_environments_share_stays_shared(tmp_path):
    def run(*callbacks):
        seen = []
        env = Around(DummyVecEnv([lambda: Together(gym.make("Pendulum-v1"), seen)] * 2), seen)
        model = sac(env)
        model.learn(100, callback=[*callbacks, Adding(seen)])
        assert all(each.seen is seen for each in (env, *env.unwrapped.envs))
        return everything(model)

    assert not differences(run(), run(ExactCheckpoint(tmp_path / "run")))


LEVEL = {"level": 1.0}


class OfModule(gym.Wrapper):
    """Holds a variable of the module."""

    def __init__(self, env):
        super().__init__(env)
        self.shared = LEVEL

    def step(self, action):
        obs, reward, *rest = self.env.step(action)
        return obs, reward * self.shared["level"], *rest

    def up(self):
        LEVEL["level"] += 1


class Up(BaseCallback):
    """Changes the variable where the environment is."""

    def _on_step(self):
        if self.num_timesteps % 20 == 0:
            self.training_env.env_method("up")
        return True


@pytest.mark.parametrize("kind", [DummyVecEnv, SubprocVecEnv])
def test_a_variable_of_a_module_stays_the_one_of_the_environment(kind, tmp_path):
    def run(*callbacks):
        LEVEL["level"] = 1.0
        model = sac(kind([lambda: OfModule(gym.make("Pendulum-v1"))])).learn(100, callback=[*callbacks, Up()])
        found = everything(model)
        model.env.close()
        return found

    assert not differences(run(), run(ExactCheckpoint(tmp_path / "run")))


Pair = namedtuple("Pair", "a b")


class Everything(gym.Wrapper):
    """Holds objects of many kinds, all of which change with each step."""

    def __init__(self, env):
        super().__init__(env)
        self.n = 0
        self.dict, self.list, self.set, self.deque = {"a": 0}, [0], {0}, deque([0], maxlen=3)
        self.counter, self.default, self.ordered = Counter(a=1), defaultdict(list), OrderedDict(a=1, b=2)
        self.array, self.view, self.tensor = np.zeros((2, 3)), None, th.zeros(2)
        self.view = self.array[1:]
        self.generator, self.old, self.python = np.random.default_rng(1), np.random.RandomState(1), random.Random(1)
        self.bits = self.generator.bit_generator
        self.bytes, self.config, self.space = bytearray(b"abc"), Config(), SimpleNamespace(x=[1])
        self.pair, self.user, self.method = Pair([1], {2}), Plain(a=1), self.config.history.append
        self.user.more = 1
        self.itself = [self.dict]
        self.itself.append(self.itself)

    def step(self, action):
        obs, reward, *rest = self.env.step(action)
        n = self.n = self.n + 1
        self.dict[n], self.dict["a"] = n, [n]
        self.list.append(n), self.set.add(n), self.deque.append(n), self.default[n].append(n), self.pair.a.append(n)
        self.pair.b.add(n), self.space.x.append(n), self.config.history.append(n)
        self.counter["a"] += n
        self.ordered.move_to_end("a")
        self.ordered[n] = n
        self.array += self.generator.random((2, 3)) + self.old.rand() + self.python.random()
        self.tensor += 1
        self.bytes.append(n % 256)
        self.config.level += n
        self.config.new = n
        self.user[n], self.user.more = n, n
        return obs, reward + self.array.sum() + float(self.tensor.sum()) + self.config.level, *rest


def test_objects_of_each_kind_are_the_same_with_the_same_content():
    env = DummyVecEnv([lambda: Everything(gym.make("Pendulum-v1"))])
    env.reset()
    (held,) = env.envs
    before, content = dict(vars(held)), capture_env(env)
    assert why_not_exact(env) is None
    assert [name for name, value in vars(held).items() if value is not before[name]] == []
    assert held.view.base is held.array
    assert held.bits is held.generator.bit_generator
    assert held.itself[1] is held.itself
    assert (held.user, held.user.more, held.set, list(held.ordered)) == ({"a": 1}, 1, {0}, ["a", "b"])
    assert not hasattr(held.config, "new")
    assert capture_env(env)["inner"] == content["inner"]


class Closed:
    """Only pickle knows what is in it."""

    def __init__(self, shared):
        self.n, self.shared = 0, shared

    def __getstate__(self):
        return self.n, self.shared

    def __setstate__(self, state):
        self.n, self.shared = state


class Mixed(gym.Wrapper):
    """Holds something that cannot be put back in place, what refers to it, and something else."""

    def __init__(self, env):
        super().__init__(env)
        self.shared, self.alone = [0], [0]
        self.closed = Closed(self.shared)
        self.refers = [self.closed]

    def step(self, action):
        obs, reward, *rest = self.env.step(action)
        self.refers[0].n += 1
        self.closed.shared.append(self.closed.n)
        self.alone[0] += 1
        return obs, reward + self.shared[-1] + self.alone[0], *rest


def test_what_cannot_be_put_back_in_place_is_a_copy_with_all_that_refers_to_it():
    env = DummyVecEnv([lambda: Mixed(gym.make("Pendulum-v1"))])
    env.reset()
    (held,) = env.envs
    before = dict(vars(held))
    assert why_not_exact(env) is None
    assert held.alone is before["alone"]
    assert held.closed is not before["closed"]
    assert held.refers[0] is held.closed
    assert held.closed.shared is held.shared
    assert (held.shared, held.closed.n, held.alone) == ([0], 0, [0])
    # Who else has it sees nothing of the test.
    assert before["shared"] == [0]


class Frozen:
    """Is written, and cannot be read."""

    def __init__(self):
        self.n = 1

    def __setstate__(self, state):
        raise ZeroDivisionError("no")


class Holding(gym.Wrapper):
    """Holds one of these."""

    def __init__(self, env):
        super().__init__(env)
        self.frozen = Frozen()


def test_what_cannot_be_read_again_ends_no_training():
    env = DummyVecEnv([lambda: Holding(gym.make("Pendulum-v1"))])
    env.reset()
    assert "cannot be read again (ZeroDivisionError: no)" in why_not_exact(env)


@dataclass(unsafe_hash=True)
class Robot:
    """Has another hash after each step."""

    steps: int = 0


class Carrying(gym.Env):
    """What is carried lies in tables of a robot that changes."""

    observation_space, action_space = gym.spaces.Box(0, 9, (1,)), gym.spaces.Box(-1, 1, (1,))

    def __init__(self, table):
        self.table, self.robot = table, Robot()
        self.table[self.robot], self.seen = 5.0, {self.robot}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        load = self.table.pop(self.robot, 0.0)
        self.seen.discard(self.robot)
        self.robot.steps += 1
        self.table[self.robot] = load
        self.seen.add(self.robot)
        return np.zeros(1, np.float32), load + len(self.seen), False, False, {}


@pytest.mark.parametrize("table", [dict, OrderedDict, Plain])
def test_tables_find_what_lies_there_by_a_key_that_changes(table):
    env = DummyVecEnv([lambda: Carrying(table())])
    env.reset()
    assert why_not_exact(env) is None
    assert [env.step(np.zeros((1, 1)))[1][0] for _ in range(3)] == [6.0, 6.0, 6.0]
