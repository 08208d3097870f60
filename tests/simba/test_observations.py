"""Observations inside policies: when their statistics move, what outliers do, and which spaces there can be."""

import copy
import io

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import QRDQN, TQC, CrossQ
from stable_baselines3 import DDPG, DQN, SAC, TD3
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.torch_layers import CombinedExtractor
from torch import nn

from sb3_sparse import SparseSimBaDQNPolicy, SparseSimBaPolicy
from sb3_sparse.networks import RunningNorm
from sb3_sparse.simba.observation_norm import ObservationNorm
from sb3_sparse.simba.spaces import FlatSmallImages
from tests.envs import ReachEnv, SpaceEnv

CONTINUOUS = [SAC, TD3, DDPG, TQC, CrossQ]
DISCRETE = [DQN, QRDQN]
ALGORITHMS = CONTINUOUS + DISCRETE
LOOKS = 1000

pytestmark = [
    pytest.mark.filterwarnings("ignore:Adam:UserWarning"),
    # Hooks here look at passes of training.
    pytest.mark.filterwarnings("ignore:hooks on the network that acts are not called"),
]


def make_model(algorithm, policy="SparseSimBaPolicy", env=None, policy_kwargs=None, **kwargs):
    env = env or (ReachEnv(mean=100.0, scale=0.01) if algorithm in CONTINUOUS else "CartPole-v1")
    policy_kwargs = {"net_arch": [8], "sparsity": 0.2} if policy_kwargs is None else policy_kwargs
    defaults = {"learning_starts": 10, "batch_size": 16, "buffer_size": 500, "seed": 0, "train_freq": 1, "device": "cpu"}
    return algorithm(policy, env, policy_kwargs=policy_kwargs, **{**defaults, **kwargs})


def online_networks(model):
    return [getattr(model, name) for name in ("actor", "critic", "q_net", "quantile_net") if hasattr(model, name)]


def look(model, obs):
    """Everything that can be read off the networks, as they are."""
    if hasattr(model, "actor"):
        actions = model.actor(obs, **({} if isinstance(model, TD3) else {"deterministic": True}))
        values = model.critic(obs, actions.detach())
        return [actions, *(values if isinstance(values, tuple) else [values])]
    return [network(obs) for network in online_networks(model)]


def state(model):
    return {name: value.clone() for name, value in model.policy.state_dict().items()}


def same(first, second):
    pairs = zip(first.values(), second.values(), strict=True) if isinstance(first, dict) else zip(first, second, strict=True)
    return all(th.equal(a, b) for a, b in pairs)


def assert_looking_changes_nothing(model, looks=LOOKS):
    shape = model.observation_space.shape
    probe = th.randn(8, *shape)
    with th.no_grad():
        reading = look(model, probe)
    before = state(model)
    for i in range(looks):
        # One observation for saliency, or a batch.
        sum(values.sum() for values in look(model, th.randn(1 + i % 2, *shape, requires_grad=True) * 50))
    with th.enable_grad():
        assert same(look(model, probe), reading), "with gradients one sees the same"
    with th.no_grad():
        assert same(look(model, probe), reading)
    assert same(state(model), before)


class Looker(BaseCallback):
    def _on_step(self):
        if self.num_timesteps in (20, 21):
            self.model.policy.set_training_mode(True)
            rng = th.get_rng_state()
            assert_looking_changes_nothing(self.model, looks=100)
            th.set_rng_state(rng)
        return True


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_looking_with_gradients_moves_nothing(algorithm, tmp_path):
    model = make_model(algorithm, gradient_steps=2).learn(25)
    assert all(network.training for network in online_networks(model)), "as SB3 leaves them"
    assert_looking_changes_nothing(model)
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model")
    assert all(network.training for network in online_networks(loaded)), "as SB3 loads them"
    assert_looking_changes_nothing(loaded, looks=100)
    watched = make_model(algorithm, gradient_steps=2).learn(25, callback=Looker())
    assert same(state(watched), state(model))


