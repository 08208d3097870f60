"""Everything that two runs have to agree in, bit by bit."""

import csv
import io
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch as th

# What a clock says.
OF_TIME = ("time/fps", "time/time_elapsed", "time/iterations")


def everything(model: Any) -> dict[str, Any]:
    """What a model consists of, by name."""
    weights, variables = model._get_torch_save_params()
    found: dict[str, Any] = {name: state for name, state in model.get_parameters().items()}
    assert set(found) == set(weights)
    found["variables"] = {name: getattr(model, name) for name in variables}
    for name in (
        "num_timesteps",
        "_n_updates",
        "_episode_num",
        "_last_obs",
        "_last_original_obs",
        "_current_progress_remaining",
    ):
        found[name] = getattr(model, name)
    for name in ("exploration_rate", "reset_progress", "_episode_steps", "_features"):
        found[name] = getattr(model, name, None)
    found["returns"] = [(info["r"], info["l"]) for info in model.ep_info_buffer]
    found["random"] = (random.getstate(), np.random.get_state(), th.get_rng_state())
    found["action space"] = (
        getattr(model.action_space._np_random, "bit_generator", None) and model.action_space.np_random.bit_generator.state
    )
    if getattr(model, "replay_buffer", None) is not None:
        found["buffer"] = buffer_content(model.replay_buffer)
    normalizer = model.get_vec_normalize_env()
    if normalizer is not None:
        found["normaliser"] = [normalizer.obs_rms.mean, normalizer.obs_rms.var, normalizer.ret_rms.var, normalizer.returns]
    # What the environments would do next.
    found["next"] = [model.env.step(np.array([space_action(model)] * model.n_envs))[:3] for _ in range(3)]
    return found


def space_action(model: Any) -> Any:
    space = model.action_space
    return space.low * 0.5 if hasattr(space, "low") else 0


def buffer_content(buffer: Any) -> dict[str, Any]:
    """All transitions that can be drawn, and everything else that is an array or a number."""
    steps = np.repeat(np.arange(buffer.size()), buffer.n_envs)
    envs = np.tile(np.arange(buffer.n_envs), buffer.size())
    content: dict[str, Any] = {
        name: value for name, value in vars(buffer).items() if isinstance(value, (int, float, np.ndarray))
    }
    content.pop("infos", None)
    for name in ("observations", "next_observations"):
        if isinstance(getattr(buffer, name, None), dict):
            content[name] = getattr(buffer, name)
    if hasattr(buffer, "storage"):
        content["storage"] = (buffer.storage.observations(steps, envs), buffer.storage.next_observations(steps, envs))
    if hasattr(buffer, "priorities"):
        buffer.priorities._flush()
        content["priorities"] = (buffer.priorities._tree.weights, buffer.priorities.largest)
    return content


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Where two values differ in a single bit, a type or a shape."""
    if isinstance(a, Mapping):
        if set(a) != set(b):
            return [f"{where}: keys {set(a) ^ set(b)}"]
        return [line for key in a for line in differences(a[key], b[key], f"{where}/{key}")]
    if isinstance(a, (list, tuple)):
        if len(a) != len(b):
            return [f"{where}: {len(a)} and {len(b)} entries"]
        return [line for i, pair in enumerate(zip(a, b, strict=True)) for line in differences(*pair, f"{where}/{i}")]
    if isinstance(a, th.Tensor):
        a, b = a.detach().cpu().numpy(), b.detach().cpu().numpy()
    if isinstance(a, np.ndarray):
        same = a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
        return [] if same else [f"{where}: arrays"]
    return [] if type(a) is type(b) and (a == b or a != a) else [f"{where}: {a} and {b}"]


def as_bytes(model: Any) -> bytes:
    """For another process."""
    file = io.BytesIO()
    th.save(everything(model), file)
    return file.getvalue()


def logged(folder: Path) -> list[dict[str, str]]:
    """The rows that were logged."""
    with (folder / "progress.csv").open() as file:
        return [{key: value for key, value in row.items() if key not in OF_TIME} for row in csv.DictReader(file)]


def compare_files(undisturbed: Path, interrupted: Path) -> None:
    """What the logger and the callbacks wrote is the same."""
    assert not differences(logged(undisturbed), logged(interrupted))
    plasticity = [folder / "plasticity.csv" for folder in (undisturbed, interrupted)]
    if plasticity[0].exists():
        assert plasticity[0].read_text() == plasticity[1].read_text()
    evaluations = [folder / "evaluations.npz" for folder in (undisturbed, interrupted)]
    if evaluations[0].exists():
        with np.load(evaluations[0]) as ours, np.load(evaluations[1]) as theirs:
            assert not differences(dict(ours), dict(theirs))
