"""Resets of a Stable-Baselines3 model, in place: what each strategy does to its networks, targets and temperature."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch as th
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from torch import nn

from sb3_sparse.common.validation import choice, flag, fraction, number_in, whole_number
from sb3_sparse.plasticity.measure import check_networks
from sb3_sparse.plasticity.probe import NETWORKS
from sb3_sparse.plasticity.redo import DEFAULT_TAU, ReDoReport, hidden_layers, prepare_redo
from sb3_sparse.plasticity.resets import (
    blend,
    fresh_values,
    last_layers,
    leaves,
    renew,
)
from sb3_sparse.sparse.surgery.redraw import copy_topology, draw_fresh, redraw_topology
from sb3_sparse.sparse.surgery.swap import Swap
from sb3_sparse.sparse.topology import derive_seed

STRATEGIES = ("full", "last_layers", "redo", "shrink_perturb")
TARGETS = ("copy", "fresh", "keep")
# On-policy policies are one module with one optimizer: whose parameters are whose. What is left over is shared.
_ON_POLICY_PREFIXES = {
    "actor": ("mlp_extractor.policy_net.", "action_net.", "log_std", "pi_features_extractor."),
    "critic": ("mlp_extractor.value_net.", "value_net.", "vf_features_extractor."),
}


@dataclass(frozen=True)
class _Part:
    """One network of a model."""

    name: str
    """``"actor"`` or ``"critic"``; the network of DQN and QR-DQN is a critic. Both for on-policy policies."""
    attribute: str
    """Of the policy; empty for the policy itself."""
    online: nn.Module
    target: nn.Module | None
    optimizer: th.optim.Optimizer
    names: frozenset[str]
    """Of the parameters that belong to it: those that its optimizer trains."""


def reset_model_(
    model: BaseAlgorithm,
    strategy: str = "full",
    *,
    networks: str | Sequence[str] | None = None,
    target: str | None = None,
    redraw_topology: bool = False,
    include_temperature: bool = False,
    n_layers: int = 1,
    shrink: float = 0.5,
    perturb: float = 0.5,
    tau: float = DEFAULT_TAU,
    batch_size: int = 256,
    reset_step: bool = False,
    seed: int | None = None,
) -> dict[str, ReDoReport]:
    """
    Reset networks of a model, with its own initialisers, in place.

    A reset is made as a whole: after an error or Ctrl-C the model is as it was before, or as it is after.

    Parameter objects, optimizers with their groups, the learning rate schedule, the replay buffer and the observation
    statistics of the policy survive. Optimizer state is forgotten for what was reset, and for nothing else.

    >>> from stable_baselines3 import SAC
    >>> model = SAC("MlpPolicy", "Pendulum-v1", buffer_size=300, seed=0)
    >>> result = reset_model_(model, "last_layers", networks=["critic"])

    :param model: SAC, TQC, CrossQ, TD3, DDPG, DQN, QRDQN or another off-policy model whose policy has ``actor`` and
        ``critic``, or ``q_net``, or ``quantile_net``; PPO and A2C, for all but ReDo.
    :param strategy: ``"full"``, ``"last_layers"``, ``"redo"`` or ``"shrink_perturb"``.
    :param networks: ``"actor"``, ``"critic"`` or both. None: all that the model has. DQN and QR-DQN have a critic.
        What an actor and a critic share belongs to the one whose optimizer trains it.
    :param target: What happens to target networks, where the online network is reset: ``"copy"`` the online network's
        new values, draw ``"fresh"`` ones, or ``"keep"`` the old. None: copy for ``"full"`` and ``"last_layers"``, keep
        for the other two, after which the moving average catches up.
    :param redraw_topology: Draw new positions for the weights of sparse layers as well, in the target too. Only where
        all values are drawn anew: ``"full"`` and ``"last_layers"``.
    :param include_temperature: Set the learned entropy coefficient of SAC, TQC and CrossQ to its initial value and
        forget its optimizer's state. Only for ``"full"``.
    :param n_layers: For ``"last_layers"``: how many layers, from the output of each network.
    :param shrink: For ``"shrink_perturb"``: factor of the old values.
    :param perturb: For ``"shrink_perturb"``: factor of the fresh values.
    :param tau: For ``"redo"``: units with a score of at most this are recycled.
    :param batch_size: For ``"redo"``: size of the replay batch that the scores are computed on.
    :param reset_step: For ``"redo"``: also set Adam's step counts to 0, see :func:`~sb3_sparse.plasticity.redo.redo_`.
    :param seed: Of the fresh weights. By default drawn from torch's global generator.
    :return: For ``"redo"`` what was recycled in each network, else empty.
    :raises ValueError: If an argument is out of range or does not go with the strategy or the model.
    :raises TypeError: If the model is of another kind.
    """
    options = check_options(
        strategy,
        target=target,
        redraw_topology=redraw_topology,
        include_temperature=include_temperature,
        n_layers=n_layers,
        shrink=shrink,
        perturb=perturb,
        tau=tau,
        batch_size=batch_size,
        reset_step=reset_step,
        seed=seed,
    )
    check_model(model, strategy, networks, include_temperature=options.include_temperature, n_layers=options.n_layers)
    swap, reports = _prepare(model, strategy, networks, options)
    swap.apply()
    return reports


def _prepare(
    model: BaseAlgorithm, strategy: str, networks: str | Sequence[str] | None, options: "_Options"
) -> tuple[Swap, dict[str, ReDoReport]]:
    """All that is going to change; nothing of the model moves here."""
    swap, reports = Swap(), {}
    parts = _parts(model, strategy, networks)
    seed = int(th.randint(2**31, ())) if options.seed is None else options.seed
    fresh = fresh_policy(model, seed)
    for part in parts:
        twin = _counterpart(fresh, part)
        if strategy == "redo":
            reports[part.name] = _redo(swap, model, part, twin, options)
            continue
        within = last_layers(_chains(part), options.n_layers) if strategy == "last_layers" else None
        if options.redraw_topology:
            redraw_topology(swap, part.online, derive_seed(seed, part.attribute), within)
        values = _select(fresh_values(part.online, twin, within, swap), part.names)
        if strategy == "shrink_perturb":
            blend(swap, part.online, values, options.shrink, options.perturb, part.optimizer)
        else:
            renew(swap, part.online, twin, values, part.optimizer)
    _prepare_targets(swap, model, parts, options.target or default_target(strategy), seed)
    if options.include_temperature:
        _prepare_temperature(swap, model)
    if getattr(model, "use_sde", False):
        # The exploration noise in use was drawn with the old standard deviations.
        explorer: Any = getattr(model, "actor", model.policy)
        swap.then(lambda: explorer.reset_noise(model.n_envs))
    return swap, reports


@dataclass(frozen=True)
class _Options:
    """Arguments of :func:`reset_model_`, checked, as plain Python."""

    target: str | None
    redraw_topology: bool
    include_temperature: bool
    n_layers: int
    shrink: float
    perturb: float
    tau: float
    batch_size: int
    reset_step: bool
    seed: int | None


def check_options(
    strategy: str,
    *,
    target: str | None = None,
    redraw_topology: bool = False,
    include_temperature: bool = False,
    n_layers: int = 1,
    shrink: float = 0.5,
    perturb: float = 0.5,
    tau: float = DEFAULT_TAU,
    batch_size: int = 256,
    reset_step: bool = False,
    seed: int | None = None,
) -> _Options:
    """
    :raises ValueError: If an option is out of range or does not go with the strategy.
    """
    choice("strategy", strategy, STRATEGIES)
    if target is not None:
        choice("target", target, TARGETS)
    redraw_topology = flag("redraw_topology", redraw_topology)
    include_temperature = flag("include_temperature", include_temperature)
    draws_all = strategy in ("full", "last_layers")
    if target == "fresh" and not draws_all:
        raise ValueError(f"target='fresh' goes with 'full' and 'last_layers', not with {strategy!r}: use 'copy' or 'keep'.")
    if redraw_topology and not draws_all:
        raise ValueError(f"redraw_topology=True goes with 'full' and 'last_layers': {strategy!r} keeps trained values.")
    if redraw_topology and target == "keep":
        raise ValueError(
            "redraw_topology=True with target='keep': the target's old values stand at the old positions, and averaging "
            "mixes values by position. Use target='copy' or 'fresh'."
        )
    if include_temperature and strategy != "full":
        raise ValueError(f"include_temperature=True goes with strategy='full', not with {strategy!r}.")
    return _Options(
        target=target,
        redraw_topology=redraw_topology,
        include_temperature=include_temperature,
        n_layers=whole_number("n_layers", n_layers, 1),
        shrink=fraction("shrink", shrink),
        perturb=fraction("perturb", perturb),
        tau=number_in("tau", tau, 0, 1),
        batch_size=whole_number("batch_size", batch_size, 1),
        reset_step=flag("reset_step", reset_step),
        seed=None if seed is None else whole_number("seed", seed),
    )


def check_model(
    model: BaseAlgorithm,
    strategy: str,
    networks: str | Sequence[str] | None,
    *,
    include_temperature: bool = False,
    n_layers: int = 1,
) -> None:
    """
    :raises TypeError: If resets make no sense for the model.
    :raises ValueError: If the model does not have one of the networks, as many layers, or a learned temperature.
    """
    for part in _parts(model, strategy, networks):
        if strategy == "last_layers":
            last_layers(_chains(part), n_layers)
        if strategy == "redo" and not hidden_layers(part.online, _chains(part)):
            raise ValueError(
                f"strategy='redo': the {part.name} of {type(model).__name__} has no hidden layer between linear layers "
                "(features extractors are left alone). Give it one by policy_kwargs=dict(net_arch=[...]), or use another "
                "strategy."
            )
    if include_temperature and getattr(model, "ent_coef_optimizer", None) is None:
        raise ValueError(f"include_temperature=True: {type(model).__name__} has no learned temperature (ent_coef='auto').")


def default_target(strategy: str) -> str:
    """What happens to target networks if nothing is said."""
    return "copy" if strategy in ("full", "last_layers") else "keep"


def fresh_policy(model: BaseAlgorithm, seed: int) -> BasePolicy:
    """A policy with new weights, on the CPU, built with the arguments that the model built its own with."""
    # SB3 writes into these dictionaries.
    kwargs = copy.deepcopy(model.policy_kwargs)
    if not isinstance(model, OffPolicyAlgorithm):
        kwargs["use_sde"] = model.use_sde
    return draw_fresh(
        lambda: model.policy_class(model.observation_space, model.action_space, model.lr_schedule, **kwargs),
        seed,
    )


def _parts(model: BaseAlgorithm, strategy: str, networks: str | Sequence[str] | None) -> list[_Part]:
    networks = None if networks is None else check_networks(networks)
    if isinstance(model, (PPO, A2C)):
        if strategy == "redo":
            raise TypeError(f"{type(model).__name__} has no replay buffer to score units on: 'redo' is for off-policy models.")
        return [_on_policy_part(model, NETWORKS if networks is None else networks)]
    policy = model.policy
    parts = []
    if isinstance(model, OffPolicyAlgorithm):
        for attribute in ("actor", "critic", "q_net", "quantile_net"):
            online = getattr(policy, attribute, None)
            if isinstance(online, nn.Module):
                optimizer = getattr(online, "optimizer", None) or policy.optimizer
                trained = {parameter for group in optimizer.param_groups for parameter in group["params"]}
                named = online.named_parameters(remove_duplicate=False)
                names = frozenset(name for name, parameter in named if parameter in trained)
                kind = "actor" if attribute == "actor" else "critic"
                parts.append(_Part(kind, attribute, online, getattr(policy, f"{attribute}_target", None), optimizer, names))
    if not parts:
        raise TypeError(
            f"{type(model).__name__} cannot be reset: expected PPO, A2C, or an off-policy model whose policy has 'actor' "
            "and 'critic', 'q_net' or 'quantile_net' (SAC, TQC, CrossQ, TD3, DDPG, DQN, QRDQN)."
        )
    _check_all_trained(model, parts)
    if networks is None:
        return parts
    present = {part.name for part in parts}
    if missing := [name for name in networks if name not in present]:
        raise ValueError(f"networks={networks}: {type(model).__name__} has no {missing[0]!r}, only {sorted(present)}.")
    return [part for part in parts if part.name in networks]


def _check_all_trained(model: BaseAlgorithm, parts: list[_Part]) -> None:
    trained = {p for part in parts for group in part.optimizer.param_groups for p in group["params"]}
    for part in parts:
        for name, parameter in part.online.named_parameters():
            if parameter.requires_grad and parameter not in trained:
                raise ValueError(
                    f"{part.attribute}.{name} of {type(model).__name__} is in no optimizer: it is neither trained nor reset. "
                    "Make the optimizer after changing layers, e.g. after sparsify_."
                )


def _on_policy_part(model: PPO | A2C, networks: Sequence[str]) -> _Part:
    policy = model.policy
    names = {name for name, _ in policy.named_parameters(remove_duplicate=False)}
    if set(networks) != set(NETWORKS):
        # With a shared extractor SB3 registers it under all three names.
        shared = {p for name, p in policy.named_parameters(remove_duplicate=False) if name.startswith("features_extractor.")}
        prefixes = _ON_POLICY_PREFIXES[networks[0]]
        named = policy.named_parameters(remove_duplicate=False)
        separate = not policy.share_features_extractor
        names = {name for name, p in named if name.startswith(prefixes) and (separate or p not in shared)}
    return _Part("+".join(networks), "", policy, None, policy.optimizer, frozenset(names))


def _counterpart(fresh: BasePolicy, part: _Part) -> nn.Module:
    return getattr(fresh, part.attribute) if part.attribute else fresh


def _select(values: dict[str, th.Tensor], names: frozenset[str]) -> dict[str, th.Tensor]:
    return {name: value for name, value in values.items() if name in names}


def _chains(part: _Part) -> list[list[nn.Module]]:
    """Layers from input to output, without the features extractor. Parallel heads are chains with a common beginning."""
    network: Any = part.online
    if not part.attribute:
        extractor = network.mlp_extractor
        actor = leaves(extractor.policy_net) + leaves(network.action_net)
        critic = leaves(extractor.value_net) + leaves(network.value_net)
        return [chain for name, chain in (("actor", actor), ("critic", critic)) if name in part.name]
    if isinstance(trunk := getattr(network, "latent_pi", None), nn.Module):
        heads = [head for head in (network.mu, network.log_std) if isinstance(head, nn.Module)]
        return [leaves(trunk) + leaves(head) for head in heads]
    if hasattr(network, "q_networks"):
        return [leaves(q_network) for q_network in network.q_networks]
    for attribute in ("mu", part.attribute):
        if isinstance(whole := getattr(network, attribute, None), nn.Module):
            return [leaves(whole)]
    extractor = getattr(network, "features_extractor", None)
    encoder = set(extractor.modules()) if isinstance(extractor, nn.Module) else set()
    return [[leaf for leaf in leaves(network) if leaf not in encoder]]


def _redo(swap: Swap, model: BaseAlgorithm, part: _Part, twin: nn.Module, options: _Options) -> ReDoReport:
    assert isinstance(model, OffPolicyAlgorithm)
    buffer = model.replay_buffer
    if buffer is None or buffer.size() == 0:
        raise ValueError("strategy='redo' scores units on a batch from the replay buffer, which is empty: collect first.")
    batch = buffer.sample(options.batch_size, env=model.get_vec_normalize_env())

    network: Any = part.online

    def forward() -> object:
        if part.attribute == "actor":
            # Sampled actions would draw from the generator for nothing.
            return network._predict(batch.observations, deterministic=True)
        if part.attribute == "critic":
            return network(batch.observations, batch.actions)
        return network(batch.observations)

    tau, reset_step, chains = options.tau, options.reset_step, _chains(part)
    return prepare_redo(swap, part.online, twin, forward, part.optimizer, tau=tau, reset_step=reset_step, chains=chains)


def _prepare_targets(swap: Swap, model: BaseAlgorithm, parts: list[_Part], target: str, seed: int) -> None:
    """Treat, in every target network, the parameters whose online counterparts change."""
    if target == "keep":
        return
    fresh: BasePolicy | None = None
    for part in parts:
        if part.target is None:
            continue
        copy_topology(swap, part.target, part.online)
        changing = {name: p for name, p in part.online.named_parameters(remove_duplicate=False) if p in swap}
        if target == "copy":
            renew(swap, part.target, part.online, {name: swap.value_of(p) for name, p in changing.items()})
        else:
            fresh = fresh or fresh_policy(model, derive_seed(seed, "target"))
            source = _counterpart(fresh, part)
            values = fresh_values(part.target, source, swap=swap)
            renew(swap, part.target, source, {name: value for name, value in values.items() if name in changing})


def _prepare_temperature(swap: Swap, model: BaseAlgorithm) -> None:
    ent_coef = str(model.ent_coef)  # type: ignore[attr-defined]
    initial = float(ent_coef.split("_")[1]) if "_" in ent_coef else 1.0
    log_ent_coef = model.log_ent_coef  # type: ignore[attr-defined]
    swap.set(log_ent_coef, th.full_like(log_ent_coef, initial).log())
    swap.forget(model.ent_coef_optimizer, log_ent_coef)  # type: ignore[attr-defined]
