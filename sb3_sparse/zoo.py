"""
Registration with rl-zoo3: what its ``train``, ``enjoy`` and hyperparameter search know of this package.

rl-zoo3 is imported inside the functions: importing it patches gymnasium and takes seconds. What is changed in it is
changed while one of our commands runs, see :func:`registered`, and then as it was.
"""

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_sparse.common.literals import parse_literal

# Search space of `sb3-sparse tune`, besides rl-zoo3's own of the algorithm.
WIDTH_SCALES = (0.25, 0.5, 1.0, 2.0)
SPARSITY_RANGE = (0.5, 0.95)
# Of DeepMind Control tasks whose entry names no `env_wrapper` (null stands for none at all).
DMC_WRAPPER = {"sb3_sparse.dmc.DMCWrapper": {"action_repeat": 2}}


def hyperparams_file(algo: str) -> Path | None:
    """The packaged YAML of an algorithm (``"sac"``), or None if there is none."""
    packaged = Path(str(resources.files("sb3_sparse"))) / "hyperparams"
    # In a checkout the folder lies beside the package; the wheel has it inside.
    folder = packaged if packaged.is_dir() else packaged.parent.parent / "hyperparams"
    path = folder / f"{algo}.yml"
    return path if path.is_file() else None


def find_agent(folder: str, algo: str, env_id: str, exp_id: int = 0, best: bool = False) -> Path:
    """
    The file of an agent that ``train`` saved.

    :param exp_id: Number of the run; 0 is the latest.
    :param best: The one with the best evaluation, instead of the last.
    :raises ValueError: If there is none.
    """
    try:
        from huggingface_sb3 import EnvironmentName
        from rl_zoo3.utils import get_model_path
    except ImportError as error:
        raise ImportError('finding an agent by its environment needs rl-zoo3: pip install "sb3-sparse[zoo]"') from error
    try:
        return Path(get_model_path(exp_id, folder, algo, EnvironmentName(env_id), best)[1])
    except AssertionError as error:
        raise ValueError(str(error)) from error


def register_algorithms() -> None:
    """
    Let rl-zoo3 know the algorithms of this package, and a search space for CrossQ. Safe to call twice.

    Adds entries to rl-zoo3's own tables, for the rest of the process; changes none that is there. The commands of this
    package take theirs back, see :func:`registered`.
    """
    for table, entries in _registrations():
        for name, entry in entries.items():
            table.setdefault(name, entry)


@contextmanager
def registered(loads_only: bool = False) -> Iterator[None]:
    """
    What the commands of this package add to rl-zoo3, inside a ``with`` block: :func:`register_algorithms`, the
    :func:`experiment_manager` of ``rl_zoo3.train``, and with ``loads_only`` algorithms that load without a replay buffer.

    :param loads_only: Whether agents are only loaded, as ``enjoy`` does.
    """
    import rl_zoo3.train
    from rl_zoo3 import ALGOS

    with ExitStack() as stack:
        for table, entries in _registrations():
            stack.enter_context(_replaced(table, {name: entry for name, entry in entries.items() if name not in table}))
        if loads_only:
            off_policy = {name: _without_buffer(kind) for name, kind in ALGOS.items() if issubclass(kind, OffPolicyAlgorithm)}
            stack.enter_context(_replaced(ALGOS, off_policy))
        stack.enter_context(_replaced(vars(rl_zoo3.train), {"ExperimentManager": experiment_manager()}))
        yield


@contextmanager
def _replaced(table: dict[str, Any], entries: dict[str, Any]) -> Iterator[None]:
    """Entries of a dict replaced for a while, and then as they were."""
    before = {name: table[name] for name in entries if name in table}
    table.update(entries)
    try:
        yield
    finally:
        for name in entries:
            del table[name]
        table.update(before)


