"""What a study will cost: parameters, hours, memory, disk, from a short measurement of each kind of run."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sb3_sparse.common.files import written_beside
from sb3_sparse.results.evaluations import aligned
from sb3_sparse.results.studies.reading import SEED
from sb3_sparse.sweeps.backends.processes import worker_environment
from sb3_sparse.sweeps.planning.measure import AT_MOST, Measured
from sb3_sparse.sweeps.planning.plan import Plan, PlannedRun
from sb3_sparse.sweeps.runs.facts import run_facts
from sb3_sparse.zoo import WrongSettingError

#: In the folder of a study: what was measured, so that the next command need not measure it again.
ESTIMATES_FILE = "estimates.json"
# Seconds of all measurements together, and of each at most and at least; the start of a process comes on top.
BUDGET, LONGEST, SHORTEST = 60.0, 4.0, 1.0
# Of the memory that is free, what runs may fill together.
MEMORY_SHARE = 0.9
# Of the last line of an error.
ERROR_WIDTH = 500


@dataclass(frozen=True)
class Cost:
    """Of one run."""

    hours: float
    memory: float
    """Bytes, with a full replay buffer."""
    disk: float
    """Bytes that stay."""
    disk_meanwhile: float
    """Bytes of checkpoints while it runs."""


def measure_kinds(
    plan: Plan, runs: Sequence[PlannedRun], study: Path, tell: Callable[[str], None] = print
) -> dict[str, Measured]:
    """
    Measure each kind of run, unless it was measured on this machine. One after the other, each in a process of its own.

    :param plan: The study.
    :param runs: Those to be made.
    :param study: Its folder, where what was measured is kept.
    :param tell: Is told what is measured.
    :return: By :func:`kind_of`.
    :raises WrongSettingError: If a kind of run cannot be built.
    """
    kinds = {kind_of(run, plan): run for run in reversed(runs)}
    known = _read(study / ESTIMATES_FILE)
    seconds = max(SHORTEST, min(LONGEST, BUDGET / max(1, len(kinds.keys() - known.keys()))))
    new = {kind: run for kind, run in reversed(kinds.items()) if kind not in known}
    for i, (kind, run) in enumerate(new.items()):
        tell(f"measuring {i + 1} of {len(new)}: {_describe(run)}")
        known[kind] = _measure(plan, run, seconds)
        with written_beside(study / ESTIMATES_FILE) as beside:
            beside.write_text(json.dumps({name: asdict(each) for name, each in known.items()}, indent=1))
    return {kind: known[kind] for kind in kinds}


def kind_of(run: PlannedRun, plan: Plan) -> str:
    """What runs have in common that cost the same here: all settings but the seed, threads, processor."""
    settings = {name: value for name, value in run.settings.items() if name != SEED}
    text = json.dumps([settings, plan.threads, run_facts()["machine"]["processor"]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def cost_of(run: PlannedRun, measured: Measured) -> Cost:
    """
    What one run costs.

    :param run: The run.
    :param measured: Of its kind.
    """
    settings, n_timesteps = run.settings, run.settings["n_timesteps"]
    evaluation = settings["evaluation"]
    n_evaluations = n_timesteps // evaluation["every"] if evaluation["every"] else 0
    episodes = n_evaluations * evaluation["episodes"] + evaluation["final_episodes"]
    starts = min(settings["hyperparams"].get("learning_starts", 0), n_timesteps)
    # Steps before the first update cost little beside the others.
    seconds = (n_timesteps - starts) * measured.seconds_per_step + episodes * measured.seconds_per_episode
    kept = min(settings["hyperparams"].get("buffer_size", 1_000_000), n_timesteps)
    buffer = measured.bytes_per_transition * kept
    return Cost(seconds / 3600, measured.memory + buffer, measured.agent + 1e6, 2 * measured.agent + buffer)


def overview(plan: Plan, runs: Sequence[PlannedRun], measured: dict[str, Measured], jobs: int, study: Path) -> str:
    """
    What there is to do, as text: a line for each kind of run, then what all together cost.

    :param plan: The study.
    :param runs: Those to be made.
    :param measured: From :func:`measure_kinds`.
    :param jobs: Runs at a time.
    :param study: Its folder.
    """
    costs = {run.name: cost_of(run, measured[kind_of(run, plan)]) for run in runs}
    members: dict[str, list[PlannedRun]] = {}
    for run in runs:
        members.setdefault(kind_of(run, plan), []).append(run)
    rows = []
    for kind, of_kind in members.items():
        networks = measured[kind].parameters.values()
        total, learnable = (sum(network[name] for network in networks) for name in ("total", "learnable"))
        cost = costs[of_kind[0].name]
        rows.append(
            [
                _describe(of_kind[0]),
                str(len(of_kind)),
                f"{total:,}",
                f"{learnable:,}",
                f"{cost.hours:.2f}",
                f"{cost.memory / 1e9:.2f}",
            ]
        )
    hours = sum(cost.hours for cost in costs.values())
    longest = max(cost.hours for cost in costs.values())
    most = sorted((cost.memory for cost in costs.values()), reverse=True)[:jobs]
    meanwhile = sorted((cost.disk_meanwhile for cost in costs.values()), reverse=True)[:jobs]
    disk = sum(cost.disk for cost in costs.values()) + sum(meanwhile)
    free, room = free_memory(), shutil.disk_usage(_existing(study)).free
    lines = [
        aligned(["run", "seeds", "parameters", "learnable", "hours", "GB"], rows),
        "",
        f"about {max(hours / jobs, longest):.1f} hours with {jobs} at a time ({hours:.1f} in all), "
        f"{sum(most) / 1e9:.1f} GB of memory ({free / 1e9:.1f} are free), {disk / 1e9:.2f} GB on the disk "
        f"({room / 1e9:.0f} are free)",
    ]
    if sum(most) > free:
        lines.append("WARNING: more memory than is free. --jobs says how many runs there are at a time.")
    if disk > room:
        lines.append("WARNING: more than is free on the disk. --folder names another place.")
    return "\n".join(lines)


def usable_cores() -> int:
    """Cores that this process may use: of a job of a scheduler, those that it was given."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory(root: Path = Path("/")) -> float:
    """
    Bytes that processes can still take, as the system or the limits of this process's control groups say.

    :param root: Of the file system.
    """
    found = _left_by_groups(root)
    with suppress(OSError, ValueError):
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(float(line.split()[1]) * 1024)
    # No limit is a very large number in places.
    finite = [free for free in found if free < 2**60]
    return min(finite) if finite else float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _left_by_groups(root: Path) -> list[float]:
    """What control groups leave this process: its own, and those that this one lies in, of both versions."""
    found: list[float] = []
    with suppress(OSError, ValueError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            top = root / "sys/fs/cgroup" / ("memory" if controllers else "")
            group = top / path.lstrip("/")
            # In a container the first of these may be seen from outside alone.
            for place in [group, *group.parents]:
                with suppress(OSError, ValueError):
                    found.append(_left_by_group(place, is_first_version=bool(controllers)))
                if place == top:
                    break
    return found


def _left_by_group(group: Path, is_first_version: bool) -> float:
    names = ("limit_in_bytes", "usage_in_bytes") if is_first_version else ("max", "current")
    limit, used = ((group / f"memory.{name}").read_text().strip() for name in names)
    counts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    # Files that were read and are not in use: the system gives their memory to whoever asks.
    cached = float(counts.get("total_inactive_file" if is_first_version else "inactive_file", 0))
    return float("inf" if limit == "max" else limit) - float(used) + cached


def _measure(plan: Plan, run: PlannedRun, seconds: float) -> Measured:
    given: dict[str, Any] = dict(
        settings=run.settings, threads=plan.threads, seconds=seconds, gym_packages=list(plan.gym_packages)
    )
    try:
        done = subprocess.run(
            [sys.executable, "-m", "sb3_sparse.sweeps.planning.measure"],
            input=json.dumps(given),
            capture_output=True,
            text=True,
            timeout=AT_MOST * 2,
            env=worker_environment(plan.threads),
        )
    except subprocess.TimeoutExpired as error:
        raise WrongSettingError(f"{_describe(run)}: a few steps took more than {AT_MOST * 2:g} seconds.") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise WrongSettingError(f"{_describe(run)} cannot be trained: {last[:ERROR_WIDTH]}")
    return Measured(**json.loads(done.stdout))


def _describe(run: PlannedRun) -> str:
    return " ".join(
        [
            run.settings["algo"],
            run.settings["env"],
            *(f"{name}={value}" for name, value in run.axes.items() if name not in (SEED, "algo", "env")),
        ]
    )


def _read(path: Path) -> dict[str, Measured]:
    try:
        return {kind: Measured(**each) for kind, each in json.loads(path.read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        # Nothing is lost: it is measured again.
        return {}


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path
