"""Whole policies under PyTorch's own tools: what SB3's dense policies pass, ours pass, with the right results."""

import copy
import io
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import QRDQN, TQC, CrossQ
from stable_baselines3 import DDPG, DQN, SAC, TD3
from torch import nn
from torch.func import functional_call, grad, jacfwd, jacrev, vmap
from torch.utils import backend_registration
from torch.utils.flop_counter import FlopCounterMode

import sb3_sparse  # noqa: F401 - registers the name of the policies
from tests.envs import SpaceEnv

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]

ENVS = {SAC: "Pendulum-v1", TD3: "Pendulum-v1", DDPG: "Pendulum-v1", TQC: "Pendulum-v1", CrossQ: "Pendulum-v1"}
ENVS |= {DQN: "CartPole-v1", QRDQN: "CartPole-v1"}
ALGORITHMS = pytest.mark.parametrize("algorithm", list(ENVS), ids=lambda algorithm: algorithm.__name__)


def make(algorithm, ours=True):
    kwargs = dict(width_scale=0.1, sparsity=0.8) if ours else dict(net_arch=[64, 64])
    name = "SparseSimBaPolicy" if ours else "MlpPolicy"
    model = algorithm(name, ENVS[algorithm], seed=0, device="cpu", buffer_size=10, policy_kwargs=kwargs)
    model.policy.set_training_mode(False)
    return model


class Predict(nn.Module):
    """``predict``, from tensor to tensor."""

    def __init__(self, policy):
        super().__init__()
        self.policy = policy

    def forward(self, obs):
        return self.policy._predict(obs, deterministic=True)


class Values(nn.Module):
    """What the network that is trained on rewards says."""

    def __init__(self, policy):
        super().__init__()
        self.critic = getattr(policy, "critic", None) or getattr(policy, "q_net", None) or policy.quantile_net
        self.is_critic = hasattr(policy, "critic")

    def forward(self, obs):
        if not self.is_critic:
            return self.critic(obs)
        values = self.critic(obs, 0.5 * th.ones_like(obs[:, :1]))
        return values[0] if isinstance(values, tuple) else values


def observations(model, batch=6):
    return th.from_numpy(np.stack([model.observation_space.sample() for _ in range(batch)])).float()


def trace(module, x):
    traced = th.jit.trace(module, x[:2])
    file = io.BytesIO()
    th.jit.save(traced, file)
    file.seek(0)
    return th.jit.load(file)(x)


def compile_whole(module, x):
    return th.compile(module, fullgraph=True, backend="aot_eager")(x)


def export(module, x):
    return th.export.export(module, (x,)).module()(x)


def per_sample_gradients(module, x):
    parameters = {name: p.detach() for name, p in module.named_parameters()}

    def loss(parameters, sample):
        return functional_call(module, parameters, (sample[None],)).float().square().sum()

    gradients = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    return th.stack([g.flatten(1).square().sum(1) for g in gradients.values()]).sum(0)


def plain_per_sample_gradients(module, x):
    norms = []
    for sample in x:
        gradients = th.autograd.grad(module(sample[None]).square().sum(), list(module.parameters()), allow_unused=True)
        norms.append(sum(g.square().sum() for g in gradients if g is not None))
    return th.stack(norms)


def jacobian_by(transform):
    return lambda module, x: vmap(transform(lambda sample: module(sample[None])[0]))(x)


def plain_jacobian(module, x):
    return th.stack([th.autograd.functional.jacobian(lambda s: module(s[None])[0], sample) for sample in x])


def batched_gradients(module, x):
    y = module(x).flatten()[:12]
    parameters = list(module.parameters())
    gradients = th.autograd.grad(y, parameters, th.eye(len(y)), is_grads_batched=True, allow_unused=True)
    return th.stack([g.flatten(1).square().sum(1) for g in gradients if g is not None]).sum(0)


def plain_batched_gradients(module, x):
    y = module(x).flatten()[:12]
    norms = []
    for value in y:
        gradients = th.autograd.grad(value, list(module.parameters()), retain_graph=True, allow_unused=True)
        norms.append(sum(g.square().sum() for g in gradients if g is not None))
    return th.stack(norms)


def fx(module, x):
    return th.fx.symbolic_trace(module)(x)


def call(module, x):
    return module(x)


# Each tool, and what it should give.
TOOLS = {
    "trace": (trace, call),
    "compile": (compile_whole, call),
    "export": (export, call),
    "fx": (fx, call),
    "per-sample gradients": (per_sample_gradients, plain_per_sample_gradients),
    "jacrev": (jacobian_by(jacrev), plain_jacobian),
    "jacfwd": (jacobian_by(jacfwd), plain_jacobian),
    "batched gradients": (batched_gradients, plain_batched_gradients),
}


