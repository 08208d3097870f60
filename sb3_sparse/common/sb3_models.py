"""
The parts of models of Stable-Baselines3 and sb3-contrib, in the words of ``model_parts.py``: the one place that knows them.

Networks go by the names ``"actor"`` and ``"critic"`` on every algorithm; the Q-network of DQN and the quantile network
of QR-DQN are a ``"critic"``. Losses are in ``plasticity/measurement/losses.py``. And which callbacks train with a model.
"""

import copy
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch as th
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback, ProgressBarCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.her import HerReplayBuffer
from torch import nn

from sb3_sparse.common.model_parts import (
    HasModelParts,
    HasPlasticityBatch,
    LearnedTensor,
    ModelParts,
    Network,
    NoKnownNetworks,
    check_parts,
    leaves,
    runs_on_actions_too,
    runs_on_observations,
)

# Of PPO, A2C, TRPO, and MaskablePPO: two networks in one.
ACTOR_CRITIC = (ActorCriticPolicy, MaskableActorCriticPolicy)
# Attributes of a policy that hold its networks.
ATTRIBUTES = {"actor": ("actor",), "critic": ("critic", "q_net", "quantile_net")}
# On-policy policies are one module with one optimizer: whose parameters are whose. What is left over is shared.
_ON_POLICY_PREFIXES = {
    "actor": ("mlp_extractor.policy_net.", "action_net.", "log_std", "pi_features_extractor."),
    "critic": ("mlp_extractor.value_net.", "value_net.", "vf_features_extractor."),
}


def model_parts(model: BaseAlgorithm) -> ModelParts:
    """
    What a model is made of: what it says itself, or else what is known of algorithms like it.

    >>> from stable_baselines3 import TD3
    >>> parts = model_parts(TD3("MlpPolicy", "Pendulum-v1", buffer_size=1))
    >>> [(name, network.place, network.target is not None) for name, network in parts.networks.items()]
    [('actor', 'actor', True), ('critic', 'critic', True)]

    :param model: Any model of SB3, sb3-contrib or this package, or one that has a method ``model_parts``.
    :raises NoKnownNetworks: If nobody knows. It is a ``ValueError``.
    :raises ValueError: If its own method returns something else than parts.
    :raises TypeError: If the model has ``plasticity_networks``, by which earlier versions of this package asked for the same.
    """
    if callable(getattr(model, "plasticity_networks", None)):
        raise TypeError(
            f"{type(model).__name__}.plasticity_networks() is not asked for any more: write model_parts(), which also says "
            "how networks are trained, see docs/extending/algorithm.md."
        )
    if isinstance(model, HasModelParts):
        return check_parts(f"{type(model).__name__}.model_parts()", model.model_parts())
    return sb3_model_parts(model)


def policy_of(model: BaseAlgorithm) -> BasePolicy:
    """
    The policy, also where it was replaced by what ``torch.compile`` made of it.

    :param model: Any.
    """
    return getattr(model.policy, "_orig_mod", model.policy)


def sb3_model_parts(model: BaseAlgorithm) -> ModelParts:
    """
    What is known of a model whose policy is built as those of SB3 are. An algorithm may add to it in its ``model_parts``.

    :param model: One whose policy has ``actor`` and ``critic``, ``q_net`` or ``quantile_net``, or is an
        ``ActorCriticPolicy`` (PPO, A2C, TRPO) or the one of MaskablePPO.
    :raises NoKnownNetworks: If the policy is recurrent, or has none of these.
    """
    policy: Any = policy_of(model)
    if hasattr(policy, "lstm_actor"):
        raise NoKnownNetworks(f"{type(policy).__name__} is recurrent: the plasticity probe needs networks without a state.")
    networks = _on_policy_networks(policy) if isinstance(policy, ACTOR_CRITIC) else networks_by_attribute(policy)
    if not networks:
        raise NoKnownNetworks(
            f"{type(policy).__name__} has no network that is known: expected an attribute actor, critic, q_net or "
            f"quantile_net, or a method model_parts() of {type(model).__name__}."
        )
    return ModelParts(networks, _temperature(model), policy_builder(model))


def networks_by_attribute(policy: Any) -> dict[str, Network]:
    """
    The networks of a policy, with targets and optimizers under the names that SB3's off-policy algorithms give them.

    :param policy: One with ``actor`` or ``critic``, ``q_net`` or ``quantile_net``.
    """
    networks = {}
    for name, attributes in ATTRIBUTES.items():
        for attribute in attributes:
            module = getattr(policy, attribute, None)
            if isinstance(module, nn.Module):
                target = getattr(policy, f"{attribute}_target", None)
                optimizer: Any = getattr(module, "optimizer", None) or getattr(policy, "optimizer", None)
                forward, layers = _forward(module, attribute), _layers(module, attribute)
                networks[name] = Network(
                    module, forward, attribute, target, optimizer, _without_shared_extractor(module, optimizer), layers
                )
                break
    return networks


