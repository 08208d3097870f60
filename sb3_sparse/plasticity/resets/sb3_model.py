"""Resets of a Stable-Baselines3 model, in place: what each strategy does to its networks, targets and temperature."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import nn

from sb3_sparse.common.model_parts import HasModelParts, HasPlasticityBatch, Network
from sb3_sparse.common.sb3_models import model_parts, n_stored, policy_of, replay_batch
from sb3_sparse.plasticity.measurement.batches import sample_batch
from sb3_sparse.plasticity.resets.options import ResetOptions, default_target
from sb3_sparse.plasticity.resets.parts import ResetPart, check_fresh, check_no_target_is_forgotten, parts_to_reset
from sb3_sparse.plasticity.resets.redo import ReDoReport, hidden_layers, redo_
from sb3_sparse.plasticity.resets.torch_module import (
    blend,
    fresh_values,
    last_layers,
    renew,
)
from sb3_sparse.sparse import SparseConv2d, SparseLinear
from sb3_sparse.sparse.surgery.redraw import copy_topology, draw_fresh, redraw_topology
from sb3_sparse.sparse.surgery.swap import Swap
from sb3_sparse.sparse.topology import derive_seed


def reset_model_(
    model: BaseAlgorithm, strategy: str = "full", *, networks: str | Sequence[str] | None = None, **options: Any
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
        ``critic``, or ``q_net``, or ``quantile_net``; PPO and A2C, for all but ReDo; any that has a method ``model_parts``
        (:class:`~sb3_sparse.common.model_parts.HasModelParts`).
    :param strategy: ``"full"``, ``"last_layers"``, ``"redo"`` or ``"shrink_perturb"``.
    :param networks: ``"actor"``, ``"critic"``, names that an algorithm of yours gives, or several. None: all that the model
        has. DQN and QR-DQN have a critic. What an actor and a critic share belongs to the one whose optimizer trains it.
    :param options: The rest, by keyword:
    :param target: (None) What happens to target networks, where the online network is reset: ``"copy"`` the online network's
        new values, draw ``"fresh"`` ones, or ``"keep"`` the old. None: copy for ``"full"`` and ``"last_layers"``, keep
        for the other two, after which the moving average catches up.
    :param redraw_topology: (False) Draw new positions for the weights of sparse layers as well, in the target too. Only where
        all values are drawn anew: ``"full"`` and ``"last_layers"``.
    :param include_temperature: (False) Set the learned entropy coefficient of SAC, TQC and CrossQ to its initial value and
        forget its optimizer's state. Only for ``"full"``.
    :param n_layers: (1) For ``"last_layers"``: how many layers, from the output of each network.
    :param shrink: (0.5) For ``"shrink_perturb"``: factor of the old values.
    :param perturb: (0.5) For ``"shrink_perturb"``: factor of the fresh values.
    :param tau: (0.025) For ``"redo"``: units with a score of at most this are recycled.
    :param batch_size: (256) For ``"redo"``: size of the replay batch that the scores are computed on.
    :param reset_step: (False) For ``"redo"``: also set Adam's step counts to 0, see :func:`~sb3_sparse.plasticity.redo_`.
    :param seed: (None) Of the fresh weights. By default drawn from torch's global generator.
    :return: For ``"redo"`` what was recycled in each network, else empty.
    :raises ValueError: If an argument is out of range or does not go with the strategy or the model.
    :raises TypeError: If the model is of another kind.
    """
    checked = ResetOptions(strategy, **options)
    check_model(model, networks, checked)
    swap, reports = _prepare(model, networks, checked)
    swap.apply()
    return reports


def _prepare(
    model: BaseAlgorithm, networks: str | Sequence[str] | None, options: ResetOptions
) -> tuple[Swap, dict[str, ReDoReport]]:
    """All that is going to change; nothing of the model moves here."""
    swap, reports = Swap(), {}
    known, parts = parts_to_reset(model, options.strategy, networks)
    seed = int(th.randint(2**31, ())) if options.seed is None else options.seed
    fresh = fresh_policy(model, seed)
    for part in parts:
        twin, optimizer = fresh.get_submodule(part.place), part.network.optimizer
        if options.strategy == "redo":
            reports[part.name] = _redo(swap, model, part, twin, options)
            continue
        within = last_layers(part.network.chains(), options.n_layers) if options.strategy == "last_layers" else None
        if options.redraw_topology:
            redraw_topology(swap, part.online, derive_seed(seed, part.place), _owners(swap, part, within))
        values = _select(fresh_values(part.online, twin, within, swap), part.names)
        if options.strategy == "shrink_perturb":
            blend(swap, part.online, values, options.shrink, options.perturb, optimizer)
        else:
            renew(swap, part.online, twin, values, optimizer)
    _prepare_targets(swap, model, known.networks.values(), options.target or default_target(options.strategy), seed)
    if options.include_temperature:
        temperature = known.others["temperature"]
        swap.set(temperature.tensor, temperature.initial)
        swap.forget(temperature.optimizer, temperature.tensor)  # type: ignore[arg-type]
    if getattr(model, "use_sde", False):
        # The exploration noise in use was drawn with the old standard deviations.
        explorer: Any = getattr(model, "actor", model.policy)
        swap.then(lambda: explorer.reset_noise(model.n_envs))
    return swap, reports


