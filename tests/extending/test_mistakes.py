"""What an algorithm says wrongly about itself in ``model_parts()`` is named and refused before anything moves."""

import copy
from dataclasses import replace

import pytest
import torch as th
from stable_baselines3 import SAC
from torch import nn

from sb3_sparse.common.model_parts import ModelParts, Network
from sb3_sparse.common.sb3_models import sb3_model_parts
from sb3_sparse.plasticity import ResetCallback, measure, reset_model_
from tests.envs import ReachEnv
from tests.extending.test_algorithm import EncodedSAC, encoded


def refused(model, message, **kwargs):
    """Nothing of the model has moved, neither values nor optimizers."""

    def state():
        return [part.state_dict() for part in (model.policy, model.actor.optimizer, model.critic.optimizer)]

    before = copy.deepcopy(state())
    with pytest.raises(ValueError, match=message):
        reset_model_(model, **{"seed": 1, **kwargs})
    th.testing.assert_close(state(), before, rtol=0, atol=0)


def sparse(algorithm):
    kwargs = dict(width_scale=0.05, sparsity=0.5)
    return algorithm(
        "SparseSimBaPolicy", ReachEnv(), learning_starts=20, batch_size=16, buffer_size=200, seed=0, policy_kwargs=kwargs
    )


class Forgetful(SAC):
    """Its critic has a target, of which it does not tell."""

    def model_parts(self):
        known = sb3_model_parts(self)
        return replace(known, networks={**known.networks, "critic": replace(known.networks["critic"], target=None)})


def test_a_redrawn_critic_does_not_leave_its_target_behind():
    message = r"Forgetful\.model_parts\(\): 'critic' has no target, .*policy\.critic_target seems .*policy\.critic, .*target="
    model = sparse(Forgetful).learn(30)
    refused(model, message, redraw_topology=True)
    refused(model, message, redraw_topology=True, target="fresh", networks=["critic"])
    refused(model, message, strategy="last_layers")
    refused(model, message, strategy="shrink_perturb", target="copy")
    with pytest.raises(ValueError, match=message):
        sparse(Forgetful).learn(30, callback=ResetCallback(at=[25], redraw_topology=True))


def test_a_target_that_is_left_alone_need_not_be_known():
    for algorithm, networks, options in (
        (Forgetful, ["actor"], dict(redraw_topology=True)),
        (Forgetful, ["critic"], dict(target="keep")),
        (Forgetful, ["critic"], dict(strategy="shrink_perturb")),
    ):
        model = sparse(algorithm).learn(30)
        before = copy.deepcopy(model.policy.state_dict())
        reset_model_(model, networks=networks, seed=1, **options)
        moved = {name.split(".")[0] for name, value in model.policy.state_dict().items() if not th.equal(value, before[name])}
        assert moved == set(networks)


def test_something_else_may_be_called_a_target():
    model = sparse(Forgetful)
    model.policy.critic_target = nn.Linear(2, 2)
    reset_model_(model, networks=["critic"], redraw_topology=True)


def mistaken(**mistakes):
    """``EncodedSAC`` whose encoder is described wrongly."""

    class Mistaken(EncodedSAC):
        def model_parts(self):
            parts = super().model_parts()
            wrong = {key: value(self) if callable(value) else value for key, value in mistakes.items()}
            return replace(parts, networks={**parts.networks, "encoder": replace(parts.networks["encoder"], **wrong)})

    return encoded(Mistaken)


def test_the_target_of_a_part_of_the_critic_is_part_of_its_target():
    model = mistaken(target=None).learn(30)
    refused(
        model,
        r"'encoder' has no target, and policy\.critic_target\.features_extractor seems to be",
        networks=["encoder"],
    )


@pytest.mark.parametrize("strategy", ["full", "shrink_perturb"])
def test_a_target_is_a_copy(strategy):
    """Not the module itself, nor one that shares some of its parameters."""

    def half(model):
        twin = copy.deepcopy(model.critic.features_extractor)
        twin.net[2] = model.critic.features_extractor.net[2]
        return twin

    for target, name in ((lambda model: model.critic.features_extractor, "net.0.weight"), (half, "net.2.weight")):
        refused(
            mistaken(target=target).learn(30),
            rf"Mistaken\.model_parts\(\): 'encoder' shares its parameter '{name}' with its target: target= has to be a copy "
            r"of policy\.critic\.features_extractor",
            networks=["encoder"],
            strategy=strategy,
        )


def test_a_network_with_nothing_of_its_own_is_not_reset_alone():
    class Twins(SAC):
        def model_parts(self):
            known = sb3_model_parts(self)
            return replace(known, networks={**known.networks, "again": known.networks["critic"]})

    model = encoded(Twins).learn(30)
    for network, other in (("critic", "again"), ("again", "critic")):
        refused(
            model,
            rf"Twins\.model_parts\(\): '{network}' shares all its parameters with '{other}' at the same place",
            networks=[network],
        )
    before = model.critic.qf0[0].weight.detach().clone()
    reset_model_(model, networks=["critic", "again"])
    assert not th.equal(model.critic.qf0[0].weight, before)


