"""
Constructors called with anything: what is right works, and what is wrong is an error that names it.

The calls follow from a seed. Each has good values for its keywords and, half of the time, a bad one. With good values alone
the call has to work, and so has a first use; with a bad one it has to raise a ``ValueError`` or ``TypeError`` that names the
keyword and the value. Another exception, or none, is a finding.

``SB3_SPARSE_FUZZ_CALLS`` sets the number of calls (``make full``: 2,000).
"""

import math
import os
import traceback
import warnings
from collections.abc import Mapping

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import QRDQN, TQC, CrossQ
from stable_baselines3 import DDPG, DQN, SAC, TD3
from torch import nn

from sb3_sparse import SparseLinear, Topology, sparsify_, to_dense
from sb3_sparse.dmc import DMCWrapper
from sb3_sparse.plasticity import PlasticityCallback, ResetCallback
from sb3_sparse.sparse import erdos_renyi, uniform
from sb3_sparse.streaming import StreamAC, StreamQ, StreamSARSA
from sb3_sparse.streaming.obgd import AdaptiveObGD, ObGD
from tests.envs import SpaceEnv

CALLS = int(os.environ.get("SB3_SPARSE_FUZZ_CALLS", "600"))
CHUNKS = 20

NAN, INF = float("nan"), float("inf")
NO_NUMBER = ["0.5", None, True, [0.5], {}, 1j, NAN, INF, np.array([1.0, 2.0])]
NO_WHOLE = ["3", None, True, [3], {}, 1.5, NAN, INF, np.float64(2.5), np.array([1, 2])]
FLAG = ([True, False, np.bool_(True)], [1, 0, "yes", None, 0.5, [], NAN])
FRACTION = ([0, 0.5, 1, np.float32(0.25), np.array(0.75)], [-0.1, 1.5, np.float64(2.0), *NO_NUMBER])
POSITIVE = ([0.5, 2, np.float32(1.5), np.int64(3)], [0, -1.0, *NO_NUMBER])
NON_NEGATIVE = ([0, 0.5, np.float64(0.01)], [-0.5, *NO_NUMBER])
WHOLE = ([1, 3, np.int64(5), np.array(2), 4.0], [0, -2, *NO_WHOLE])
SPARSITY = ([0, 0.5, 0.9, np.float32(0.8), np.array(0.6)], [1, 1.0, -0.1, *NO_NUMBER])
NAME = ([], ["nonsense", None, 3, True, []])
DISTRIBUTION = (["erdos_renyi", "uniform"], NAME[1])
SEED = ([None, 0, 7, np.int64(5), 2**40], [-1, *(value for value in NO_WHOLE if value is not None)])

IMAGE = spaces.Box(0, 255, (3, 12, 12), np.uint8)
GOOD_SPACES = [
    spaces.Box(-1, 1, (3,)),
    spaces.Box(-np.inf, np.inf, (2, 3)),
    spaces.Box(-1, 1, (4,), np.float64),
    spaces.Discrete(4),
    spaces.MultiDiscrete([2, 3]),
    spaces.MultiBinary(3),
    IMAGE,
    spaces.Box(0, 255, (8, 8, 1), np.uint8),
    spaces.Dict({"vector": spaces.Box(-1, 1, (2,)), "number": spaces.Discrete(3)}),
    spaces.Dict({"vector": spaces.Box(-1, 1, (2,)), "image": IMAGE}),
    spaces.Dict({"vector": spaces.Box(-1, 1, (2,)), "image": spaces.Box(0, 255, (1, 36, 36), np.uint8)}),
]
BAD_SPACES = [
    spaces.Box(-1, 1, (0,)),
    spaces.Box(-1, 1, (2, 0)),
    spaces.Box(-1, 1, ()),
    spaces.Dict({"vector": spaces.Box(-1, 1, (2,)), "number": spaces.Box(-1, 1, ())}),
    spaces.Dict({"vector": spaces.Box(-1, 1, (2,)), "nothing": spaces.Box(-1, 1, (0,))}),
]
CONTINUOUS = [spaces.Box(-1, 1, (2,)), spaces.Box(-2, 3, (1, 2))]


