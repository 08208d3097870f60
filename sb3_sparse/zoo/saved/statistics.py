"""The statistics of ``VecNormalize`` that belong to a saved agent: SB3's file of an agent does not hold them."""

import re
from pathlib import Path

from sb3_sparse.results.runs import settings_file

# Where rl-zoo3 keeps them, beside the agent.
STATISTICS = "vecnormalize.pkl"
# How SB3's CheckpointCallback names an agent; its statistics have "_vecnormalize" before the number.
_CHECKPOINT = re.compile(r"(?P<prefix>.*)(?P<number>_\d+_steps)")


def settings_of(path: Path) -> Path | None:
    """The ``config.yml`` of an agent's run: in the folder with the agent's name, else in the only one of the run."""
    of_this_agent = path.with_suffix("") / "config.yml"
    return of_this_agent if of_this_agent.is_file() else settings_file(path.parent)


def statistics_beside(path: Path) -> Path | None:
    """
    The statistics of ``VecNormalize`` that belong to an agent; None if there are none.

    They are in the folder that has the agent's name, where rl-zoo3 saves those of the last agent; or beside a checkpoint, as
    SB3's ``CheckpointCallback`` names them; or in the settings of the agent's run, or directly beside the agent. Those in any
    other folder are of other agents.

    :param path: The agent's file.
    :raises ValueError: If there are several.
    """
    own = path.with_suffix("") / STATISTICS
    if own.is_file():
        return own
    if (of_checkpoint := checkpoint_statistics(path)) is not None:
        return of_checkpoint
    settings = settings_of(path)
    folders = [path.parent] if settings is None else [settings.parent, path.parent]
    found = [folder / STATISTICS for folder in folders if (folder / STATISTICS).is_file()]
    if len(found) > 1:
        raise ValueError(
            f"which of {[str(file) for file in found]} belongs to {path}? Name it: --vecnormalize FILE, or none. For "
            "train -i, move the other one away."
        )
    return found[0] if found else None


def checkpoint_statistics(path: Path) -> Path | None:
    """The statistics that SB3's ``CheckpointCallback`` wrote together with an agent; None if there are none."""
    named = _CHECKPOINT.fullmatch(path.stem)
    if named is None:
        return None
    statistics = path.with_name(f"{named['prefix']}_vecnormalize{named['number']}.pkl")
    return statistics if statistics.is_file() else None
