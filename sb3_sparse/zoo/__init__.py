"""The one adapter to rl-zoo3: registration, hyperparameter files, search spaces, agents that are built, trained and found."""

from sb3_sparse.zoo.agents import (
    find_agent,
    packaged_hyperparams,
    run_environment,
    train_agent,
    train_in_folder,
    untrained_agent,
)
from sb3_sparse.zoo.algorithms import algorithms, register_algorithms
from sb3_sparse.zoo.commands import options_of, prepare_command
from sb3_sparse.zoo.environments import check_display, import_packages, make_known
from sb3_sparse.zoo.exact_runs import ExactRun, recorded_run
from sb3_sparse.zoo.hyperparameters import (
    WrongSettingError,
    check_classes,
    hyperparams_file,
    literal_names,
    named_class,
)
from sb3_sparse.zoo.manager import experiment_manager
from sb3_sparse.zoo.patches import registered

__all__ = [
    "ExactRun",
    "WrongSettingError",
    "algorithms",
    "check_classes",
    "check_display",
    "experiment_manager",
    "find_agent",
    "hyperparams_file",
    "import_packages",
    "literal_names",
    "make_known",
    "named_class",
    "options_of",
    "packaged_hyperparams",
    "prepare_command",
    "recorded_run",
    "register_algorithms",
    "registered",
    "run_environment",
    "train_agent",
    "train_in_folder",
    "untrained_agent",
]