def _without_shared_extractor(network: Any, optimizer: th.optim.Optimizer | None) -> frozenset[str] | None:
    """What TD3 and DDPG train of a critic that shares the actor's features extractor, which its optimizer only lists."""
    if not getattr(network, "share_features_extractor", False):
        return None
    trained = Network(network, _forward(network, ""), optimizer=optimizer).parameter_names(network)
    extractor = {name for name in trained if name.startswith("features_extractor.")}
    return trained - extractor if extractor else None


def _forward(module: nn.Module, attribute: str) -> Callable[[Any], Any]:
    if attribute == "actor" and isinstance(module, BasePolicy):
        # Sampled actions would draw from the generator for nothing.
        return lambda batch: module._predict(batch.observations, deterministic=True)
    parameters = inspect.signature(module.forward).parameters.values()
    required = [p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return runs_on_actions_too(module) if len(required) > 1 else runs_on_observations(module)


def _layers(network: Any, attribute: str) -> list[list[nn.Module]]:
    trunk = getattr(network, "latent_pi", None)
    heads = [head for name in ("mu", "log_std") if isinstance(head := getattr(network, name, None), nn.Module)]
    if isinstance(trunk, nn.Module) and heads:
        return [leaves(trunk) + leaves(head) for head in heads]
    if hasattr(network, "q_networks"):
        return [leaves(q_network) for q_network in network.q_networks]
    for name in ("mu", attribute):
        if isinstance(whole := getattr(network, name, None), nn.Module):
            return [leaves(whole)]
    extractor = getattr(network, "features_extractor", None)
    encoder = set(extractor.modules()) if isinstance(extractor, nn.Module) else set()
    return [[leaf for leaf in leaves(network) if leaf not in encoder]]


def _on_policy_networks(policy: ActorCriticPolicy | MaskableActorCriticPolicy) -> dict[str, Network]:
    """Two networks in one module: what is neither the actor's alone nor the critic's alone belongs to both."""
    named = list(policy.named_parameters(remove_duplicate=False))
    # With a shared extractor SB3 registers it under all three names.
    shared = {p for name, p in named if policy.share_features_extractor and name.startswith("features_extractor.")}
    alone = {
        network: {name for name, p in named if name.startswith(prefixes) and p not in shared}
        for network, prefixes in _ON_POLICY_PREFIXES.items()
    }
    everything = frozenset(name for name, _ in named)
    extractor = policy.mlp_extractor
    trunks = [getattr(extractor, name, extractor) for name in ("policy_net", "value_net")]
    # Without these two nobody knows whose the hidden layers are: enough to measure, not to reset.
    place = None if extractor in trunks else ""
    return {
        "actor": Network(
            _actor_part(policy),
            lambda batch: policy.get_distribution(batch.observations),
            place=place,
            optimizer=policy.optimizer,
            parameters=everything - alone["critic"],
            layers=[leaves(trunks[0]) + leaves(policy.action_net)],
        ),
        "critic": Network(
            _critic_part(policy),
            lambda batch: policy.predict_values(batch.observations),
            place=place,
            optimizer=policy.optimizer,
            parameters=everything - alone["actor"],
            layers=[leaves(trunks[1]) + leaves(policy.value_net)],
        ),
    }


class _Part(nn.Module):
    """The part of a policy that one of its two networks is made of, for its names and parameters."""

    def __init__(self, **modules: nn.Module):
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)


def _shared_layers(extractor: nn.Module) -> dict[str, nn.Module]:
    """What an ``mlp_extractor`` of one's own has beside the layers that are the actor's or the critic's alone."""
    own = ("policy_net", "value_net")
    if not all(hasattr(extractor, name) for name in own):
        return {}
    shared = _Part(**{name: child for name, child in extractor.named_children() if name not in own})
    for name, parameter in extractor.named_parameters(recurse=False):
        shared.register_parameter(name, parameter)
    return {"mlp_extractor": shared} if any(True for _ in shared.parameters()) else {}


def _actor_part(policy: Any) -> nn.Module:
    part = _Part(
        features_extractor=policy.pi_features_extractor,
        **_shared_layers(policy.mlp_extractor),
        policy_net=getattr(policy.mlp_extractor, "policy_net", policy.mlp_extractor),
        action_net=policy.action_net,
    )
    if isinstance(getattr(policy, "log_std", None), nn.Parameter):
        part.register_parameter("log_std", policy.log_std)
    return part


def _critic_part(policy: Any) -> nn.Module:
    return _Part(
        features_extractor=policy.vf_features_extractor,
        **_shared_layers(policy.mlp_extractor),
        value_net=getattr(policy.mlp_extractor, "value_net", policy.mlp_extractor),
        head=policy.value_net,
    )


