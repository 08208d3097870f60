"""Whatever becomes of an agent, the next action is that of torch's pass: by a pass that is written anew, or by torch."""

import contextlib
import copy
import warnings
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.distributions import SquashedDiagGaussianDistribution
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrize, prune

from sb3_sparse import SparseLinear, Topology, to_dense
from sb3_sparse.networks.simba import ResidualBlock
from tests.simba.acting import CLOSE, by_torch, make, observations

OBSERVATION = observations()[0]


def act(model):
    return model.predict(OBSERVATION, deterministic=True)[0]


def other(**kwargs):
    """Another agent of the same form."""
    return make(settings={"seed": 1}, **kwargs)


def trunk_of(model):
    return model.actor.latent_pi


def in_place(model):
    with th.no_grad():
        trunk_of(model).stem.values.mul_(-2.0)


def by_numpy(model):
    trunk_of(model).norm.bias.detach().numpy()[:] = 1.0


def data_swapped(model):
    for parameter in model.actor.parameters():
        parameter.data = parameter.data.clone() * 1.5


def data_swapped_many_times(model):
    # Memory that is given back is given out again.
    for _ in range(20):
        act(model)
        model.actor.mu.bias.data = th.rand(3)


def memory_replaced(model):
    with th.no_grad():
        model.actor.mu.bias.set_(th.rand(3))


def data_shifted(model):
    bias = model.actor.mu.bias
    memory = th.arange(6.0)
    bias.data = memory[:3]
    act(model)
    bias.data = memory[3:]


def parameter_replaced(model):
    model.actor.latent_pi.norm.weight = nn.Parameter(th.rand(32))


def layer_replaced(model):
    model.actor.mu = SparseLinear(32, 3, density=0.5, seed=3)


def layer_made_dense(model):
    model.actor.latent_pi.blocks[0].fc1 = model.actor.latent_pi.blocks[0].fc1.to_dense()
    in_place(model)


def trunk_replaced(model):
    model.actor.latent_pi = copy.deepcopy(other().actor.latent_pi)


def block_added(model):
    model.actor.latent_pi.blocks.append(ResidualBlock(32))


def block_removed(model):
    del model.actor.latent_pi.blocks[0]


def actor_replaced(model):
    model.policy.actor = other().actor


def topology_set(model):
    layer = model.actor.latent_pi.stem
    layer.set_topology(Topology.random(layer.topology.shape, layer.topology.nnz, seed=99))


def topology_written(model):
    layer = model.actor.latent_pi.stem
    new = Topology.random(layer.topology.shape, layer.topology.nnz, seed=98)
    layer.topology_seed.copy_(th.tensor(new.identity))


def loaded(model):
    model.policy.load_state_dict(other().policy.state_dict())


def loaded_by_assignment(model):
    model.policy.load_state_dict(copy.deepcopy(other().policy.state_dict()), assign=True)


def parameters_set(model):
    model.set_parameters(copy.deepcopy(other().get_parameters()))


def filled_from_a_vector(model):
    model.policy.load_from_vector(np.random.default_rng(0).normal(size=len(model.policy.parameters_to_vector())))


def trained(model):
    model.train(3, 8)


def statistics_moved(model):
    model.policy.obs_norm.norms[0].update(th.randn(8, 11) * 5)


def normalization_replaced(model):
    model.actor.obs_norm = other().policy.obs_norm


def epsilon_changed(model):
    model.actor.latent_pi.norm.eps = 0.5


def there_and_back(model):
    model.policy.double()
    np.testing.assert_array_equal(act(model), by_torch(model, OBSERVATION))
    model.policy.float()
    in_place(model)


def sent_to_another_process(model):
    # By torch, which moves what it shares into shared memory: the tensors are the same, and lie elsewhere.
    before = model.actor.mu.bias.data_ptr()
    ForkingPickler.dumps(model.policy.state_dict())
    assert model.actor.mu.bias.data_ptr() != before
    with th.no_grad():
        for parameter in model.actor.parameters():
            parameter.mul_(1.5)