class Call:
    """One call: what is made, with which keywords, and which of them are bad."""

    def __init__(self, rng):
        self.rng = rng
        self.wants_bad = rng.random() < 0.5
        self.keywords, self.bad = {}, {}
        # The beginning of an error that a combination of good values may have.
        self.may_refuse = None

    def pick(self, values):
        return values[int(self.rng.integers(len(values)))]

    def choose(self, table, most=3):
        """Values for some keywords of a table; at most one of all is bad."""
        names = [str(name) for name in self.rng.permutation(list(table))[: int(self.rng.integers(1, most + 1))]]
        chosen = {}
        for name in names:
            good, bad = table[name]
            if self.wants_bad and not self.bad and bad and self.rng.random() < 0.6:
                chosen[name] = self.bad[name] = self.pick(bad)
            elif good:
                chosen[name] = self.pick(good)
        self.keywords.update(chosen)
        return chosen

    def space(self, name, good, bad):
        if self.wants_bad and not self.bad and self.rng.random() < 0.3:
            self.bad[name] = self.keywords[name] = self.pick(bad)
        else:
            self.keywords[name] = self.pick(good)
        return self.keywords[name]


def linear(call):
    table = {
        "in_features": ([1, 3, np.int64(5)], WHOLE[1]),
        "out_features": ([1, 4, np.int64(2)], WHOLE[1]),
        "density": (FRACTION[0], FRACTION[1]),
        "bias": FLAG,
        "seed": ([None, 0, 2**24 - 1, np.int64(3)], [2**24, *SEED[1]]),
        "rescale": FLAG,
    }
    kwargs = {"in_features": 3, "out_features": 4, "density": 0.5, **call.choose(table)}

    def run():
        layer = SparseLinear(kwargs.pop("in_features"), kwargs.pop("out_features"), **kwargs)
        layer(th.randn(3, layer.in_features, requires_grad=True)).sum().backward()
        assert layer.weight.shape == (layer.out_features, layer.in_features)

    return run


def topology(call):
    no_shape = [(), (3,), (0, 3), (3, -1), "34", None, (2.5, 3), (True, 3), [[1, 2], [3, 4]], 5]
    table = {
        "shape": ([(3, 4), [2, 5], (2, 3, 3, 3), np.array([3, 4]), (np.int64(3), 4)], no_shape),
        "nnz": ([0, 1, 5, np.int64(2), 10], [-1, 1000, *NO_WHOLE]),
        "seed": ([0, 2**24 - 1, np.int64(3)], [-1, 2**24, *NO_WHOLE]),
    }
    kwargs = {"shape": (3, 4), "nnz": 6, "seed": 1, **call.choose(table)}

    def run():
        made = Topology.random(**kwargs)
        assert made.mask().sum() == made.nnz

    return run


def pruning(call):
    table = {
        "sparsity": SPARSITY,
        "distribution": DISTRIBUTION,
        "exclude": ([(), ["0"], "2", {"0"}, lambda name, layer: name == "0"], [["nonsense"], "nonsense", 5, None, [3]]),
        "seed": ([None, 0, 7, np.int64(5)], [value for value in NO_WHOLE if value is not None]),
        "rescale": FLAG,
    }
    kwargs = {"sparsity": 0.5, **call.choose(table)}

    def run():
        net = sparsify_(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)), **kwargs)
        x = th.randn(3, 6)
        th.testing.assert_close(to_dense(net)(x), net(x))
        net(x).sum().backward()

    return run


def allocation(call):
    allocate = call.pick([erdos_renyi, uniform])
    table = {"sparsity": SPARSITY}
    if allocate is erdos_renyi:
        table["budget"] = (["weights", "all_parameters"], NAME[1])
    kwargs = {"sparsity": 0.5, **call.choose(table)}

    def run():
        densities = allocate({"a": (40, 30), "b": (20, 40), "bias": (40,)}, **kwargs)
        assert all(0 < density <= 1 for density in densities.values())

    return run


