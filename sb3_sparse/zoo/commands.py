"""rl-zoo3's own commands, as if they had been called with certain arguments."""

import sys
from collections.abc import Callable

from sb3_sparse.zoo.environments import register_domain
from sb3_sparse.zoo.exact_runs import ExactRun
from sb3_sparse.zoo.patches import registered
from sb3_sparse.zoo.rl_zoo import part


def prepare_command(command: str, args: list[str], env_id: str, exact: ExactRun | None = None) -> Callable[[], None]:
    """
    A command of rl-zoo3 with what this package adds to it. When it ends, rl-zoo3 and ``sys.argv`` are as before.

    :param command: ``"train"`` or ``"enjoy"``.
    :param args: Its arguments.
    :param env_id: The environment that they name.
    :param exact: Of ``train``: how the run is written down to go on from, or which one goes on.
    :return: Runs it. Raises ``SystemExit`` if an argument is wrong, as argparse does, and :class:`WrongSettingError` if a
        file or a hyperparameter is.
    :raises ImportError: If rl-zoo3 is missing, or a version that lacks something that is needed.
    """
    called = part(f"{command}.{command}")

    def run() -> None:
        argv = sys.argv
        with registered(loads_only=command == "enjoy", exact=exact):
            register_domain(env_id)
            try:
                # rl-zoo3's commands read no other arguments than those of the process.
                sys.argv = [f"sb3-sparse {command}", *args]
                called()
            finally:
                sys.argv = argv

    return run