def _registrations() -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """rl-zoo3's tables, and what they lack."""
    from rl_zoo3 import ALGOS
    from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER

    from sb3_sparse.streaming import StreamAC, StreamQ, StreamSARSA

    # The search space of SAC serves CrossQ, but for the target network that CrossQ does not have.
    samplers: dict[str, Any] = {name: partial(_sample_stream, kappas) for name, kappas in STREAM_KAPPAS.items()}
    converters: dict[str, Any] = dict.fromkeys(STREAM_KAPPAS, _convert_stream)
    return [
        (ALGOS, {"stream_ac": StreamAC, "stream_q": StreamQ, "stream_sarsa": StreamSARSA}),
        (HYPERPARAMS_SAMPLER, {**samplers, "crossq": _without_tau(HYPERPARAMS_SAMPLER["sac"])}),
        (HYPERPARAMS_CONVERTER, {**converters, "crossq": _without_tau(HYPERPARAMS_CONVERTER["sac"])}),
    ]


def _without_buffer(algorithm: type[OffPolicyAlgorithm]) -> type[OffPolicyAlgorithm]:
    """A subclass whose ``load`` allocates no replay buffer, also where rl-zoo3 does not ask for that."""

    def load(cls: type, *args: Any, **kwargs: Any) -> OffPolicyAlgorithm:
        return algorithm.load(*args, **{"buffer_size": 1, **kwargs})

    return type(algorithm.__name__, (algorithm,), {"__doc__": algorithm.__doc__, "load": classmethod(load)})


# What bounds the steps of each streaming algorithm, for the search.
STREAM_KAPPAS = {"stream_ac": ("kappa_policy", "kappa_value"), "stream_q": ("kappa",), "stream_sarsa": ("kappa",)}


def _sample_stream(kappas: tuple[str, ...], trial: Any, *args: Any) -> dict[str, Any]:
    hyperparams = {
        "gamma": trial.suggest_categorical("gamma", (0.95, 0.98, 0.99, 0.995)),
        "trace_lambda": trial.suggest_categorical("trace_lambda", (0.5, 0.7, 0.8, 0.9, 0.95)),
    }
    return hyperparams | {name: trial.suggest_float(name, 1.1, 10.0, log=True) for name in kappas}


def _convert_stream(sampled_params: dict[str, Any]) -> dict[str, Any]:
    return dict(sampled_params)


def _without_tau(propose: Any) -> Any:
    def without_tau(*args: Any) -> dict[str, Any]:
        return {name: value for name, value in propose(*args).items() if name != "tau"}

    return without_tau


class _FixedSizeTrial:
    """An optuna trial without rl-zoo3's choice of an MLP size, which means nothing to SimBa."""

    def __init__(self, trial: Any):
        self._trial = trial

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trial, name)

    def suggest_categorical(self, name: str, choices: list[Any]) -> Any:
        return choices[0] if name == "net_arch" else self._trial.suggest_categorical(name, choices)


def _is_ours(policy: Any) -> bool:
    return isinstance(policy, str) and policy.rpartition(".")[2].startswith("SparseSimBa")


def _sparse_sampler(stock: Any, policy_kwargs: dict[str, Any]) -> Any:
    """rl-zoo3's sampler of an algorithm, with sparsity and width instead of MLP sizes; keeps the YAML's keywords."""

    def sample(trial: Any, *args: Any) -> dict[str, Any]:
        hyperparams = stock(_FixedSizeTrial(trial), *args)
        sampled: dict[str, Any] = {"sparsity": trial.suggest_float("sparsity", *SPARSITY_RANGE)}
        if "net_arch" not in policy_kwargs:
            sampled["width_scale"] = trial.suggest_categorical("width_scale", WIDTH_SCALES)
        return _merge(hyperparams, policy_kwargs, sampled)

    return sample


def _sparse_converter(stock: Any, policy_kwargs: dict[str, Any]) -> Any:
    """The way back, from the parameters of a finished trial to hyperparameters."""

    def convert(params: dict[str, Any]) -> dict[str, Any]:
        params = {"net_arch": "small", **params}
        sampled: dict[str, Any] = {name: params.pop(name) for name in ("sparsity", "width_scale") if name in params}
        return _merge(stock(params), policy_kwargs, sampled)

    return convert


def _merge(hyperparams: dict[str, Any], policy_kwargs: dict[str, Any], sampled: dict[str, Any]) -> dict[str, Any]:
    proposed = {k: v for k, v in hyperparams.get("policy_kwargs", {}).items() if k != "net_arch"}
    return {**hyperparams, "policy_kwargs": {**proposed, **policy_kwargs, **sampled}}