def memory_given_back(model):
    memory = model.actor.mu.bias.untyped_storage()
    size = memory.nbytes()
    memory.resize_(0)
    memory.resize_(size)
    model.actor.mu.bias.data.fill_(0.5)


FOLLOWED = [
    *(in_place, by_numpy, data_swapped, data_swapped_many_times, memory_replaced, data_shifted, parameter_replaced),
    *(sent_to_another_process, memory_given_back),
    *(layer_replaced, layer_made_dense, trunk_replaced, block_added, block_removed, actor_replaced),
    *(topology_set, topology_written, loaded, loaded_by_assignment, parameters_set, filled_from_a_vector, trained),
    *(statistics_moved, normalization_replaced, epsilon_changed, there_and_back),
]


@pytest.mark.parametrize("change", FOLLOWED, ids=lambda change: change.__name__)
def test_changes_are_followed(change, passes):
    model = make(steps=60)
    before = act(model)
    np.testing.assert_allclose(before, by_torch(model, OBSERVATION), **CLOSE)
    change(model)
    passes.clear()
    after = act(model)
    np.testing.assert_allclose(after, by_torch(model, OBSERVATION), rtol=2e-6, atol=2e-6)
    assert np.abs(after - before).max() > 1e-4
    assert len(passes) == 1
    assert passes[0] is not None


def test_a_mode_of_the_actor_is_followed(passes):
    model = make()
    model.predict(OBSERVATION)
    model.actor.squash_log_std = False
    th.manual_seed(0)
    action, _ = model.predict(OBSERVATION)
    th.manual_seed(0)
    np.testing.assert_allclose(action, by_torch(model, OBSERVATION, deterministic=False), rtol=1e-5, atol=1e-5)
    assert len(passes) >= 2


