"""
Registration with rl-zoo3: what its ``train``, ``enjoy`` and hyperparameter search know of this package.

rl-zoo3 is imported inside the functions: importing it patches gymnasium and takes seconds.
"""

from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

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
    """Let ``--algo`` name the algorithms of this package. Safe to call twice."""
    from rl_zoo3 import ALGOS, hyperparams_opt

    from sb3_sparse.streaming import StreamAC, StreamQ, StreamSARSA

    ALGOS.update(stream_ac=StreamAC, stream_q=StreamQ, stream_sarsa=StreamSARSA)
    for name, kappas in STREAM_KAPPAS.items():
        hyperparams_opt.HYPERPARAMS_SAMPLER[name] = partial(_sample_stream, kappas)
        hyperparams_opt.HYPERPARAMS_CONVERTER[name] = _convert_stream


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


def register() -> None:
    """Make rl-zoo3's hyperparameter search keep ``policy_kwargs`` and know sparse networks. Safe to call twice."""
    import rl_zoo3.train

    rl_zoo3.train.ExperimentManager = experiment_manager()  # type: ignore[assignment, misc]


def _without_tau(propose: Any) -> Any:
    def without_tau(*args: Any) -> dict[str, Any]:
        return {name: value for name, value in propose(*args).items() if name != "tau"}

    return without_tau


def shrink_buffers_on_load() -> None:
    """Let ``enjoy`` load off-policy agents without allocating their replay buffer, those rl-zoo3 forgets included."""
    from rl_zoo3 import ALGOS

    for name, algorithm in list(ALGOS.items()):
        if isinstance(algorithm, type) and issubclass(algorithm, OffPolicyAlgorithm):
            ALGOS[name] = _SmallBufferLoader(algorithm)  # type: ignore[assignment]


class _SmallBufferLoader:
    """Stands for an algorithm class where rl-zoo3 only loads from it."""

    def __init__(self, algorithm: type[OffPolicyAlgorithm]):
        self.algorithm = algorithm

    def load(self, *args: Any, **kwargs: Any) -> OffPolicyAlgorithm:
        kwargs.setdefault("buffer_size", 1)
        return self.algorithm.load(*args, **kwargs)


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


def experiment_manager() -> type:
    """rl-zoo3's ``ExperimentManager``, as the commands of this package use it."""
    from rl_zoo3 import exp_manager, hyperparams_opt
    from rl_zoo3.exp_manager import ExperimentManager

    # rl-zoo3 has no search space for CrossQ. That of SAC serves, but for the target network that CrossQ does not have.
    samplers, converters = hyperparams_opt.HYPERPARAMS_SAMPLER, hyperparams_opt.HYPERPARAMS_CONVERTER
    samplers.setdefault("crossq", _without_tau(samplers["sac"]))
    converters.setdefault("crossq", _without_tau(converters["sac"]))

    class SparseExperimentManager(ExperimentManager):
        """
        rl-zoo3 replaces ``policy_kwargs`` by what its samplers propose; with our policies they are merged. Tasks of
        DeepMind Control get their wrapper, without which they have Dict observations, where the file does not say it.
        """

        def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
            hyperparams, saved = self._read_and_register()
            is_unwrapped_dmc = self.env_name.gym_id.startswith("dm_control/") and "env_wrapper" not in hyperparams
            if is_unwrapped_dmc and (_is_ours(hyperparams.get("policy")) or self.algo in STREAM_KAPPAS):
                print(f"{self.env_name.gym_id} has no env_wrapper in the file: using {DMC_WRAPPER}")
                hyperparams["env_wrapper"] = saved["env_wrapper"] = [DMC_WRAPPER]
            return hyperparams, saved

        def _read_and_register(self) -> tuple[dict[str, Any], dict[str, Any]]:
            trial_id, self.trial_id = self.trial_id, None
            hyperparams, saved = super().read_hyperparameters()
            if _is_ours(hyperparams.get("policy")):
                policy_kwargs = hyperparams.get("policy_kwargs") or {}
                if isinstance(policy_kwargs, str):
                    # "dict(activation_fn=nn.ELU)", as rl-zoo3's own files have it: with the names that it evaluates them with.
                    policy_kwargs = eval(policy_kwargs, dict(vars(exp_manager)))
                policy_kwargs = dict(policy_kwargs)
                _install(hyperparams_opt.HYPERPARAMS_SAMPLER, self.algo, _sparse_sampler, policy_kwargs)
                _install(hyperparams_opt.HYPERPARAMS_CONVERTER, self.algo, _sparse_converter, policy_kwargs)
            self.trial_id = trial_id
            return super().read_hyperparameters() if trial_id else (hyperparams, saved)

    return SparseExperimentManager


def _install(registry: dict[str, Any], algo: str, wrap: Any, policy_kwargs: dict[str, Any]) -> None:
    stock = getattr(registry[algo], "stock", registry[algo])
    registry[algo] = wrap(stock, policy_kwargs)
    registry[algo].stock = stock