def replayed(model, steps):
    """Train, and check on the way that each batch is normalised together with all before it and itself."""
    (norm,) = model.policy.obs_norm.norms
    expected = RunningNorm(norm.obs_mean.shape)
    expected.load_state_dict(norm.state_dict())
    fed, n_seen = [], []
    sample = model.replay_buffer.sample

    def recording_sample(*args, **kwargs):
        data = sample(*args, **kwargs)
        fed[:] = [th.cat([data.observations, data.next_observations])] if isinstance(model, CrossQ) else [data.observations]
        expected.update(fed[0].float())
        return data

    def compare(_, args, output):
        if fed and th.equal(args[0], fed[0].float()):
            n_seen.append(1)
            assert th.equal(output, expected(args[0]))

    model.replay_buffer.sample = recording_sample
    hook = model.policy.obs_norm.register_forward_hook(compare)
    model.learn(steps)
    hook.remove()
    assert len(n_seen) >= expected.obs_count > 0
    return expected


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_statistics_are_those_of_the_batches_trained_on(algorithm):
    model = make_model(algorithm, gradient_steps=3)
    expected = replayed(model, 30)
    (norm,) = model.policy.obs_norm.norms
    assert norm.obs_count == model._n_updates == 60
    assert same(norm.state_dict(), expected.state_dict())


class OwnTrain(DQN):
    """An algorithm with a step of its own, in parts."""

    def train(self, gradient_steps, batch_size=100):
        self.policy.set_training_mode(True)
        for _ in range(2 * gradient_steps):
            self._n_updates += 1
            self._fit(self.replay_buffer.sample(batch_size))

    def _fit(self, data):
        loss = self.q_net(data.observations).square().mean()
        self.policy.optimizer.zero_grad()
        loss.backward()
        self.policy.optimizer.step()


class Wrapped(SAC):
    def train(self, *args, **kwargs):
        super().train(*args, **kwargs)
        assert_looking_changes_nothing(self, looks=2)


@pytest.mark.parametrize("algorithm", [OwnTrain, Wrapped])
def test_statistics_follow_subclasses_of_algorithms(algorithm):
    env = "CartPole-v1" if algorithm is OwnTrain else ReachEnv()
    model = make_model(algorithm, env=env, gradient_steps=2)
    expected = replayed(model, 20)
    (norm,) = model.policy.obs_norm.norms
    assert norm.obs_count == model._n_updates == (40 if algorithm is OwnTrain else 20)
    assert same(norm.state_dict(), expected.state_dict())


def test_a_look_between_the_pass_and_the_step_does_not_count():
    model = make_model(DQN, gradient_steps=2)

    def diagnose(*_):
        with th.enable_grad():
            model.q_net(th.full((3, 4), 77.0)).sum()

    model.policy.optimizer.register_step_pre_hook(diagnose)
    expected = replayed(model, 20)
    (norm,) = model.policy.obs_norm.norms
    assert same(norm.state_dict(), expected.state_dict())


@pytest.mark.parametrize("algorithm", [SAC, TD3, DQN])
def test_a_replaced_optimizer_is_followed_and_the_old_one_is_not(algorithm):
    model = make_model(algorithm).learn(15)
    (norm,) = model.policy.obs_norm.norms
    owner = {SAC: "actor", TD3: "critic", DQN: "policy"}[algorithm]
    owner = getattr(model, owner)
    old = owner.optimizer
    owner.optimizer = th.optim.SGD(old.param_groups[0]["params"], lr=1e-3)
    model.learn(20, reset_num_timesteps=False)
    assert norm.obs_count == model._n_updates == 25
    owner.train()
    look(model, th.randn(4, *model.observation_space.shape))
    old.step()
    assert norm.obs_count == 25
    with pytest.raises(TypeError, match=r"expected a torch\.optim\.Optimizer"):
        owner.optimizer = object()
    assert isinstance(owner.optimizer, th.optim.SGD)


def own_step(policy, obs):
    policy.optimizer.zero_grad()
    policy.q_net(obs).sum().backward()
    policy.optimizer.step()


def dqn_policy(**kwargs):
    return SparseSimBaDQNPolicy(spaces.Box(-1, 1, (3,)), spaces.Discrete(2), lambda _: 1e-3, width_scale=0.05, **kwargs)


def test_a_loop_of_ones_own_moves_the_statistics_with_its_steps():
    policy, obs = dqn_policy(), th.randn(8, 3) * 5
    expected = RunningNorm((3,))
    for _ in range(3):
        policy.q_net(obs + 1)  # a look
        own_step(policy, obs)
        expected.update(obs)
    assert same(policy.obs_norm.norms[0].state_dict(), expected.state_dict())


