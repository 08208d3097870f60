"""The settings that rl-zoo3 has kept of a run."""

from typing import Any

from sb3_sparse.zoo.rl_zoo import part


def saved_hyperparams(*args: Any, **kwargs: Any) -> tuple[dict[str, Any], str | None]:
    """
    What rl-zoo3's ``get_saved_hyperparams`` finds, without what is nothing: for training, ``frame_stack: null`` is none, and
    who plays would stumble over it.
    """
    found, folder = part("utils.get_saved_hyperparams")(*args, **kwargs)
    # This one has to be there.
    return {name: value for name, value in found.items() if value is not None or name == "normalize"}, folder
