"""rl-zoo3's own commands, as if they had been called with certain arguments."""

import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from sb3_sparse.zoo.environments import register_domain
from sb3_sparse.zoo.hyperparameters import WrongSettingError
from sb3_sparse.zoo.patches import registered
from sb3_sparse.zoo.rl_zoo import part, replaced


def prepare_command(command: str, args: list[str], env_id: str) -> Callable[[], None]:
    """
    A command of rl-zoo3 with what this package adds to it. When it ends, rl-zoo3 and ``sys.argv`` are as before.

    :param command: ``"train"`` or ``"enjoy"``.
    :param args: Its arguments.
    :param env_id: The environment that they name.
    :return: Runs it. Raises ``SystemExit`` if an argument is wrong: as argparse does, or with one sentence.
    :raises ImportError: If rl-zoo3 is missing, or a version that lacks something that is needed.
    """
    called = part(f"{command}.{command}")

    def run() -> None:
        argv = sys.argv
        with registered(loads_only=command == "enjoy"), ExitStack() as stack:
            register_domain(env_id)
            if command == "enjoy":
                stack.enter_context(replaced(vars(part("enjoy")), {"get_model_path": _get_model_path}))
            try:
                # rl-zoo3's commands read no other arguments than those of the process.
                sys.argv = [f"sb3-sparse {command}", *args]
                called()
            except WrongSettingError as error:
                sys.exit(f"sb3-sparse {command}: {error}")
            finally:
                sys.argv = argv

    return run


def _get_model_path(exp_id: int, folder: str, *args: Any) -> tuple[str, str, str]:
    """rl-zoo3's, which of an agent that there is not says so by errors that could come from anywhere."""
    try:
        return part("utils.get_model_path")(exp_id, folder, *args)
    except (AssertionError, ValueError) as error:
        raise WrongSettingError(f"{error}. -f names the log folder, --exp-id the run.") from error