@pytest.mark.parametrize("strategy", ["full", "shrink_perturb"])
def test_the_policy_itself_holds_no_fresh_values(strategy):
    def half(model):
        policy = copy.deepcopy(model.policy)
        policy.actor.mu = model.policy.actor.mu
        return policy

    for build, message in (
        (lambda model: model.policy, r"build_policy returned a policy whose 'actor.latent_pi.0.weight' is the model's own"),
        (half, r"build_policy returned a policy whose 'actor.mu.weight' is the model's own"),
        (lambda model: None, r"build_policy returned a NoneType: expected a policy"),
        (lambda model: nn.ModuleDict({"critic": model.critic_target}), "'critic.* is the model's own parameter"),
        (lambda model: nn.ModuleDict(), r"build_policy returned a policy without 'actor', the place of 'actor'"),
    ):

        class Rebuilt(SAC):
            def model_parts(self, build=build):
                return replace(sb3_model_parts(self), build_policy=lambda: build(self))

        kwargs = dict(net_arch=[8])
        refused(encoded(Rebuilt, policy_kwargs=kwargs).learn(30), r"Rebuilt\.model_parts\(\): .*" + message, strategy=strategy)


def test_a_frozen_part_may_be_shared_with_a_new_policy():
    """One that was trained before, say, and is handed to every policy."""

    class Pretrained(SAC):
        def model_parts(self):
            known = sb3_model_parts(self)

            def build():
                policy = known.build_policy()
                policy.frozen = self.policy.frozen
                return policy

            return replace(known, build_policy=build)

    model = encoded(Pretrained)
    model.policy.frozen = nn.Linear(2, 2).requires_grad_(False)
    before = model.actor.mu.weight.detach().clone()
    reset_model_(model)
    assert not th.equal(model.actor.mu.weight, before)


@pytest.mark.parametrize("place", ["critic.nonsense", "critc", "optimizer"])
def test_a_place_that_is_not_there_is_named(place):
    message = (
        rf"Mistaken\.model_parts\(\): 'encoder' has place='{place}', .* expected one of \['actor', 'critic', 'critic_target'\]"
    )
    refused(mistaken(place=place), message)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("module", "critic", "a torch module"),
        ("forward", 3, "a function of a batch"),
        ("place", 3, 'a name such as "critic", or None'),
        ("target", "critic_target", "a torch module, or None"),
        ("optimizer", "adam", "an optimizer, or None"),
        ("parameters", "net.0.weight", "a list of names, or None"),
        ("parameters", [3], "a list of names, or None"),
        ("parameters", iter(["net.0.weight"]), "a list of names, or None"),
        ("layers", [nn.ReLU()], "a list of lists of modules, or None"),
        ("layers", [["net.0"]], "a list of lists of modules, or None"),
    ],
)
def test_a_field_that_holds_something_else_is_named(field, value, expected):
    model = mistaken(**{field: lambda _: value})
    message = rf"Mistaken\.model_parts\(\): 'encoder' has {field}=.*: expected {expected}\."
    refused(model, message)
    with pytest.raises(ValueError, match=message):
        measure(model)


NETWORK = Network(nn.ReLU(), nn.ReLU())


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (None, r" returned None: expected ModelParts\(networks, \.\.\.\)"),
        ([NETWORK], r" returned .*: expected ModelParts\(networks, \.\.\.\)"),
        ({"critic": NETWORK}, r" returned .*: expected ModelParts\(networks, \.\.\.\)"),
        (ModelParts([NETWORK]), r" has networks=.*: expected a dictionary of a Network by each name"),
        (ModelParts({}), r" has networks=\{\}: expected a dictionary"),
        (ModelParts({"critic": nn.ReLU()}), r" has networks=\{'critic': ReLU\(\)\}: expected a name, and a Network"),
        (ModelParts({3: NETWORK}), r" has networks=\{3: .*\}: expected a name, and a Network"),
        (ModelParts({"critic": NETWORK}, {"temperature": 1.0}), r" has others=.* expected a dictionary of a LearnedTensor"),
        (ModelParts({"critic": NETWORK}, build_policy="new"), r" has build_policy='new': expected a function, or None"),
    ],
)
def test_what_is_no_parts_is_named(parts, message):
    model = encoded(type("Odd", (SAC,), {"model_parts": lambda self: parts}))
    for ask in (reset_model_, measure):
        with pytest.raises(ValueError, match=r"^Odd\.model_parts\(\)" + message) as caught:
            ask(model)
        assert len(str(caught.value)) < 200
