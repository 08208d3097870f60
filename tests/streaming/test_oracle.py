"""Update by update, the streaming agents are the float64 oracle's formulas; and so is the plain loop of the benchmarks."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from torch import nn

from sb3_sparse.sparse import SparseLinear
from sb3_sparse.streaming import StreamAC, StreamQ, StreamSARSA
from tests.streaming.oracle import ActorCriticOracle, Features, Learner, Network, QOracle, SARSAOracle, Script, ScriptedEnv

N_STEPS, GAMMA, TRACE_LAMBDA = 300, 0.99, 0.8
DECAY = GAMMA * TRACE_LAMBDA
DISCRETE = spaces.Discrete(4)


@pytest.fixture(autouse=True)
def _one_thread():
    threads = th.get_num_threads()
    th.set_num_threads(1)
    yield
    th.set_num_threads(threads)


def layers_of(network: nn.Module) -> list:
    return [module for module in network.modules() if isinstance(module, nn.Linear | SparseLinear)]


def arrays_of(network: nn.Module) -> list[np.ndarray]:
    layers = layers_of(network)
    return [layer.weight.detach().numpy() for layer in layers] + [layer.bias.detach().numpy() for layer in layers]


def copy_network(network: nn.Module) -> Network:
    layers, arrays = layers_of(network), arrays_of(network)
    masks = [
        layer.topology.mask().numpy().astype(np.float64) if isinstance(layer, SparseLinear) else np.ones(layer.weight.shape)
        for layer in layers
    ]
    return Network(arrays[: len(layers)], arrays[len(layers) :], masks)


def traces_of(network: nn.Module, optimizer) -> list[np.ndarray]:
    """Traces of the weights, then of the biases, zero where no weight lives."""
    weights, biases = [], []
    for layer in layers_of(network):
        is_sparse = isinstance(layer, SparseLinear)
        trace = optimizer.state[layer.values if is_sparse else layer.weight]["trace"].numpy()
        if is_sparse:
            assert trace.shape == (layer.topology.nnz,), "there is a trace for weights that do not exist"
            dense = np.zeros(layer.topology.shape)
            dense[layer.topology.mask().numpy()] = trace
            trace = dense
        weights.append(trace)
        biases.append(optimizer.state[layer.bias]["trace"].numpy())
    return weights + biases


class Replay:
    """Feeds an oracle with the actions that a scripted environment has received so far."""

    def __init__(self, oracle, env: ScriptedEnv):
        self.oracle, self.env, self.script = oracle, env, env.script
        self.n_done, self.n_episodes = 0, 1
        oracle.reset(self.script.first_observations[0])

    def catch_up(self, n_transitions: int) -> None:
        while self.n_done < n_transitions:
            t, done = self.n_done, self.script.done[self.n_done]
            next_action = None if done else self.env.actions[t + 1]
            self.oracle.transition(self.script, t, self.env.actions[t].astype(np.float64), next_action)
            if done:
                self.oracle.reset(self.script.first_observations[self.n_episodes])
                self.n_episodes += 1
            self.n_done += 1


class Compare(BaseCallback):
    """After step ``n`` the agent has made ``n - 1`` updates: so must the oracle, with the same weights."""

    def __init__(self, replay: Replay, pairs, atol: float):
        super().__init__()
        self.replay, self.pairs, self.atol = replay, pairs, atol
        self.pruned = {
            name: [mask == 0 for mask in learner.network.masks] + [np.zeros(len(b), bool) for b in learner.network.biases]
            for name, _, _, learner in pairs
        }

    def _on_step(self) -> bool:
        self.check(self.num_timesteps - 1)
        return True

    def check(self, n_updates: int) -> None:
        self.replay.catch_up(n_updates)
        for name, network, optimizer, learner in self.pairs:
            parameters = learner.network.parameters
            for array, expected, pruned in zip(arrays_of(network), parameters, self.pruned[name], strict=True):
                error = np.abs(array - expected).max()
                assert error < self.atol, f"{name} of shape {array.shape} is off by {error:.2g} after {n_updates} updates"
                assert not array[pruned].any(), f"{name} of shape {array.shape}: a pruned weight came back"
            if optimizer is not None and n_updates % 10 == 5:
                for trace, expected in zip(traces_of(network, optimizer), learner.trace, strict=True):
                    atol = 100 * self.atol * (1 + np.abs(expected).max())
                    np.testing.assert_allclose(trace, expected, rtol=0, atol=atol)


def networks_of(model) -> list[tuple]:
    """Name, network and optimiser."""
    policy = model.policy
    if isinstance(model, StreamAC):
        return [("actor", policy.actor, policy.actor_optimizer), ("critic", policy.critic, policy.critic_optimizer)]
    return [("q_net", policy.q_net, policy.q_optimizer)]


def make_oracle(model, script: Script, lr=1.0, adaptive=False, bootstrap_truncated=False, ent_coef=0.01, **features):
    """The oracle that starts from the weights of ``model``, and its learners in the order of ``networks_of``."""
    stream = Features(GAMMA, script.max_episode_steps, **features)

    def learner(network, kappa):
        return Learner(copy_network(network), kappa, lr, DECAY, adaptive)

    if isinstance(model, StreamAC):
        actor, critic = learner(model.policy.actor, 3.0), learner(model.policy.critic, 2.0)
        return ActorCriticOracle(stream, GAMMA, bootstrap_truncated, actor, critic, ent_coef), [actor, critic]
    q = learner(model.policy.q_net, 2.0)
    return (SARSAOracle if isinstance(model, StreamSARSA) else QOracle)(stream, GAMMA, bootstrap_truncated, q), [q]


def start(algorithm, action_space=None, n_observations=11, policy_kwargs=None, atol=1e-6, **kwargs):
    """An agent before its first step, the environment with its script, the oracle, and the callback that compares."""
    script = Script.random(N_STEPS, n_observations, seed=0)
    env = ScriptedEnv(script, action_space)
    model = algorithm("MlpPolicy", env, policy_kwargs=policy_kwargs, seed=0, device="cpu", **kwargs)
    exploration = {"exploration_fraction", "exploration_initial_eps", "exploration_final_eps"}
    known = {"lr" if k == "learning_rate" else k: v for k, v in kwargs.items() if k not in exploration}
    oracle, learners = make_oracle(model, script, **known)
    pairs = [(*names, learner) for names, learner in zip(networks_of(model), learners, strict=True)]
    return model, env, oracle, Compare(Replay(oracle, env), pairs, atol)


def run(*args, **kwargs):
    """Train on a script, compare after every update, return model, oracle and environment."""
    model, env, oracle, compare = start(*args, **kwargs)
    networks = [network for _, network, _ in networks_of(model)]
    before = [array.copy() for network in networks for array in arrays_of(network)]
    model.learn(N_STEPS, callback=compare)
    assert env.n_steps == N_STEPS
    compare.check(N_STEPS)
    after = [array for network in networks for array in arrays_of(network)]
    moved = max(np.abs(a - b).max() for a, b in zip(after, before, strict=True))
    assert moved > 100 * compare.atol, "the comparison would not notice an agent that does not learn"
    return model, oracle, env


SMALL = {"net_arch": [32, 32]}
NETWORKS = {
    "default": {},
    "dense": {**SMALL, "initialization": "lecun_uniform"},
    "sparse_init": {**SMALL, "initialization": "sparse_init", "init_sparsity": 0.8},
    "static": {**SMALL, "sparsity": 0.8},
    "wide static": {"width_scale": 2, "sparsity": 0.9},
}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("action_space", [None, DISCRETE], ids=["Box", "Discrete"])
def test_stream_ac(action_space, network):
    model, oracle, _ = run(StreamAC, action_space, policy_kwargs=NETWORKS[network])
    is_static = "sparsity" in NETWORKS[network]
    assert any((m == 0).any() for m in oracle.actor.network.masks) == is_static
    n_heads = 2 if action_space is None else 1
    assert len(layers_of(model.policy.actor)) == 2 + n_heads


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("algorithm", [StreamQ, StreamSARSA])
def test_stream_q_and_sarsa(algorithm, network):
    _, oracle, _ = run(algorithm, DISCRETE, policy_kwargs=NETWORKS[network], exploration_fraction=1.0)
    assert 50 < sum(oracle.nongreedy) < 250


@pytest.mark.parametrize("algorithm", [StreamAC, StreamQ, StreamSARSA])
@pytest.mark.parametrize(
    "kwargs",
    [
        {"bootstrap_truncated": True},
        {"normalize_observations": False},
        {"normalize_reward": False},
        {"time_feature": False},
        {"adaptive": True},
        {"learning_rate": 1e-3},
    ],
    ids=str,
)
def test_options(algorithm, kwargs):
    kwargs = dict(kwargs)
    if algorithm is not StreamAC:
        # Where an episode is cut, SARSA's next action is never seen by the environment: a greedy agent's is known.
        final = 0.0 if "bootstrap_truncated" in kwargs else 0.2
        kwargs.update(exploration_fraction=0.1, exploration_initial_eps=final, exploration_final_eps=final)
    _, oracle, _ = run(algorithm, None if algorithm is StreamAC else DISCRETE, policy_kwargs=SMALL, **kwargs)
    learner = oracle.actor if algorithm is StreamAC else oracle.q
    if "learning_rate" in kwargs:
        assert len(set(learner.bounded)) == 2  # steps of both kinds: bounded and not
    else:
        assert all(learner.bounded)


@pytest.mark.parametrize("action_space", [None, DISCRETE], ids=["Box", "Discrete"])
def test_adaptive_and_static_topology(action_space):
    run(StreamAC, action_space, policy_kwargs=NETWORKS["static"], adaptive=True)


@pytest.mark.parametrize("network", ["dense", "static"])
@pytest.mark.parametrize("algorithm", [StreamAC, StreamQ])
def test_without_compiled_kernels(monkeypatch, algorithm, network):
    monkeypatch.setenv("SB3_SPARSE_BACKEND", "dense")
    run(algorithm, None if algorithm is StreamAC else DISCRETE, policy_kwargs=NETWORKS[network])


@pytest.mark.parametrize(
    ("algorithm", "kwargs"), [(StreamAC, {}), (StreamAC, {"adaptive": True}), (StreamQ, {}), (StreamSARSA, {})]
)
def test_goes_on_after_saving_and_loading(tmp_path, algorithm, kwargs):
    """In the middle of an episode: weights, traces, statistics and the action that SARSA has chosen already."""
    space = None if algorithm is StreamAC else DISCRETE
    model, env, _, compare = start(algorithm, space, policy_kwargs=NETWORKS["static"], **kwargs)
    model.learn(70, callback=compare)
    model.learn(80, callback=compare, reset_num_timesteps=False)
    assert not env.script.done[149]
    model.save(tmp_path / "agent")
    loaded = algorithm.load(tmp_path / "agent", env=model.get_env(), force_reset=False, device="cpu")
    pairs = [(*names, pair[-1]) for names, pair in zip(networks_of(loaded), compare.pairs, strict=True)]
    compare = Compare(compare.replay, pairs, compare.atol)
    loaded.learn(N_STEPS - 150, callback=compare, reset_num_timesteps=False)
    compare.check(N_STEPS)


def test_entropy_coefficient():
    run(StreamAC, policy_kwargs=SMALL, ent_coef=0.5)


def test_a_first_layer_of_zeros_learns():
    """SparseInit leaves nothing of a layer with nine inputs or fewer; its layer norm then sees a constant."""
    model, _, _ = run(StreamAC, n_observations=4, policy_kwargs={**SMALL, "initialization": "sparse_init"}, atol=1e-5)
    assert layers_of(model.policy.actor)[0].weight.detach().abs().sum() > 0


class MaskedAfterwards(Network):
    """The wrong static mask: dense gradients and traces, weights zeroed after each step."""

    def gradient(self, tape, d_outputs):
        masks, self.masks = self.masks, [np.ones_like(m) for m in self.masks]
        gradient = super().gradient(tape, d_outputs)
        self.masks = masks
        for weight, mask in zip(self.weights, masks, strict=True):
            weight *= mask
        return gradient


class NoLeak(Features):
    """A return that starts from zero with each episode."""

    def reset(self, observation):
        self.discounted_sum = 0.0
        return super().reset(observation)


class EarlyTime(Features):
    """The time feature that counts on the first step already."""

    def reset(self, observation):
        features = super().reset(observation)
        self.n_steps = 1
        return features


class ExploringTraces(QOracle):
    """Traces that survive an exploring action."""

    def _reset(self, done):
        return done


def test_the_usual_mistakes_would_be_noticed():
    _, right, env = run(StreamQ, DISCRETE, policy_kwargs=NETWORKS["static"], exploration_fraction=1.0)
    start = StreamQ("MlpPolicy", ScriptedEnv(env.script, DISCRETE), policy_kwargs=NETWORKS["static"], seed=0, device="cpu")

    def distance(oracle) -> float:
        Replay(oracle, env).catch_up(N_STEPS)
        return max(np.abs(a - b).max() for a, b in zip(oracle.q.network.parameters, right.q.network.parameters, strict=True))

    def wrong(features=Features, oracle=QOracle, network=Network, decay=DECAY):
        copy = copy_network(start.policy.q_net)
        q = Learner(network(copy.weights, copy.biases, copy.masks), 2.0, 1.0, decay)
        return oracle(features(GAMMA, env.script.max_episode_steps), GAMMA, False, q)

    assert distance(wrong()) == 0
    for mistake in (
        wrong(features=NoLeak),
        wrong(features=EarlyTime),
        wrong(oracle=ExploringTraces),
        wrong(oracle=SARSAOracle),
        wrong(network=MaskedAfterwards),
        wrong(decay=GAMMA),
    ):
        assert distance(mistake) > 1e-4


@pytest.mark.parametrize("n_heads", [1, 2])
def test_the_gradient_of_the_oracle_is_a_difference_quotient(n_heads):
    rng = np.random.default_rng(0)
    shapes = [(8, 5), (8, 8), *[(3, 8)] * n_heads]
    network = Network([rng.normal(size=s) for s in shapes], [rng.normal(size=s[0]) for s in shapes])
    x, bonus, action = rng.normal(size=5), 0.3, rng.normal(size=3) if n_heads == 2 else 1

    def objective():
        outputs, _ = network.forward(x)
        if n_heads == 1:
            log_p = outputs[0] - np.log(np.exp(outputs[0]).sum())
            return log_p[action] - bonus * (np.exp(log_p) * log_p).sum()
        std = np.log1p(np.exp(outputs[1]))
        log_prob = -((action - outputs[0]) ** 2) / (2 * std**2) - np.log(std)
        return (log_prob + bonus * np.log(std)).sum()

    outputs, tape = network.forward(x)
    derivative = ActorCriticOracle._gaussian if n_heads == 2 else ActorCriticOracle._categorical
    gradient = network.gradient(tape, derivative(*outputs, action, bonus))
    for parameter, expected in zip(network.parameters, gradient, strict=True):
        for index in np.ndindex(parameter.shape):
            value, h = parameter[index], 1e-6
            parameter[index] = value + h
            above = objective()
            parameter[index] = value - h
            below = objective()
            parameter[index] = value
            assert (above - below) / (2 * h) == pytest.approx(expected[index], abs=1e-6)


def test_the_first_adaptive_step_is_equal_for_all_coordinates():
    network = Network([np.zeros((1, 1))] * 3, [np.zeros(1)] * 3)
    learner = Learner(network, kappa=2.0, lr=1.0, decay=0.8, adaptive=True)
    gradient = [np.zeros_like(p) for p in network.parameters]
    gradient[0][:], gradient[4][:] = 300.0, -7e3
    learner.update(gradient, delta=0.25, reset=False)
    assert network.parameters[0] == pytest.approx(0.0625)
    assert network.parameters[4] == pytest.approx(-0.0625)


@pytest.mark.parametrize("name", ["StreamAC Box", "StreamAC Discrete", "StreamQ", "StreamSARSA"])
def test_the_plain_loop_of_the_benchmarks(monkeypatch, name):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    sys.modules.pop("stream_plain", None)
    import stream_plain

    script = Script.random(N_STEPS, 11, seed=3)
    env = ScriptedEnv(script, None if "Box" in name else DISCRETE)
    kwargs = {} if "AC" in name else {"exploration_steps": N_STEPS}
    agent = getattr(stream_plain, name.split()[0])(env, 0, 32, **kwargs)
    features = Features(GAMMA, script.max_episode_steps)
    if "AC" in name:
        actor, critic = (Learner(copy_network(n), k, 1.0, DECAY) for n, k in ((agent.actor, 3.0), (agent.critic, 2.0)))
        oracle, pairs = (
            ActorCriticOracle(features, GAMMA, False, actor, critic),
            [("actor", agent.actor, None, actor), ("critic", agent.critic, None, critic)],
        )
    else:
        q = Learner(copy_network(agent.q_net), 2.0, 1.0, DECAY)
        oracle = (SARSAOracle if "SARSA" in name else QOracle)(features, GAMMA, False, q)
        pairs = [("q_net", agent.q_net, None, q)]
    agent.run(N_STEPS)
    Compare(Replay(oracle, env), pairs, atol=1e-6).check(N_STEPS)
