"""Databases of searches, which Optuna opens."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sb3_sparse.zoo.hyperparameters import WrongSettingError
from sb3_sparse.zoo.mistakes.words import is_of_others, one_line
from sb3_sparse.zoo.rl_zoo import part


@contextmanager
def about_storage(storage: str, study: str | None = None, trial: int | None = None) -> Iterator[None]:
    """
    What goes wrong inside is that a database cannot be opened, or has no such study or trial.

    :param storage: As ``--storage`` names it.
    :param study: As ``--study-name`` does.
    :param trial: As ``--trial-id`` does.
    """
    try:
        yield
    # Optuna, and each database, has errors of its own.
    except Exception as error:
        if is_of_others(error):
            raise
        asked = f" has no trial {trial} of a study {study!r}, or" if study is not None else ""
        raise WrongSettingError(
            f"--storage {storage}{asked} cannot be opened ({type(error).__name__}: {one_line(error)}). Expected what "
            "sb3-sparse tune has written: a file such as study.log, or a database such as sqlite:///study.db."
        ) from error


def check_storage(storage: str | None) -> None:
    """
    See whether a search can be kept somewhere, before it begins.

    :param storage: As ``--storage`` names it; None: in memory.
    :raises WrongSettingError: If not.
    """
    if storage is None:
        return
    storages: Any = part("exp_manager.optuna").storages
    with about_storage(storage):
        if storage.endswith(".log"):
            Path(storage).parent.mkdir(parents=True, exist_ok=True)
            storages.JournalStorage(storages.journal.JournalFileBackend(storage))
        else:
            storages.get_storage(storage)


def check_trial(trial: int, storage: str | None, study: str | None) -> None:
    """
    :param trial: As ``--trial-id`` names it.
    :param storage: As ``--storage`` does.
    :param study: As ``--study-name`` does.
    :raises WrongSettingError: If it is not said whose trial that is.
    """
    if not (storage and study):
        raise WrongSettingError(
            f"--trial-id {trial}: say of which search, --storage FILE --study-name NAME, as sb3-sparse tune was told."
        )