def _temperature(model: Any) -> dict[str, LearnedTensor]:
    optimizer = getattr(model, "ent_coef_optimizer", None)
    if optimizer is None:
        return {}
    tensor, ent_coef = model.log_ent_coef, str(model.ent_coef)
    initial = float(ent_coef.split("_")[1]) if "_" in ent_coef else 1.0
    return {"temperature": LearnedTensor(tensor, optimizer, th.full_like(tensor, initial).log())}


def policy_builder(model: Any) -> Callable[[], nn.Module] | None:
    """
    What builds a policy as a model built its own, for :attr:`ModelParts.build_policy`.

    :param model: Any model; None for one whose policy is built in another way than by SB3's algorithms, or from modules that
        have weights already.
    """
    if not isinstance(model, (OffPolicyAlgorithm, PPO, A2C)) or module_in(model.policy_kwargs) is not None:
        return None

    def build() -> nn.Module:
        # SB3 writes into these dictionaries.
        kwargs = copy.deepcopy(model.policy_kwargs)
        if not isinstance(model, OffPolicyAlgorithm):
            kwargs["use_sde"] = model.use_sde
        return model.policy_class(model.observation_space, model.action_space, model.lr_schedule, **kwargs)

    return build


def module_in(value: Any) -> nn.Module | None:
    """The first module with parameters in keywords, however deep, also in those that ``functools.partial`` adds."""
    if isinstance(value, nn.Module):
        return value if any(True for _ in value.parameters()) else None
    if isinstance(value, functools.partial):
        value = [value.args, value.keywords]
    inside = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple, set)) else ()
    return next(filter(None, map(module_in, inside)), None)


def keeps_samples(model: Any) -> bool:
    """Whether a model keeps what it learns from for longer than a rollout."""
    if isinstance(model, (HasPlasticityBatch, OffPolicyAlgorithm)):
        return True
    return not isinstance(model, OnPolicyAlgorithm) and getattr(model, "replay_buffer", None) is not None


def n_stored(buffer: ReplayBuffer) -> int:
    """How many transitions of a replay buffer can be sampled."""
    if isinstance(buffer, HerReplayBuffer):
        # Transitions of episodes that have not ended cannot be sampled.
        return int((buffer.ep_length > 0).sum())
    return buffer.size() * buffer.n_envs


def replay_batch(model: Any, n_samples: int) -> Any:
    """
    A batch as the model draws them to learn from, by the global generators; None if there is nothing to draw from.

    :param model: One that :func:`keeps_samples`.
    :param n_samples: How many samples.
    """
    if isinstance(model, HasPlasticityBatch):
        return model.plasticity_batch(n_samples)
    buffer = model.replay_buffer
    if buffer is None or buffer.size() == 0:
        return None
    return buffer.sample(n_samples, env=model.get_vec_normalize_env())


def all_callbacks(callback: BaseCallback | None, seen: set[int] | None = None) -> Iterator[BaseCallback]:
    """
    A callback and those that it calls or knows, in this order, each once; none that only group, convert nothing, or show
    progress.
    """
    seen = set() if seen is None else seen
    if callback is None or id(callback) in seen:
        return
    seen.add(id(callback))
    is_empty = isinstance(callback, ConvertCallback) and callback.callback is None
    if not isinstance(callback, (CallbackList, ProgressBarCallback)) and not is_empty:
        yield callback
    for inner in (*getattr(callback, "callbacks", ()), *vars(callback).values()):
        if isinstance(inner, BaseCallback) and inner is not callback.parent:
            yield from all_callbacks(inner, seen)


# A game may end so many episodes by lost lives before it is over.
_MOST_LIVES = 100


class SeenEnds:
    """
    Callback of SB3's ``evaluate_policy``, which counts the episodes that ``Monitor`` has seen end, and waits for them, for
    ever.

    :raises ValueError: In the step that ends one more episode of an environment than a game has lives, if ``Monitor`` saw none
        of them end.
    """

    def __init__(self) -> None:
        self.unseen: dict[int, int] = {}

    def __call__(self, played: dict[str, Any], _: dict[str, Any]) -> None:
        """Look at the variables of ``evaluate_policy`` after a step."""
        if not played["done"]:
            return
        env = played["i"]
        is_seen = "episode" in played["info"] or not played["is_monitor_wrapped"]
        unseen = self.unseen[env] = 0 if is_seen else self.unseen.get(env, 0) + 1
        if unseen > _MOST_LIVES:
            raise ValueError(
                f"{unseen} episodes have ended, and Monitor has seen none of them end: a wrapper around it ends them. "
                "Put Monitor around that wrapper."
            )