@ALGORITHMS
@pytest.mark.parametrize("part", [Predict, Values])
@pytest.mark.parametrize("tool", list(TOOLS))
def test_what_the_dense_policy_passes_ours_passes(algorithm, part, tool):
    th.compiler.reset()
    use, plain = TOOLS[tool]

    def difference(ours):
        model = make(algorithm, ours)
        module, x = part(model.policy), observations(model)
        expected, found = plain(module, x), use(module, x)
        return (found.double() - expected.double()).abs().max() / expected.double().abs().max().clamp(min=1.0)

    try:
        dense = difference(ours=False)
    except Exception as error:
        pytest.skip(f"SB3's own policy does not pass either: {type(error).__name__}")
    assert dense < 1e-4
    assert difference(ours=True) < 1e-4


@ALGORITHMS
def test_statistics_do_not_move_under_tools(algorithm):
    model = make(algorithm)
    module, x = Values(model.policy), observations(model)
    before = {key: value.clone() for key, value in model.policy.state_dict().items()}
    for use in (trace, export, per_sample_gradients, batched_gradients):
        use(module, x)
    assert all(th.equal(before[key], value) for key, value in model.policy.state_dict().items())


@pytest.mark.parametrize("algorithm", [SAC, DQN])
def test_learning_with_a_compiled_policy(algorithm):
    # As SB3's documentation has it.
    th.compiler.reset()
    losses = []
    for compiled in (False, True):
        kwargs = dict(width_scale=0.1, sparsity=0.8)
        model = algorithm(
            "SparseSimBaPolicy", ENVS[algorithm], seed=0, device="cpu", learning_starts=10, batch_size=16, policy_kwargs=kwargs
        )
        if compiled:
            model.policy = th.compile(model.policy, backend="aot_eager")
        model.learn(30)
        losses.append(th.cat([p.detach().flatten() for p in model.policy.parameters()]))
    assert th.allclose(*losses, atol=1e-4)


def value_of_actions(critic, obs):
    def values(actions):
        found = critic(obs.expand(len(actions), -1), actions)
        return (found[0] if isinstance(found, tuple) else found).flatten(1).sum(1)

    return values


def meta_gradient(critic, obs, actions):
    parameters = {name: 1.0 * p for name, p in critic.named_parameters()}
    actions = actions.clone().requires_grad_()
    values = functional_call(critic, parameters, (obs, actions))
    values = values[0] if isinstance(values, tuple) else values
    to_actions, *to_parameters = th.autograd.grad(values.sum(), [actions, *critic.parameters()], allow_unused=True)
    # Somebody may learn what the parameters were computed from.
    assert sum(g is not None for g in to_parameters) > 3
    return to_actions


def derivative(critic, obs, actions):
    return th.func.jvp(value_of_actions(critic, obs[:1]), (actions,), (th.ones_like(actions),))[1][:, None]


def compiled_gradient(values, actions):
    actions = actions.clone().requires_grad_()
    return th.autograd.grad(th.compile(values, fullgraph=True, backend="aot_eager")(actions).sum(), actions)[0]


# Gradients of the values of an observation to several actions.
GRADIENTS_OF_ACTIONS = {
    "grad": lambda critic, obs, a: grad(lambda a: value_of_actions(critic, obs[:1])(a).sum())(a),
    "jacrev": lambda critic, obs, a: vmap(jacrev(lambda a: value_of_actions(critic, obs[:1])(a[None])[0]))(a),
    "jvp": derivative,
    "functional_call": lambda critic, obs, a: meta_gradient(critic, obs[:1].expand(len(a), -1), a),
    "compile": lambda critic, obs, a: compiled_gradient(value_of_actions(critic, obs[:1]), a),
}


@pytest.mark.parametrize(
    ("algorithm", "tool"),
    [*((a, tool) for a in (SAC, TD3, TQC, CrossQ) for tool in GRADIENTS_OF_ACTIONS if tool != "compile"), (SAC, "compile")],
)
def test_values_have_gradients_to_actions_under_tools(algorithm, tool):
    """Mistake: critics freeze their weights where actions carry a gradient, which torch refuses here."""
    th.compiler.reset()
    model = make(algorithm)
    critic, obs, actions = model.critic, observations(model), th.linspace(-0.5, 0.5, 6)[:, None]
    plain = actions.clone().requires_grad_()
    (expected,) = th.autograd.grad(value_of_actions(critic, obs[:1])(plain).sum(), plain)
    assert expected.any()
    th.testing.assert_close(GRADIENTS_OF_ACTIONS[tool](critic, obs, actions), expected, rtol=1e-4, atol=1e-5)
    assert all(p.requires_grad and p.grad is None for p in critic.parameters())