def pickled(policy):
    file = io.BytesIO()
    th.save(policy, file)
    file.seek(0)
    return th.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_a_copy_of_a_policy_has_statistics_of_its_own_that_move(copied):
    policy, obs = dqn_policy(), th.randn(8, 3)
    own_step(policy, obs)
    policy.q_net(obs * 9)  # not a part of the copy
    clone = copied(policy)
    clone.optimizer.step()
    assert clone.obs_norm.norms[0].obs_count == 1
    own_step(clone, obs)
    assert clone.obs_norm.norms[0].obs_count == 2
    assert policy.obs_norm.norms[0].obs_count == 1


def test_an_interrupted_training_step_leaves_nothing_behind():
    model = make_model(DQN).learn(15)
    (norm,) = model.policy.obs_norm.norms
    handle = model.policy.optimizer.register_step_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.train(1, 16)
    handle.remove()
    assert norm.obs_count == model._n_updates == 5
    assert_looking_changes_nothing(model, looks=2)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_torchs_tools_see_a_network_in_training_mode():
    policy, x = dqn_policy(sparsity=0), th.randn(8, 3)
    own_step(policy, x)
    q_net = policy.q_net.train()
    expected = q_net(x)
    assert th.allclose(th.jit.trace(q_net, (x,))(x), expected)
    assert th.allclose(th.func.vmap(lambda row: q_net(row[None])[0])(x), expected, atol=1e-6)
    assert th.func.jacrev(lambda row: q_net(row).sum(0))(x).shape == (2, 8, 3)
    policy.optimizer.step()
    assert policy.obs_norm.norms[0].obs_count == 1


def share_broken(model):
    values = model.policy.state_dict().values()
    return np.mean([not value.isfinite().all() for value in values])


@pytest.mark.parametrize("outlier", [1e20, 3e38, np.inf, np.nan])
@pytest.mark.parametrize("algorithm", [DQN, SAC])
def test_one_observation_breaks_no_more_than_in_the_stock_policy(algorithm, outlier):
    shares = {}
    for policy, kwargs in (("MlpPolicy", {"net_arch": [16]}), ("SparseSimBaPolicy", None)):
        model = make_model(algorithm, policy, policy_kwargs=kwargs).learn(20)
        model.replay_buffer.observations[3] = outlier
        model.set_logger(configure(None, []))
        try:
            model.train(40, 16)
        except ValueError as error:
            assert not np.isfinite(outlier) or policy == "MlpPolicy", error  # noqa: PT017
        shares[policy] = share_broken(model)
    assert shares["SparseSimBaPolicy"] <= shares["MlpPolicy"]
    if not np.isnan(outlier):
        assert shares["SparseSimBaPolicy"] == 0
    statistics = model.policy.obs_norm.norms[0].state_dict()
    assert all(value.isfinite().all() for value in statistics.values())
    ordinary = np.delete(model.replay_buffer.observations[:20, 0], 3, axis=0)
    assert np.abs(statistics["obs_mean"].numpy() - ordinary.mean(0)).max() < 0.1
    assert np.abs(statistics["obs_var"].sqrt().numpy() - ordinary.std(0)).max() < 0.1


@pytest.mark.parametrize("algorithm", [SAC, TD3, DQN])
@pytest.mark.parametrize("when", ["pre", "post"])
def test_looking_from_an_optimizers_hook_moves_nothing(algorithm, when):
    def run(looks):
        model = make_model(algorithm, gradient_steps=3, train_freq=1)
        network = model.policy.q_net if algorithm is DQN else model.policy.actor
        critic = None if algorithm is DQN else model.policy.critic

        def look(*_):
            obs = 1000 + th.randn(8, *model.observation_space.shape, generator=th.Generator().manual_seed(0))
            with th.enable_grad():
                network(obs) if algorithm is not SAC else network.get_action_dist_params(obs)
                if critic is not None:
                    critic(obs, th.zeros(8, *model.action_space.shape))

        optimizers = [model.policy.optimizer] if algorithm is DQN else [network.optimizer, critic.optimizer]
        for optimizer in optimizers if looks else []:
            getattr(optimizer, f"register_step_{when}_hook")(look)
        return state(model.learn(60))

    assert same(run(False), run(True))