class Other(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return 2 * self.layer(x)


def activation_replaced(model):
    model.actor.latent_pi.blocks[0].activation = nn.GELU()


def layer_wrapped(model):
    model.actor.mu = Other(model.actor.mu)


def without_bias(model):
    model.actor.mu.bias = None


def bias_of_one_number(model):
    # Which torch spreads over all outputs.
    model.actor.mu.bias = nn.Parameter(th.ones(1))


def parametrized(model):
    parametrize.register_parametrization(model.actor.mu, "bias", Other(nn.Identity()))


def pruned(model):
    prune.random_unstructured(model.actor.latent_pi.norm, "weight", 0.5)


def weight_normed(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(model.actor.latent_pi.norm, "weight", dim=None)
    model.actor.latent_pi.norm.weight_g.data += 1.0


def forward_replaced(model):
    layer = model.actor.mu
    layer.forward = lambda x: -type(layer).forward(layer, x)


def method_replaced(model):
    model.actor.extract_features = lambda obs, extractor: -obs


def predict_replaced(model):
    model.policy._predict = lambda obs, deterministic=False: th.zeros(1, 3)


def distribution_replaced(model):
    class Halved(SquashedDiagGaussianDistribution):
        def get_actions(self, deterministic=False):
            return super().get_actions(deterministic) / 2

    model.actor.action_dist = Halved(3)


def sparsity_taken_back(model):
    # Refused nowhere: the heads are plain layers then, and the trunk is still sparse.
    model.actor.latent_pi = nn.Sequential(to_dense(copy.deepcopy(model.actor.latent_pi)), nn.Dropout(0.0))


LEFT_TO_TORCH = [
    *(
        activation_replaced,
        layer_wrapped,
        without_bias,
        bias_of_one_number,
        parametrized,
        pruned,
        weight_normed,
        forward_replaced,
    ),
    *(method_replaced, predict_replaced, distribution_replaced, sparsity_taken_back),
]


@pytest.mark.parametrize("change", LEFT_TO_TORCH, ids=lambda change: change.__name__)
def test_what_no_pass_can_follow_is_left_to_torch_with_a_warning(change, passes):
    model = make(steps=60)
    before = act(model)
    change(model)
    passes.clear()
    with pytest.warns(UserWarning, match="from here on this agent acts by torch's") as warned:
        after = act(model)
    np.testing.assert_array_equal(after, by_torch(model, OBSERVATION))
    assert len(warned) == 1
    assert not np.array_equal(after, before) or change in (sparsity_taken_back, without_bias)
    # Said once.
    np.testing.assert_array_equal(act(model), by_torch(model, OBSERVATION))
    assert not passes


@pytest.mark.parametrize("change", LEFT_TO_TORCH, ids=lambda change: change.__name__)
def test_who_never_acted_by_the_pass_is_told_nothing(change, passes):
    model = make(steps=0)
    change(model)
    np.testing.assert_array_equal(act(model), by_torch(model, OBSERVATION))
    assert not passes


@pytest.mark.parametrize("change", [lambda policy: policy.double(), lambda policy: policy.bfloat16()])
def test_another_type_is_torchs_for_as_long_as_it_is(change, passes):
    model = make()
    act(model)
    passes.clear()
    change(model.policy)
    try:
        np.testing.assert_array_equal(act(model), by_torch(model, OBSERVATION))
    except (RuntimeError, TypeError, ValueError) as error:
        with pytest.raises(type(error)):
            by_torch(model, OBSERVATION)
    assert not passes
    model.policy.float()
    np.testing.assert_allclose(act(model), by_torch(model, OBSERVATION), **CLOSE)
    assert len(passes) == 1


def test_the_class_of_a_layer_may_be_patched(monkeypatch):
    model = make()
    act(model)
    forward = nn.LayerNorm.forward
    monkeypatch.setattr(nn.LayerNorm, "forward", lambda self, x: forward(self, x) + 1)
    with pytest.warns(UserWarning, match="a LayerNorm in it now"):
        np.testing.assert_array_equal(act(model), by_torch(model, OBSERVATION))


def count_calls(model):
    calls = []
    model.actor.latent_pi.register_forward_hook(lambda *args: calls.append(1))
    return calls


@pytest.mark.parametrize(
    "attach",
    [
        lambda model, hook: model.actor.latent_pi.register_forward_hook(hook),
        lambda model, hook: model.actor.mu.register_forward_pre_hook(hook),
        lambda model, hook: model.actor.register_forward_hook(hook),
        lambda model, hook: model.actor.mu.register_forward_hook(hook, with_kwargs=True),
        lambda model, hook: register_module_forward_hook(hook),
    ],
)
def test_hooks_change_no_training_and_a_warning_says_so(attach):
    model, calls = make(), []
    before = act(model)
    handle = attach(model, lambda *args: calls.append(1))
    with pytest.warns(UserWarning, match="hooks on the network that acts are not called") as warned:
        np.testing.assert_array_equal(act(model), before)
    assert len(warned) == 1
    np.testing.assert_array_equal(act(model), before)
    assert not calls
    # Passes of several observations are torch's, with hooks.
    model.predict(observations(n=2))
    assert calls
    handle.remove()
    np.testing.assert_array_equal(act(model), before)


def test_hooks_are_called_by_who_acts_by_torchs_pass():
    model = make(compiled_acting=False)
    calls = count_calls(model)
    act(model)
    assert len(calls) == 1


@contextlib.contextmanager
def default_dtype(dtype):
    before = th.get_default_dtype()
    th.set_default_dtype(dtype)
    try:
        yield
    finally:
        th.set_default_dtype(before)


@pytest.mark.parametrize(
    "around",
    [th.inference_mode, lambda: th.device("meta"), lambda: default_dtype(th.float64)],
    ids=["inference mode", "default device", "default dtype"],
)
def test_what_surrounds_the_first_action_is_not_seen_in_others(around, passes):
    for deterministic in (True, False):
        model = make(steps=0)
        with around():
            action, _ = model.predict(OBSERVATION, deterministic=deterministic)
        th.manual_seed(0)
        again, _ = model.predict(OBSERVATION)
        th.manual_seed(0)
        np.testing.assert_allclose(again, by_torch(model, OBSERVATION, deterministic=False), **CLOSE)
        assert action.dtype == again.dtype == np.float32
    assert len(passes) == 4