def experiment_manager(reads_only: bool = False) -> type:
    """
    rl-zoo3's ``ExperimentManager``, as the commands of this package use it.

    :param reads_only: Whether the hyperparameters may come from anybody: what rl-zoo3 would evaluate is read as literals
        instead, and callbacks are left out.
    """
    from rl_zoo3.exp_manager import ExperimentManager
    from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER

    class SparseExperimentManager(ExperimentManager):
        """
        rl-zoo3 replaces ``policy_kwargs`` by what its samplers propose; with our policies they are merged. Tasks of
        DeepMind Control get their wrapper, without which they have Dict observations, where the file does not say it.
        """

        # The YAML's, once they are read; only of our policies.
        kept_policy_kwargs: dict[str, Any] | None = None

        def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
            trial_id, self.trial_id = self.trial_id, None
            hyperparams, saved = super().read_hyperparameters()
            if _is_ours(hyperparams.get("policy")):
                self.kept_policy_kwargs = dict(_read("policy_kwargs", hyperparams.get("policy_kwargs") or {}))
            self.trial_id = trial_id
            if trial_id:
                hyperparams, saved = super().read_hyperparameters()
            is_unwrapped_dmc = self.env_name.gym_id.startswith("dm_control/") and "env_wrapper" not in hyperparams
            if is_unwrapped_dmc and (_is_ours(hyperparams.get("policy")) or self.algo in STREAM_KAPPAS):
                print(f"{self.env_name.gym_id} has no env_wrapper in the file: using {DMC_WRAPPER}")
                hyperparams["env_wrapper"] = saved["env_wrapper"] = [copy.deepcopy(DMC_WRAPPER)]
            names = EVALUATED_BY_RL_ZOO if reads_only else ("policy_kwargs",) if _is_ours(hyperparams.get("policy")) else ()
            hyperparams.update({name: _read(name, hyperparams[name]) for name in names if name in hyperparams})
            if reads_only:
                hyperparams.pop("callback", None)
            return hyperparams, saved

        def load_trial(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
            with self.search_space():
                return super().load_trial(*args, **kwargs)

        def hyperparameters_optimization(self) -> None:
            with self.search_space():
                super().hyperparameters_optimization()

        @contextmanager
        def search_space(self) -> Iterator[None]:
            """With our policies: sparsity and width, in rl-zoo3's tables while they are used."""
            if self.kept_policy_kwargs is None:
                yield
                return
            algo, kept = self.algo, self.kept_policy_kwargs
            sampler = {algo: _sparse_sampler(HYPERPARAMS_SAMPLER[algo], kept)}
            converter = {algo: _sparse_converter(HYPERPARAMS_CONVERTER[algo], kept)}
            with _replaced(HYPERPARAMS_SAMPLER, sampler), _replaced(HYPERPARAMS_CONVERTER, converter):
                yield

    return SparseExperimentManager


# Hyperparameters that rl-zoo3 passes to Python's `eval` where they are strings.
EVALUATED_BY_RL_ZOO = ("policy_kwargs", "replay_buffer_class", "replay_buffer_kwargs", "monitor_kwargs", "normalize")
# Of the names that such strings may have there, those that mean something to an agent.
ACTIVATIONS = (
    *("CELU", "ELU", "GELU", "Hardswish", "Hardtanh", "Identity", "LeakyReLU", "Mish", "PReLU", "ReLU", "ReLU6", "SELU"),
    *("SiLU", "Sigmoid", "Softplus", "Softsign", "Tanh"),
)
OPTIMIZERS = ("ASGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "SGD")


def literal_names() -> dict[str, Any]:
    """What the hyperparameters that :func:`experiment_manager` reads may name."""
    import torch as th
    from stable_baselines3 import HerReplayBuffer
    from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike

    names: dict[str, Any] = {"HerReplayBuffer": HerReplayBuffer, "RMSpropTFLike": RMSpropTFLike}
    names |= {f"{module}.{name}": getattr(th.nn, name) for module in ("nn", "th.nn", "torch.nn") for name in ACTIVATIONS}
    return names | {f"{module}.optim.{name}": getattr(th.optim, name) for module in ("th", "torch") for name in OPTIMIZERS}


def _read(name: str, value: Any) -> Any:
    return parse_literal(name, value, literal_names()) if isinstance(value, str) else value
