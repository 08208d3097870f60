"""
Which networks of a model are reset, and which of their parameters.

A wrong word in an algorithm's ``model_parts()`` is found here, before anything moves: it would make a reset of nothing, or of
half of what belongs together.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from stable_baselines3.common.base_class import BaseAlgorithm
from torch import nn

from sb3_sparse.common.model_parts import ModelParts, Network, NoKnownNetworks, check_networks
from sb3_sparse.common.sb3_models import keeps_samples, model_parts, module_in, policy_of


@dataclass(frozen=True)
class ResetPart:
    """One network of a model that is going to be reset."""

    name: str
    network: Network
    online: nn.Module
    """The module at its place in the policy."""
    names: frozenset[str]
    """Of the parameters of ``online`` that are its own."""

    @property
    def place(self) -> str:
        """Where ``online`` is in the policy."""
        assert self.network.place is not None
        return self.network.place


def parts_to_reset(
    model: BaseAlgorithm, strategy: str, networks: str | Sequence[str] | None
) -> tuple[ModelParts, list[ResetPart]]:
    """
    All parts of a model, and those of its networks that are going to be reset.

    :param model: The model.
    :param strategy: As :func:`~sb3_sparse.plasticity.reset_model_` takes it.
    :param networks: Their names. None: all that the model has.
    :raises TypeError: If the model cannot be reset, or not in this way.
    :raises ValueError: If it has no such network, or says something about one that cannot be.
    """
    networks = None if networks is None else check_networks(networks)
    known = _known_parts(model)
    if strategy == "redo" and not keeps_samples(model):
        raise TypeError(f"{type(model).__name__} has no replay buffer to score units on: 'redo' is for off-policy models.")
    online = {name: _at_place(model, name, network.place or "") for name, network in known.networks.items()}
    _check_all_trained(model, known.networks, online)
    if networks is not None and (missing := [name for name in networks if name not in known.networks]):
        raise ValueError(f"networks={networks}: {type(model).__name__} has no {missing[0]!r}, only {sorted(known.networks)}.")
    names = {name: network.parameter_names(online[name]) for name, network in known.networks.items()}
    for name, network in known.networks.items():
        _check_names(_said(model, name), network, online[name], names[name])
    parts = []
    for name, network in known.networks.items():
        if networks is None or name in networks:
            # What two networks of one module share is reset with both alone.
            others = [other for other in known.networks if networks is not None and other not in networks]
            sharing = [other for other in others if known.networks[other].place == network.place]
            own = names[name].difference(*(names[other] for other in sharing))
            # What does not learn has nothing to begin anew.
            frozen = {each for each in own if not online[name].get_parameter(each).requires_grad}
            if not own:
                raise ValueError(
                    f"{_said(model, name)} shares all its parameters with {', '.join(map(repr, sharing))} at the same place, "
                    f"and what is shared is reset with both alone. Reset them together, or say by parameters= what is whose."
                )
            parts.append(ResetPart(name, network, online[name], own - frozen))
    return known, parts


def check_no_target_is_forgotten(model: BaseAlgorithm, part: ResetPart) -> None:
    """
    Whether a target would be left behind by a reset that should take it along: averaging mixes values by position.

    :param model: The model.
    :param part: Its network.
    :raises ValueError: If the network has no target, and the policy has one by the name that SB3 would give it.
    """
    if part.network.target is not None:
        return
    modules = dict(policy_of(model).named_modules(remove_duplicate=False))
    for place in _places_of_targets(part.place):
        # Something else may have such a name, but not with the same parameters.
        if place in modules and part.names.intersection(name for name, _ in _named_parameters(modules[place])):
            raise ValueError(
                f"{_said(model, part.name)} has no target, and policy.{place} seems to be the target of "
                f"policy.{part.place}, which this reset would leave behind: say target=self.policy.{place}."
            )


def check_fresh(model: BaseAlgorithm, policy: nn.Module) -> nn.Module:
    """
    The policy that ``build_policy`` of a model has built.

    :param model: The model.
    :param policy: What came out.
    :raises ValueError: If it is no module, shares trained parameters with the model's own or lacks a place of a network.
    """
    what = f"{type(model).__name__}.model_parts(): build_policy"
    if not isinstance(policy, nn.Module):
        raise ValueError(f"{what} returned a {type(policy).__name__}: expected a policy, built as the model built its own.")
    trained = {parameter for parameter in policy_of(model).parameters() if parameter.requires_grad}
    if shared := [name for name, parameter in _named_parameters(policy) if parameter in trained]:
        raise ValueError(
            f"{what} returned a policy whose {shared[0]!r} is the model's own parameter, which has no fresh value: expected a "
            "new policy in each call, built with the arguments that built the model's."
        )
    places = dict(policy.named_modules(remove_duplicate=False))
    for name, network in model_parts(model).networks.items():
        if network.place not in places:
            raise ValueError(f"{what} returned a policy without {network.place!r}, the place of {name!r}.")
    return policy


def _said(model: BaseAlgorithm, network: str) -> str:
    return f"{type(model).__name__}.model_parts(): {network!r}"


def _named_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return module.named_parameters(remove_duplicate=False)


def _places_of_targets(place: str) -> list[str]:
    """``critic.net`` is followed by ``critic_target.net``, or ``critic.net_target``."""
    steps = place.split(".") if place else []
    return [".".join([*steps[:i], f"{steps[i]}_target", *steps[i + 1 :]]) for i in range(len(steps))]


def _at_place(model: BaseAlgorithm, name: str, place: str) -> nn.Module:
    try:
        return policy_of(model).get_submodule(place)
    except AttributeError as error:
        there = [child for child, _ in policy_of(model).named_children()]
        raise ValueError(
            f"{_said(model, name)} has place={place!r}, and there is no such module in the policy: expected one of {there}, "
            'a module inside, or "" for the policy itself.'
        ) from error


def _known_parts(model: BaseAlgorithm) -> ModelParts:
    """
    :raises TypeError: If the model cannot be reset.
    """
    reason = "nothing says how its policy is built anew"
    try:
        known = model_parts(model)
    except NoKnownNetworks as error:
        reason = str(error).rstrip(".")
    else:
        incomplete = [name for name, part in known.networks.items() if part.place is None or part.optimizer is None]
        if incomplete:
            reason = f"the place or the optimizer of its network {incomplete[0]!r} is not known"
        elif known.build_policy is not None:
            return known
        elif (trained := module_in(getattr(model, "policy_kwargs", None))) is not None:
            reason = (
                f"policy_kwargs hold {type(trained).__name__}(...), a module that has weights already, and nothing says how "
                "it is built anew (pass its class, or a function that makes it)"
            )
    raise TypeError(
        f"{type(model).__name__} cannot be reset: {reason}. Resets are for PPO and A2C, for off-policy models of SB3 and "
        "sb3-contrib (SAC, TQC, CrossQ, TD3, DDPG, DQN, QRDQN), and for an algorithm of yours whose method model_parts() says "
        "all that is needed (docs/extending/algorithm.md)."
    )


def _check_all_trained(model: BaseAlgorithm, networks: Mapping[str, Network], online: Mapping[str, nn.Module]) -> None:
    optimizers = [network.optimizer for network in networks.values() if network.optimizer is not None]
    trained = {p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    for key, network in networks.items():
        # Where it is said what belongs to a network, nothing has to be found out.
        for name, parameter in online[key].named_parameters() if network.parameters is None else ():
            if parameter.requires_grad and parameter not in trained:
                raise ValueError(
                    f"{network.place}.{name} of {type(model).__name__} is in no optimizer: it is neither trained nor reset. "
                    "Make the optimizer after changing layers, e.g. after sparsify_."
                )


def _check_names(what: str, network: Network, online: nn.Module, names: frozenset[str]) -> None:
    """What nobody would notice: a reset of nothing, or of half."""
    place = f"policy.{network.place}".rstrip(".")
    if not names:
        raise ValueError(f"{what} has no parameter at {place} that its optimizer trains: name another place or optimizer.")
    for module, where in ((online, place), (network.target, "its target, which has to be a copy of " + place)):
        known = names if module is None else {name for name, _ in module.named_parameters(remove_duplicate=False)}
        if missing := sorted(names - known):
            raise ValueError(f"{what} has a parameter {missing[0]!r} that is not in {where}.")
    own = {parameter for name, parameter in _named_parameters(online) if name in names}
    followers = () if network.target is None else _named_parameters(network.target)
    if shared := [name for name, parameter in followers if parameter in own]:
        raise ValueError(
            f"{what} shares its parameter {shared[0]!r} with its target: target= has to be a copy of {place} that follows it, "
            "or None."
        )
