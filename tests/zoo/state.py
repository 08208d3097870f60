"""What a command of rl-zoo3 may not leave changed."""

import sys

import gymnasium as gym


def state_of_rl_zoo():
    """rl-zoo3's modules with their tables, gymnasium's registry, and the arguments of the process."""
    import rl_zoo3.enjoy
    import rl_zoo3.train  # noqa: F401

    modules = {name: dict(vars(module)) for name, module in sys.modules.items() if name.partition(".")[0] == "rl_zoo3"}
    tables = {
        (name, key): list(value.items())
        for name, names in modules.items()
        for key, value in names.items()
        if isinstance(value, dict) and key.isupper()
    }
    for names in modules.values():
        names.pop("__builtins__", None)
    return {
        "modules": {name: {key: id(value) for key, value in names.items()} for name, names in modules.items()},
        "tables": tables,
        "registry": list(gym.registry.items()),
        "argv": (id(sys.argv), list(sys.argv)),
    }