def check_model(model: BaseAlgorithm, networks: str | Sequence[str] | None, options: ResetOptions) -> None:
    """
    :raises TypeError: If resets make no sense for the model.
    :raises ValueError: If the model does not have one of the networks, as many layers, or a learned temperature, or says
        something about its networks that cannot be.
    """
    known, parts = parts_to_reset(model, options.strategy, networks)
    for part in parts:
        if (options.target or default_target(options.strategy)) != "keep":
            check_no_target_is_forgotten(model, part)
        if options.strategy in ("last_layers", "redo"):
            _check_order(model, part)
        if options.strategy == "last_layers":
            last_layers(part.network.chains(), options.n_layers)
        if options.strategy == "redo" and not hidden_layers(part.online, part.network.chains()):
            others = sorted(p.name for p in parts if hidden_layers(p.online, p.network.chains()))
            fix = f"name those that have: networks={others}" if others else "give it one by policy_kwargs=dict(net_arch=[...])"
            raise ValueError(
                f"strategy='redo': the {part.name} of {type(model).__name__} has no hidden layer between linear layers "
                f"(features extractors are left alone). To reset others, {fix}, or use another strategy."
            )
    if options.include_temperature and "temperature" not in known.others:
        raise ValueError(f"include_temperature=True: {type(model).__name__} has no learned temperature (ent_coef='auto').")


def _check_order(model: BaseAlgorithm, part: ResetPart) -> None:
    """
    Layers that nobody has put in order are taken in that in which they were registered. Parallel heads are not in order.

    :raises ValueError: If one cannot follow the one before.
    """
    if isinstance(model, HasModelParts) and part.network.layers is not None:
        return
    names = {module: name for name, module in part.online.named_modules()}
    for chain in part.network.chains():
        before: Any = None
        for layer in chain:
            if isinstance(layer, (nn.Linear, SparseLinear)):
                if before is not None and before.out_features != layer.in_features:
                    raise ValueError(
                        f"{part.name} of {type(model).__name__}: {names.get(layer)!r} with {layer.in_features} inputs cannot "
                        f"follow {names.get(before)!r} with {before.out_features} outputs. Say the order of layers, each head "
                        "in a chain of its own, by Network(layers=...) of a method model_parts(), or take strategy='full'."
                    )
                before = layer
            elif any(parameter.ndim > 1 for parameter in layer.parameters()):
                # A convolution, or something of the user's own.
                before = None


def can_score_units(model: Any, batch_size: int) -> bool:
    """
    Whether there is a batch for ReDo. A resumed run begins with an empty replay buffer.

    :param model: A model for which ReDo makes sense.
    :param batch_size: As many samples, or as many as the replay buffer can hold.
    """
    if isinstance(model, HasPlasticityBatch):
        return sample_batch(model, batch_size) is not None  # type: ignore[arg-type]
    buffer = model.replay_buffer
    return n_stored(buffer) >= min(batch_size, buffer.buffer_size * buffer.n_envs)


def fresh_policy(model: BaseAlgorithm, seed: int) -> nn.Module:
    """A policy with new weights, on the CPU, built with the arguments that the model built its own with."""
    build = model_parts(model).build_policy
    assert build is not None
    # Before anything is done with it: it might be the model's own.
    return draw_fresh(lambda: check_fresh(model, build()), seed)


def _owners(swap: Swap, part: ResetPart, within: Collection[nn.Module] | None) -> set[nn.Module]:
    """The sparse layers that get new values, but for those of a network before, which have their new topology already."""
    owners = {name.rpartition(".")[0] for name in part.names}
    layers: set[nn.Module] = {
        layer
        for prefix, layer in part.online.named_modules(remove_duplicate=False)
        if prefix in owners and isinstance(layer, (SparseLinear, SparseConv2d)) and layer.values not in swap
    }
    return layers if within is None else layers.intersection(within)


def _select(values: dict[str, th.Tensor], names: frozenset[str]) -> dict[str, th.Tensor]:
    return {name: value for name, value in values.items() if name in names}


def _redo(swap: Swap, model: BaseAlgorithm, part: ResetPart, twin: nn.Module, options: ResetOptions) -> ReDoReport:
    batch = replay_batch(model, options.batch_size)
    if batch is None:
        raise ValueError("strategy='redo' scores units on a batch from the replay buffer, which is empty: collect first.")
    return redo_(
        part.online,
        twin,
        lambda: part.network.forward(batch),
        part.network.optimizer,
        tau=options.tau,
        reset_step=options.reset_step,
        chains=part.network.chains(),
        swap=swap,
    )


def _prepare_targets(swap: Swap, model: BaseAlgorithm, networks: Iterable[Network], target: str, seed: int) -> None:
    """
    Treat, in every target network, the parameters whose online counterparts change. These may be of a network that is not
    reset itself: a critic can share the actor's features extractor.
    """
    if target == "keep":
        return
    fresh: nn.Module | None = None
    for network in networks:
        if network.target is None or network.place is None:
            continue
        follower, online = network.target, policy_of(model).get_submodule(network.place)
        changing = {name: p for name, p in online.named_parameters(remove_duplicate=False) if p in swap}
        if not changing:
            continue
        copy_topology(swap, follower, online)
        if target == "copy":
            renew(swap, follower, online, {name: swap.value_of(p) for name, p in changing.items()})
        else:
            fresh = fresh or fresh_policy(model, derive_seed(seed, "target"))
            source = fresh.get_submodule(network.place)
            values = fresh_values(follower, source, swap=swap)
            renew(swap, follower, source, {name: value for name, value in values.items() if name in changing})
