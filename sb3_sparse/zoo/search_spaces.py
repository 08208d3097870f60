"""
What a hyperparameter search of rl-zoo3 tries out.

rl-zoo3 has two functions for each algorithm: a sampler asks a trial for values and makes hyperparameters of them, and a
converter makes the same hyperparameters of the values of a trial that is over.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from sb3_sparse.zoo.hyperparameters import RAINBOWS
from sb3_sparse.zoo.rl_zoo import entry, part, replaced

Sampler = Callable[..., dict[str, Any]]
Converter = Callable[[dict[str, Any]], dict[str, Any]]

# With our policies, besides what rl-zoo3 tries out for the algorithm.
WIDTHS = {"width_scale": (0.25, 0.5, 1.0, 2.0), "critic_width_scale": (1.0, 2.0, 4.0)}
SPARSITY_RANGE = (0.5, 0.95)
# What rl-zoo3 draws of a buffer with hindsight.
HER = ("n_sampled_goal", "goal_selection_strategy")
# What bounds the steps of each streaming algorithm.
STREAM_KAPPAS = {"stream_ac": ("kappa_policy", "kappa_value"), "stream_q": ("kappa",), "stream_sarsa": ("kappa",)}


def samplers() -> dict[str, Sampler]:
    """Of algorithms for which rl-zoo3 has none."""
    ours: dict[str, Sampler] = {name: partial(_sample_stream, kappas) for name, kappas in STREAM_KAPPAS.items()}
    ours |= dict.fromkeys(RAINBOWS, _sample_rainbow) | {"drqv2": _sample_drqv2}
    # The search space of SAC serves CrossQ, but for the target network that CrossQ does not have.
    return {**ours, "crossq": _without_tau(entry("hyperparams_opt.HYPERPARAMS_SAMPLER", "sac"))}


def converters() -> dict[str, Converter]:
    """The way back of :func:`samplers`."""
    ours: dict[str, Converter] = {name: dict for name in STREAM_KAPPAS}
    ours |= dict.fromkeys((*RAINBOWS, "drqv2"), _without_net_arch)
    return {**ours, "crossq": _without_tau(entry("hyperparams_opt.HYPERPARAMS_CONVERTER", "sac"))}


def _sample_stream(kappas: tuple[str, ...], trial: Any, *args: Any) -> dict[str, Any]:
    hyperparams = {
        "gamma": trial.suggest_categorical("gamma", (0.95, 0.98, 0.99, 0.995)),
        "trace_lambda": trial.suggest_categorical("trace_lambda", (0.5, 0.7, 0.8, 0.9, 0.95)),
    }
    return hyperparams | {name: trial.suggest_float(name, 1.1, 10.0, log=True) for name in kappas}


def _sample_rainbow(trial: Any, *args: Any) -> dict[str, Any]:
    # The discount factor stays as it is: the returns that distributions are over depend on it.
    return {
        "learning_rate": trial.suggest_float("learning_rate", 1e-5, 2e-3, log=True),
        "batch_size": trial.suggest_categorical("batch_size", (16, 32, 64, 128)),
        "n_steps": trial.suggest_int("n_steps", 1, 10),
        "target_update_interval": trial.suggest_int("target_update_interval", 50, 5_000, log=True),
        "sigma": trial.suggest_float("sigma", 0.05, 1.0, log=True),
        "alpha": trial.suggest_float("alpha", 0.2, 0.8),
    }


def _sample_drqv2(trial: Any, *args: Any) -> dict[str, Any]:
    return {
        "learning_rate": trial.suggest_float("learning_rate", 1e-5, 1e-3, log=True),
        "batch_size": trial.suggest_categorical("batch_size", (64, 128, 256, 512)),
        "gamma": trial.suggest_categorical("gamma", (0.95, 0.98, 0.99, 0.995)),
        "tau": trial.suggest_float("tau", 0.002, 0.05, log=True),
        "n_steps": trial.suggest_int("n_steps", 1, 5),
        "exploration_final_std": trial.suggest_float("exploration_final_std", 0.05, 0.3, log=True),
    }


def _without_net_arch(params: dict[str, Any]) -> dict[str, Any]:
    # Where sparsity is searched as well, rl-zoo3's choice of an MLP size is among them.
    return {name: value for name, value in params.items() if name != "net_arch"}


def _without_tau(propose: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    def without_tau(*args: Any) -> dict[str, Any]:
        return {name: value for name, value in propose(*args).items() if name != "tau"}

    return without_tau


def sparse_sampler(stock: Sampler, policy_kwargs: dict[str, Any], width: str | None) -> Sampler:
    """
    With our policies: sparsity and width instead of MLP sizes, and the keywords of the hyperparameter file are kept.

    :param stock: The sampler of the algorithm.
    :param policy_kwargs: Those of the file.
    :param width: The keyword of the policy that scales it, a key of ``WIDTHS``; None: it has none.
    """

    def sample(trial: Any, *args: Any) -> dict[str, Any]:
        hyperparams = stock(_FixedSizeTrial(trial), *args)
        sampled: dict[str, Any] = {"sparsity": trial.suggest_float("sparsity", *SPARSITY_RANGE)}
        if width is not None:
            sampled[width] = trial.suggest_categorical(width, WIDTHS[width])
        return _merge(hyperparams, policy_kwargs, sampled)

    return sample


def sparse_converter(stock: Converter, policy_kwargs: dict[str, Any]) -> Converter:
    """
    The way back of :func:`sparse_sampler`.

    :param stock: The converter of the algorithm.
    :param policy_kwargs: Those of the file.
    """

    def convert(params: dict[str, Any]) -> dict[str, Any]:
        params = {"net_arch": "small", **params}
        sampled: dict[str, Any] = {name: params.pop(name) for name in ("sparsity", *WIDTHS) if name in params}
        return _merge(stock(params), policy_kwargs, sampled)

    return convert


@contextmanager
def search_space(algo: str, policy_kwargs: dict[str, Any] | None) -> Iterator[None]:
    """
    Inside, trials have all that rl-zoo3 has drawn; and of one of our policies, sparsity and width are searched.

    :param algo: Name of the algorithm.
    :param policy_kwargs: Those of the file, which every trial keeps; None: of a policy that is not ours.
    """
    samplers, converters = (part(f"hyperparams_opt.HYPERPARAMS_{kind}") for kind in ("SAMPLER", "CONVERTER"))
    sampler, converter = _whole_sampler(samplers[algo]), converters[algo]
    if policy_kwargs is not None:
        sampler = sparse_sampler(sampler, policy_kwargs, _width_keyword(algo, policy_kwargs))
        converter = sparse_converter(converter, policy_kwargs)
    with replaced(samplers, {algo: sampler}), replaced(converters, {algo: converter}):
        yield


def _whole_sampler(stock: Sampler) -> Sampler:
    """With all that a trial has drawn: rl-zoo3 puts what the sampler returns on top of what the file says."""

    def sample(trial: Any, n_actions: int, n_envs: int, additional_args: dict[str, Any]) -> dict[str, Any]:
        hyperparams = stock(trial, n_actions, n_envs, additional_args)
        if "noise_type" in trial.params:
            # No noise is what stands nowhere.
            hyperparams.setdefault("action_noise", None)
        return with_buffer(hyperparams, additional_args.get("her_kwargs") or {})

    return sample


def with_buffer(hyperparams: dict[str, Any], buffer_kwargs: dict[str, Any]) -> dict[str, Any]:
    """
    What a trial has drawn, and among it the keywords of the replay buffer: those of HER, which rl-zoo3's converters leave
    beside the algorithm's, and the discount factor of one that adds rewards of several steps up.

    :param hyperparams: Of a sampler or a converter.
    :param buffer_kwargs: ``replay_buffer_kwargs`` of the file.
    """
    drawn = {name: hyperparams[name] for name in HER if name in hyperparams}
    if "gamma" in hyperparams and buffer_kwargs.keys() & {"gamma", "n_steps"}:
        drawn["gamma"] = hyperparams["gamma"]
    found = {name: value for name, value in hyperparams.items() if name not in HER}
    if drawn:
        found["replay_buffer_kwargs"] = {**buffer_kwargs, **hyperparams.get("replay_buffer_kwargs", {}), **drawn}
    return found


def _width_keyword(algo: str, policy_kwargs: dict[str, Any]) -> str | None:
    """What scales one of our policies; None where the file says how wide it is."""
    if algo == "drqv2":
        return "critic_width_scale"
    # Of Rainbow's policies, the width is that of a named encoder.
    has_width = bool(policy_kwargs.get("encoder")) if algo in RAINBOWS else "net_arch" not in policy_kwargs
    return "width_scale" if has_width else None


class _FixedSizeTrial:
    """An optuna trial without rl-zoo3's choice of an MLP size, which means nothing to SimBa."""

    def __init__(self, trial: Any):
        self._trial = trial

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trial, name)

    def suggest_categorical(self, name: str, choices: list[Any]) -> Any:
        return choices[0] if name == "net_arch" else self._trial.suggest_categorical(name, choices)


def _merge(hyperparams: dict[str, Any], policy_kwargs: dict[str, Any], sampled: dict[str, Any]) -> dict[str, Any]:
    proposed = {k: v for k, v in hyperparams.get("policy_kwargs", {}).items() if k != "net_arch"}
    return {**hyperparams, "policy_kwargs": {**proposed, **policy_kwargs, **sampled}}