def policy(call):
    algorithm = call.pick([SAC, TD3, DDPG, TQC, CrossQ, DQN, QRDQN])
    has_actor = algorithm not in (DQN, QRDQN)
    observation_space = call.space("observation_space", GOOD_SPACES, BAD_SPACES)
    no_arch = [[8, 16], [0], [-1], [1.5], "8", 8, [True], [[8]], {"a": [8]}, {"pi": [8]}, [NAN], ["8"], {}, np.array([8, 8])]
    table = {
        "sparsity": (SPARSITY[0] + [{"pi": 0.5, "qf": np.float64(0.9)}] * has_actor, [*SPARSITY[1], {"pi": 0.5}, {"qf": 2}]),
        "net_arch": ([[8], [8, 8], (8,), [np.int64(8)]], no_arch),
        "sparsity_distribution": DISTRIBUTION,
        "mask_seed": SEED,
        "rescale": FLAG,
        "normalize_observations": FLAG,
        "nonsense": ([], [1]),
    }
    if has_actor:
        table["net_arch"][0].append({"pi": [8], "qf": [8, 8]})
        table["sparsity"][1].append({"pi": 0.5, "qf": "0.5"})
    else:
        table["net_arch"][0].append({"qf": [8]})
        table["sparsity"][0].append({"qf": 0.5})
    if algorithm in (SAC, TQC, CrossQ):
        table["squash_log_std"] = FLAG
    if algorithm in (QRDQN, TQC):
        table["n_quantiles"] = ([1, 5], [0])
    chosen = call.choose(table)
    if "net_arch" not in chosen:
        scales = {"width_scale": ([0.02, 0.05, np.float64(0.03)], POSITIVE[1])}
        scales["depth_scale"] = ([0.5, 1, np.int64(2)], list(POSITIVE[1]))
        scales["width_scale"][0].append({"pi": 0.05, "qf": np.float32(0.02)} if has_actor else {"qf": 0.02})
        scales["depth_scale"][1].append({"pi": 1})
        chosen = {"width_scale": 0.02, **chosen, **call.choose(scales, most=2)}
    action_space = call.pick(CONTINUOUS) if has_actor else spaces.Discrete(3)
    if algorithm is CrossQ and isinstance(observation_space, spaces.Dict):
        # Its training takes no parts: to say so is right, whatever else there is.
        call.may_refuse = "CrossQ takes no Dict observations"

    def run():
        env = SpaceEnv(observation_space, action_space)
        settings = {"buffer_size": 8, "learning_starts": 2, "batch_size": 4, "train_freq": 1}
        model = algorithm("SparseSimBaPolicy", env, policy_kwargs=chosen, device="cpu", seed=0, **settings)
        model.learn(4)
        model.predict(observation_space.sample(), deterministic=True)
        assert all(parameter.isfinite().all() for parameter in model.policy.parameters())

    call.keywords["algorithm"] = algorithm.__name__
    return run


def streaming(call):
    algorithm = call.pick([StreamAC, StreamQ, StreamSARSA])
    good = [space for space in GOOD_SPACES if isinstance(space, spaces.Box)]
    others = [space for space in GOOD_SPACES + BAD_SPACES if not isinstance(space, spaces.Box)]
    observation_space = call.space("observation_space", good, [*others, spaces.Box(-1, 1, (0,)), spaces.Box(-1, 1, (2, 0))])
    table = {
        "gamma": FRACTION,
        "trace_lambda": FRACTION,
        "bootstrap_truncated": FLAG,
        "normalize_observations": FLAG,
        "normalize_reward": FLAG,
        "adaptive": FLAG,
        "time_feature": ([True, False, 50, np.int64(20)], [-1, 1.5, "yes", None, NAN, [3]]),
    }
    if algorithm is StreamAC:
        table |= {"kappa_policy": POSITIVE, "kappa_value": POSITIVE, "ent_coef": NON_NEGATIVE}
    else:
        names = ("exploration_fraction", "exploration_initial_eps", "exploration_final_eps")
        table |= {"kappa": POSITIVE, **dict.fromkeys(names, FRACTION)}
    networks = ("pi", "vf") if algorithm is StreamAC else ("qf",)
    of_policy = {
        "net_arch": ([[8], [8, 4], (8,), [np.int64(8)], np.array([8, 8])], [[0], [-1], [1.5], "8", 8, [True], {"a": [8]}]),
        "init_sparsity": FRACTION,
        "sparsity": ([0.5, np.float32(0.8)], [*SPARSITY[1], {"a": 0.5}]),
        "sparsity_distribution": DISTRIBUTION,
        "mask_seed": SEED,
        "rescale": FLAG,
        "initialization": ([None, "lecun_uniform"], ["nonsense", 3, True, []]),
        "nonsense": ([], [1]),
    }
    of_policy["net_arch"][0].append({network: [8] for network in networks})
    of_policy["sparsity"][0].append(dict.fromkeys(networks, 0.5))
    kwargs = call.choose(table, most=2)
    policy_kwargs = call.choose(of_policy, most=2)
    if "net_arch" not in policy_kwargs:
        policy_kwargs |= call.choose({"width_scale": ([0.2, np.float64(0.5), 1], POSITIVE[1])})
    action_space = call.pick(CONTINUOUS) if algorithm is StreamAC and call.rng.random() < 0.5 else spaces.Discrete(3)

    def run():
        env = gym.wrappers.TimeLimit(SpaceEnv(observation_space, action_space), 10)
        # SB3 itself sends Dict observations to the other name.
        policy = "MultiInputPolicy" if isinstance(observation_space, spaces.Dict) else "MlpPolicy"
        model = algorithm(policy, env, policy_kwargs=policy_kwargs, seed=0, **kwargs)
        model.learn(12)
        model.predict(observation_space.sample(), deterministic=True)
        assert all(parameter.isfinite().all() for parameter in model.policy.parameters())

    call.keywords["algorithm"] = algorithm.__name__
    return run


