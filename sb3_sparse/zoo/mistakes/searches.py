"""What is wrong in every trial of a search: said before the first one, or after the last."""

from collections.abc import Callable
from typing import Any

from stable_baselines3.common.vec_env import VecEnv

from sb3_sparse.resume.state.random_state import capture_random, restore_random
from sb3_sparse.zoo.hyperparameters import WrongSettingError
from sb3_sparse.zoo.mistakes.words import one_line
from sb3_sparse.zoo.rl_zoo import part


class ChecksSearch:
    """An experiment manager that ends a search in one sentence where every trial fails."""

    algo: str
    n_envs: int
    device: Any
    optimize_hyperparameters: bool
    continue_training: bool
    trained_agent: str
    create_envs: Callable[..., VecEnv]
    # What the last trial said that ended with an error.
    said = ""

    def setup_experiment(self) -> Any:
        if self.optimize_hyperparameters and self.continue_training:
            raise WrongSettingError(
                f"--trained-agent {self.trained_agent}: a search trains new agents only. Leave it out, or train that "
                "agent by sb3-sparse train, without -optimize."
            )
        return super().setup_experiment()  # type: ignore[misc]

    def _preprocess_action_noise(self, *args: Any) -> dict[str, Any]:
        found = super()._preprocess_action_noise(*args)  # type: ignore[misc]
        if self.optimize_hyperparameters:
            # Of as many as trials have.
            envs = self.create_envs(1 if self.algo == "ars" else self.n_envs, no_log=True)
            _check_agent(self.algo, found, envs, self.device)
        return found

    def objective(self, trial: Any) -> float:
        try:
            return super().objective(trial)  # type: ignore[misc]
        except part("exp_manager.optuna").TrialPruned as error:
            # rl-zoo3 takes an error for one of the sampled values, and gives up the trial.
            if error.__cause__ is not None:
                # In words: the error itself holds on to the agent.
                self.said = f"{type(error.__cause__).__name__}: {one_line(error.__cause__)}"
            raise

    def hyperparameters_optimization(self) -> None:
        try:
            super().hyperparameters_optimization()  # type: ignore[misc]
        except ValueError as error:
            # Optuna's, who is asked for the best one.
            if str(error) != "No trials are completed yet.":
                raise
            last = f" The last error, which sb3-sparse train shows in full, was {self.said}" if self.said else ""
            raise WrongSettingError(f"no trial of the search came to its end.{last}") from error


def _check_agent(algo: str, hyperparams: dict[str, Any], env: VecEnv, device: Any) -> None:
    """Build an agent as training does, which says what it does not take: of a trial, Optuna would print the traceback."""
    # SB3 puts defaults into dictionaries that it is given.
    copied = {name: dict(value) if isinstance(value, dict) else value for name, value in hyperparams.items()}
    # With the same seed, trials stay what they were without this agent.
    before = capture_random()
    try:
        part("utils.ALGOS")[algo](env=env, device=device, **copied)
    finally:
        restore_random(before)
        env.close()