# In a process of its own: torch has one foreign device, for good.
FOREIGN_DEVICE = """
    import sys
    import torch as th
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend("gpu")
    # Torch cannot move parameters without data. They are made where they belong.
    th.nn.Module.to = lambda self, *args, **kwargs: self
    # Nor make tensors with data there.
    real_tensor = th.tensor

    def tensor(*args, device=None, **kwargs):
        made = real_tensor(*args, device="cpu", **kwargs)
        return made if device == "cpu" else th.empty(made.shape, dtype=made.dtype, device=device)

    th.tensor = tensor
    # It looks at what is in its parameters.
    th.distributions.Distribution.set_default_validate_args(False)

    import sb3_contrib, stable_baselines3
    import sb3_sparse
    from gymnasium import spaces
    from stable_baselines3.common.utils import get_schedule_fn

    box = spaces.Box(-1.0, 1.0, (5,))
    observations = {
        "box": box,
        "image": spaces.Box(0, 255, (3, 36, 36), "uint8"),
        "dict": spaces.Dict(a=box, b=spaces.Discrete(3), c=spaces.Box(0, 255, (3, 36, 36), "uint8")),
    }
    policies = {
        sb3_sparse.SparseSimBaPolicy: box,
        sb3_sparse.SparseSimBaTD3Policy: box,
        sb3_sparse.SparseSimBaTQCPolicy: box,
        sb3_sparse.SparseSimBaCrossQPolicy: box,
        sb3_sparse.SparseSimBaDQNPolicy: spaces.Discrete(3),
        sb3_sparse.SparseSimBaQRDQNPolicy: spaces.Discrete(3),
    }

    def fake(space, device):
        if isinstance(space, spaces.Dict):
            return {key: fake(part, device) for key, part in space.items()}
        if isinstance(space, spaces.Discrete):
            return th.zeros(4, device=device)
        dtype = th.uint8 if space.dtype == "uint8" else th.float32
        return th.zeros((4, *space.shape), dtype=dtype, device=device)

    for policy_class, action_space in policies.items():
        for name, space in observations.items():
            if policy_class is sb3_sparse.SparseSimBaCrossQPolicy and name == "dict":
                continue  # not supported by CrossQ itself
            with FakeTensorMode():
                with th.device("gpu:0"):
                    policy = policy_class(space, action_space, get_schedule_fn(1e-3), width_scale=0.1, sparsity=0.8)
                policy.set_training_mode(True)
                obs = fake(space, "gpu:0")
                action = policy._predict(obs, deterministic=True)
                assert action.device.type == "gpu"
                if hasattr(policy, "critic"):
                    values = policy.critic(obs, th.zeros(4, 5, device="gpu:0"))
                    policy.actor(obs).sum().backward()
                else:
                    values = (getattr(policy, "q_net", None) or policy.quantile_net)(obs)
                (values[0] if isinstance(values, tuple) else values).sum().backward()
                for key, parameter in policy.named_parameters():
                    assert parameter.device.type == "gpu", key
                    assert parameter.grad is None or parameter.grad.device.type == "gpu", key
                for key, buffer in policy.named_buffers():
                    assert buffer.device.type == "gpu", key
        print(policy_class.__name__)
    # It would have been noticed.
    with FakeTensorMode():
        layer = sb3_sparse.SparseLinear(4, 3, density=0.5, device="gpu:0")
        try:
            layer(th.zeros(2, 4))
        except (ValueError, RuntimeError):
            print("noticed")
"""


def test_whole_policies_on_a_device_that_is_not_the_cpu():
    """Fake tensors of a device of its own show what forgets where it is, without a GPU."""
    if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this torch has no such devices")
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FOREIGN_DEVICE)], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr[:200] + result.stderr[-6000:]
    assert result.stdout.split()[-1] == "noticed"
    assert len(result.stdout.split()) == 7


@ALGORITHMS
def test_operations_of_acting_can_be_counted(algorithm):
    model = make(algorithm)
    observation = model.observation_space.sample()
    model.predict(observation)
    counts = []
    for given in (observation, np.stack([observation] * 4)):
        with FlopCounterMode(display=False) as counter:
            model.predict(given)
        counts.append(counter.get_total_flops())
    assert counts[0] > 0
    assert counts[1] == 4 * counts[0]


@pytest.mark.parametrize("algorithm", [SAC, TQC, CrossQ])
def test_a_policy_is_copied_between_its_updates(algorithm):
    """As self-play does: CrossQ's last pass leaves a distribution with all that it was made of, which torch does not copy."""
    copies = []
    kwargs = dict(width_scale=0.1, sparsity=0.8)
    options = dict(buffer_size=100, learning_starts=5, batch_size=8, policy_kwargs=kwargs)
    model = algorithm("SparseSimBaPolicy", "Pendulum-v1", seed=0, device="cpu", **options)
    model.learn(20, callback=lambda *_: copies.append(copy.deepcopy(model.policy)) or True)
    model.predict(np.zeros(3, np.float32))
    observation = np.ones(3, np.float32)
    for policy in (copies[-1], copy.deepcopy(model.policy)):
        assert np.isfinite(policy.predict(observation)[0]).all()
    assert np.array_equal(
        policy.predict(observation, deterministic=True)[0], model.predict(observation, deterministic=True)[0]
    )


@pytest.mark.parametrize("algorithm", [DQN, QRDQN])
def test_actions_that_do_not_begin_with_0_are_refused(algorithm):
    env = SpaceEnv(spaces.Box(-1, 1, (3,)), spaces.Discrete(3, start=1))
    with pytest.raises(ValueError, match=r"Discrete\(3, start=1\): Q-values are of actions that begin with 0"):
        algorithm("SparseSimBaPolicy", env, buffer_size=10)