def optimizer(call):
    table = {"lr": NON_NEGATIVE, "gamma": FRACTION, "trace_lambda": FRACTION, "kappa": POSITIVE}
    kind, kwargs = call.pick([ObGD, AdaptiveObGD]), call.choose(table)

    def run():
        layer = nn.Linear(3, 2)
        made = kind(layer.parameters(), **kwargs)
        layer(th.ones(1, 3)).sum().backward()
        made.step(0.5)

    return run


def plasticity_callback(call):
    names = ([["critic"], ["actor", "critic"], ("critic",), "critic"], [["nonsense"], "nonsense", 3, None, []])
    table = {
        "log_freq": (WHOLE[0], WHOLE[1]),
        "n_samples": ([2, 4, np.int64(5), 6.0], [1, *WHOLE[1]]),
        "metrics": (["all", ["srank"], ("fau", "srank"), "fau"], [["nonsense"], "nonsense", 3, None, []]),
        "networks": names,
        "figures": FLAG,
        "csv_path": ([None], [3, True, [], 1.5]),
    }
    kwargs = {"n_samples": 4, "log_freq": 2, **call.choose(table)}

    def run():
        callback = PlasticityCallback(**kwargs)
        model = small_agent()
        model.learn(12, callback=callback)

    call.keywords.setdefault("n_samples", 4)
    return run


def reset_callback(call):
    strategy = call.pick(["full", "last_layers", "redo", "shrink_perturb"])
    of_strategy = {
        "full": {},
        "last_layers": {"n_layers": ([1, np.int64(2)], WHOLE[1])},
        "redo": {
            "tau": (NON_NEGATIVE[0], NON_NEGATIVE[1]),
            "batch_size": ([2, np.int64(4)], WHOLE[1]),
            "reset_step": FLAG,
        },
        "shrink_perturb": {"shrink": FRACTION, "perturb": FRACTION},
    }[strategy]
    table = {
        "strategy": ([strategy], NAME[1]),
        "networks": ([None, ["critic"], ("actor",), "critic"], [["nonsense"], "nonsense", 3, []]),
        "redraw_topology": ([False], FLAG[1]),
        "include_temperature": FLAG if strategy == "full" else ([False], FLAG[1]),
        "seed": ([None, 0, np.int64(3)], [value for value in NO_WHOLE if value is not None]),
        "target": (
            [None, "copy", "fresh", "keep"] if strategy in ("full", "last_layers") else [None],
            ["nonsense", 3, True, []],
        ),
        "nonsense": ([], [1]),
        **of_strategy,
    }
    if "reset_step" in table:
        # Goes with a first step of the optimiser alone; its own rules are tested elsewhere.
        table["reset_step"] = ([False], FLAG[1])
    schedule = {
        "every_env_steps": (WHOLE[0], [value for value in WHOLE[1] if value is not None]),
        "every_grad_steps": (WHOLE[0], [value for value in WHOLE[1] if value is not None]),
        "at": ([[3, 5], (4,), np.array([6, 2]), [np.int64(3)]], [[], 5, "5", [0], [1.5], [True], ["3"], NAN]),
    }
    name = call.pick(list(schedule))
    call.keywords["strategy"] = strategy
    kwargs = {"strategy": strategy, **call.choose({name: schedule[name]}), **call.choose(table)}
    if strategy == "redo":
        kwargs.setdefault("batch_size", 4)

    def run():
        callback = ResetCallback(**kwargs)
        small_agent().learn(12, callback=callback)

    return run


