"""
What a run costs, from a few seconds of it: ``python -m sb3_sparse.sweeps.planning.measure``, one process for each kind of run.

Its input is the settings as JSON, its output what was measured.
"""

import json
import os
import resource
import sys
import tempfile
import time
import warnings
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback

from sb3_sparse.common.model_report import trained_networks
from sb3_sparse.sparse import sparsity_report
from sb3_sparse.zoo import import_packages, train_in_folder

# Of a replay buffer, and steps before the first update: enough for a batch.
SMALL_BUFFER, FEW_STEPS = 5_000, 300
# Updates before anything is measured: kernels are compiled in the first one.
WARM_UP = 3
# Where an episode does not end in the time there is, and the environment has no limit.
LONG_EPISODE = 1_000
# Seconds after which it ends, whatever it has seen.
AT_MOST = 120.0


@dataclass(frozen=True)
class Measured:
    """What a kind of run costs on this machine."""

    parameters: dict[str, dict[str, int]]
    """Of each network: ``total`` were it dense, ``learnable`` those that exist."""
    seconds_per_step: float
    """With its share of updates."""
    seconds_per_episode: float
    """Of an evaluation."""
    memory: int
    """Bytes of the process, without what a full replay buffer has more."""
    bytes_per_transition: float
    """Of the replay buffer; 0 without one."""
    agent: int
    """Bytes of the file of an agent."""


class _Stopwatch(BaseCallback):
    """Stops training when it has seen enough rollouts with updates."""

    def __init__(self, seconds: float):
        super().__init__()
        self.seconds = seconds
        self.points: list[tuple[float, int]] = []
        self.begin = time.perf_counter()
        self.n_warm = 0

    def _on_rollout_start(self) -> None:
        if getattr(self.model, "_n_updates", 1) > 0 and self.num_timesteps > 0:
            self.n_warm += 1
            if self.n_warm > WARM_UP:
                self.points.append((time.perf_counter(), self.model.num_timesteps))

    def _on_step(self) -> bool:
        now = time.perf_counter()
        has_enough = len(self.points) > 1 and now - self.points[0][0] > self.seconds
        return not has_enough and now - self.begin < AT_MOST

    def seconds_per_step(self) -> float:
        """Between the first and the last rollout that was seen."""
        if len(self.points) < 2:
            return (time.perf_counter() - self.begin) / max(self.model.num_timesteps, 1)
        (first, before), (last, after) = self.points[0], self.points[-1]
        return (last - first) / max(after - before, 1)


def measure(settings: dict[str, Any], threads: int, seconds: float) -> Measured:
    """
    Train for some seconds, with a small replay buffer and updates from the beginning.

    :param settings: Of a run, as in :class:`~sb3_sparse.sweeps.planning.plan.PlannedRun`.
    :param threads: Of the run.
    :param seconds: How long to look at training.
    :raises ValueError: If something in the settings is wrong: it is what building the agent, its environment and its
        callbacks says.
    """
    th.set_num_threads(threads)
    hyperparams = dict(settings["hyperparams"])
    if "buffer_size" in hyperparams:
        hyperparams["buffer_size"] = min(hyperparams["buffer_size"], SMALL_BUFFER)
    if "learning_starts" in hyperparams:
        hyperparams["learning_starts"] = min(hyperparams["learning_starts"], FEW_STEPS)
    watch = _Stopwatch(seconds)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # Of so short a run; the run itself says what there is to say.
        warnings.simplefilter("ignore")
        # Names of callbacks are checked, and what they cost is in what is measured, if they act so soon.
        model = train_in_folder(
            *(folder, settings["algo"], settings["env"], {**hyperparams, "callback": settings["callbacks"]}),
            n_timesteps=settings["n_timesteps"],
            checkpoint_every=10**9,
            callbacks=[watch],
            seed=settings["seed"],
            device=settings["device"],
            eval_freq=-1,
        )
        agent = sum(path.stat().st_size for path in Path(folder).glob("*.zip"))
        per_episode = _seconds_per_episode(folder, settings, seconds)
    reports = {name: sparsity_report(network) for name, network in trained_networks(model).items()}
    return Measured(
        {name: {"total": each.total_parameters, "learnable": each.learnable_parameters} for name, each in reports.items()},
        watch.seconds_per_step(),
        per_episode,
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        _bytes_per_transition(model),
        agent,
    )


def _seconds_per_episode(folder: str, settings: dict[str, Any], seconds: float) -> float:
    from sb3_sparse.evaluation import find_saved, load_saved
    from sb3_sparse.evaluation.saved import environment_of

    saved = find_saved(folder)
    model, env = load_saved(saved, device=settings["device"]), environment_of(saved)
    observation: Any = env.reset()
    state, starts = None, np.ones(1, dtype=bool)
    begin, steps, is_over = time.perf_counter(), 0, False
    while not is_over and time.perf_counter() - begin < max(seconds, 1.0):
        action, state = model.predict(observation, state=state, episode_start=starts, deterministic=True)
        observation, _, starts, _ = env.step(action)
        is_over, steps = bool(starts[0]), steps + 1
    spent = time.perf_counter() - begin
    limit = env.get_attr("spec")[0].max_episode_steps or LONG_EPISODE
    env.close()
    return spent if is_over else spent / steps * max(limit, steps)


def _bytes_per_transition(model: BaseAlgorithm) -> float:
    buffer = getattr(model, "replay_buffer", None)
    if buffer is None:
        return 0.0
    return sum(array.nbytes for array in _arrays(buffer, 3)) / (buffer.buffer_size * buffer.n_envs)


def _arrays(thing: Any, depth: int) -> list[np.ndarray]:
    """The arrays of a buffer and of its parts."""
    values = thing.values() if isinstance(thing, dict) else vars(thing).values() if hasattr(thing, "__dict__") else []
    found: dict[int, np.ndarray] = {}
    for value in values:
        parts = [value] if isinstance(value, np.ndarray) else _arrays(value, depth - 1) if depth else []
        found |= {id(part): part for part in parts}
    return list(found.values())


def main() -> None:
    """See the file."""
    given = json.load(sys.stdin)
    output = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    import_packages(given["gym_packages"])
    with redirect_stdout(sys.stderr):
        found = measure(given["settings"], given["threads"], given["seconds"])
    json.dump(asdict(found), output)
    output.close()


if __name__ == "__main__":
    main()