@pytest.mark.parametrize(
    ("name", "value"), [("obs_var", -1.0), ("obs_var", np.nan), ("obs_mean", np.inf), ("obs_count", -2.0)]
)
def test_statistics_that_cannot_be_are_refused_before_anything_is_loaded(name, value):
    model, other = make_model(SAC), make_model(SAC, seed=1)
    parameters = other.get_parameters()
    for key, tensor in parameters["policy"].items():
        if key.endswith(name):
            tensor.fill_(value)
    before = state(model)
    with pytest.raises(RuntimeError, match=f"obs_norm.norms.0.{name}: expected"):
        model.set_parameters(parameters)
    assert same(state(model), before)


def dict_space(**parts):
    return spaces.Dict(parts)


VECTOR = spaces.Box(-1, 1, (3,))


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.Box(-1, 1, (0,)), r"the observation is a Box space of shape \(0,\): expected at least one number"),
        (spaces.Box(-1, 1, (0, 3)), r"shape \(0, 3\): expected at least one"),
        (dict_space(), "a Dict without parts"),
        (dict_space(a=VECTOR, b=spaces.Box(-1, 1, (0,))), "the part 'b' of the observation is a Box space"),
        (dict_space(a=dict_space(b=VECTOR)), "the part 'a' of the observation is a Dict space.*FlattenObservation"),
        (spaces.Tuple([VECTOR]), "the observation is a Tuple space.*FlattenObservation"),
        (spaces.Text(3), "the observation is a Text space"),
        (spaces.Discrete(3, start=1), "the observation is a Discrete space that starts at 1, and SB3's networks count from 0"),
        (
            dict_space(a=spaces.MultiDiscrete([2, 3], start=[0, -1])),
            "is a MultiDiscrete space that starts at",
        ),
        (spaces.MultiDiscrete(np.array([[2, 3], [4, 5]])), r"MultiDiscrete space of shape \(2, 2\)"),
    ],
)
def test_spaces_that_cannot_be_observed_are_refused_in_one_sentence(space, message):
    with pytest.raises(ValueError, match=message):
        SparseSimBaPolicy(space, spaces.Box(-1, 1, (2,)), lambda _: 1e-3)


def test_an_action_without_a_number_is_refused():
    with pytest.raises(ValueError, match=r"the action is a Box space of shape \(0,\): expected at least one number"):
        SparseSimBaPolicy(VECTOR, spaces.Box(-1, 1, (0,)), lambda _: 1e-3)


def test_crossq_takes_no_dict():
    env = SpaceEnv(dict_space(a=VECTOR), spaces.Box(-1, 1, (2,)))
    with pytest.raises(ValueError, match=r"CrossQ takes no Dict observations.*SAC or TQC"):
        make_model(CrossQ, env=env)


@pytest.mark.parametrize("float_images", [False, True])
def test_small_images_in_a_dict_are_flattened(float_images, tmp_path):
    def image(size):
        return spaces.Box(0, 1, (3, size, size)) if float_images else spaces.Box(0, 255, (size, size, 3), np.uint8)

    space = dict_space(small=image(7), vector=VECTOR, large=image(36))
    kwargs = {"width_scale": 0.05, "normalize_images": not float_images}
    kwargs["features_extractor_kwargs"] = {"cnn_output_dim": 5}
    model = make_model(SAC, env=SpaceEnv(space, spaces.Box(-1, 1, (2,))), policy_kwargs=kwargs).learn(15)
    extractor = model.actor.features_extractor
    assert isinstance(extractor, FlatSmallImages)
    assert extractor.features_dim == 7 * 7 * 3 + 3 + 5
    assert isinstance(extractor.extractors["small"], nn.Flatten)
    model.save(tmp_path / "model")
    obs = model.observation_space.sample()
    action = model.predict(obs, deterministic=True)[0]
    assert np.array_equal(SAC.load(tmp_path / "model").predict(obs, deterministic=True)[0], action)
    only_small = SparseSimBaPolicy(dict_space(a=image(5)), spaces.Box(-1, 1, (2,)), lambda _: 1e-3, width_scale=0.05)
    assert only_small.actor.features_dim == 75


def test_other_dicts_keep_the_extractor_of_sb3():
    space = dict_space(image=spaces.Box(0, 255, (3, 36, 36), np.uint8), vector=VECTOR)
    policy = SparseSimBaPolicy(space, spaces.Box(-1, 1, (2,)), lambda _: 1e-3, width_scale=0.05)
    assert type(policy.actor.features_extractor) is CombinedExtractor


def test_what_saved_networks_name_can_be_imported():
    from sb3_sparse import policy_networks

    assert policy_networks.ObservationNorm is ObservationNorm