def small_agent():
    env = SpaceEnv(spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (2,)))
    settings = {"buffer_size": 32, "learning_starts": 4, "batch_size": 4}
    policy_kwargs = {"net_arch": [8], "n_critics": 1}
    return SAC("SparseSimBaPolicy", env, policy_kwargs=policy_kwargs, device="cpu", seed=0, **settings)


def dmc(call):
    kwargs = call.choose({"action_repeat": WHOLE})

    def run():
        env = DMCWrapper(SpaceEnv(spaces.Box(-1, 1, (3,)), spaces.Box(-2, 3, (2,))), **kwargs)
        env.reset(seed=0)
        env.step(env.action_space.sample())

    return run


# What is made, and how often.
TARGETS = {
    linear: 3,
    topology: 2,
    pruning: 2,
    allocation: 1,
    policy: 6,
    streaming: 5,
    optimizer: 1,
    plasticity_callback: 2,
    reset_callback: 3,
    dmc: 1,
}


def atoms(value):
    """A value and everything inside it, as a message may print it."""
    yield from (repr(value), str(value))
    if isinstance(value, np.ndarray | np.generic):
        yield from (repr(value.tolist()), str(value.tolist()))
    if isinstance(value, spaces.Dict):
        yield from (repr(key) for key in value.spaces)
        yield from (text for part in value.spaces.values() for text in atoms(part))
    elif isinstance(value, spaces.Box):
        yield f"shape {value.shape}"
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield repr(key)
            yield from atoms(part)
    elif isinstance(value, list | tuple | set):
        for part in value:
            yield from atoms(part)


def is_named(name, value, message):
    """Whether an error says which argument it is about, and what was given."""
    if name == "observation_space":
        return any(text in message for text in atoms(value))
    if name == "nonsense":
        return "'nonsense'" in message
    # "networks" may be said as "network 'nonsense' is unknown".
    keyword = any(form in message for form in (name, name.replace("_", " "), name.removesuffix("s")))
    return keyword and any(text in message for text in atoms(value))


def judge(call, run):
    """What is wrong with the outcome of a call, or None."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run()
    except (ValueError, TypeError) as error:
        message = str(error)
        if call.may_refuse is not None and message.startswith(call.may_refuse):
            return None
        if not call.bad:
            return f"good values, but {type(error).__name__}: {message}"
        ((name, value),) = call.bad.items()
        return None if is_named(name, value, message) else f"not named: {type(error).__name__}: {message}"
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {error} ({where.filename.rpartition('/')[2]}:{where.lineno})"
    return f"accepted {call.bad}" if call.bad else None


def findings(seeds):
    targets = [target for target, times in TARGETS.items() for _ in range(times)]
    found = []
    for seed in seeds:
        call = Call(np.random.default_rng(seed))
        target = call.pick(targets)
        run = target(call)
        wrong = judge(call, run)
        if wrong is not None:
            found.append(f"{seed} {target.__name__} {call.keywords}, bad: {call.bad}\n    {wrong[:400]}")
    return found


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_calls_work_or_name_what_is_wrong(chunk, monkeypatch):
    # No measurement of backends: many tiny layers of different shapes.
    monkeypatch.setenv("SB3_SPARSE_BACKEND", "dense")
    size = math.ceil(CALLS / CHUNKS)
    found = findings(range(chunk * size, (chunk + 1) * size))
    assert not found, "\n".join(found)


def test_the_judge_is_strict():
    def raising(error):
        def run():
            raise error

        return run

    def nothing():
        pass

    call = Call(np.random.default_rng(0))
    call.bad = {"density": 1.5}
    assert judge(call, raising(ValueError("density=1.5: expected a number"))) is None
    assert "not named" in judge(call, raising(ValueError("expected a number in [0, 1]")))
    assert "not named" in judge(call, raising(ValueError("density: expected a number in [0, 1]")))
    assert "ZeroDivisionError" in judge(call, raising(ZeroDivisionError("density=1.5")))
    assert "accepted" in judge(call, nothing)
    call.bad = {}
    assert judge(call, nothing) is None
    assert "good values" in judge(call, raising(ValueError("density=0.5: expected")))
