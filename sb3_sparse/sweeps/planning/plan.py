"""What a study is: a file that names algorithms, tasks, settings and axes, and the runs that come of it."""

import functools
import hashlib
import inspect
import itertools
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch as th

from sb3_sparse.common.validation import finite, flag, fraction, names, non_negative, whole_number
from sb3_sparse.sweeps.planning.axes import OF_RUN, SHORT, Point, as_label, axes_of, check_labels, check_names, mapping
from sb3_sparse.sweeps.planning.paths import as_entries, one_kind, set_by_path, still_holds
from sb3_sparse.sweeps.planning.yaml_plain import read_yaml
from sb3_sparse.zoo import WrongSettingError, algorithms, check_classes, import_packages, named_class, packaged_hyperparams

# What is the same for all runs of a study, and changes no result.
OF_STUDY = ("study", "checkpoint_every", "threads", "gpus", "memory", "tensorboard", "gym_packages", "axes", "also")
_WIDTH_OF_DRQV2 = "policy_kwargs.critic_width_scale"
# `deterministic` and `epsilon` are those of the evaluation of the finished agent.
EVALUATION = {
    **{"every": "10%", "episodes": 10, "final_episodes": 10, "deterministic": True, "epsilon": 0.0},
    # Training ends at a mean return, or after so many evaluations without a better one.
    **{"stop_at": None, "stop_after": None},
}
# What is no hyperparameter, though a constructor of SB3 or a file of rl-zoo3 may have it.
ELSEWHERE = {
    "seed": "seeds are an axis, axes.seed, a number of seeds or a list",
    "n_timesteps": "say n_timesteps beside hyperparams, or make it an axis",
    "device": "say device beside hyperparams, or make it an axis",
    "tensorboard_log": "say tensorboard: true at the top of the plan",
    "verbose": "what a run says is in its log.txt",
    "exact_checkpoint_freq": "say checkpoint_every at the top of the plan",
}
NAME_LENGTH, MAX_SEED = 100, 2**32 - 10_000
FEW_STEPS = 1_000


@dataclass(frozen=True)
class PlannedRun:
    """One training."""

    axes: dict[str, Any]
    """Where it is on each axis, by name: numbers, or labels."""
    settings: dict[str, Any]
    """Everything that decides its result, plain data."""

    @property
    def hash(self) -> str:
        """Of the settings: equal if and only if those are."""
        text = json.dumps(one_kind(self.settings), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def name(self) -> str:
        """Of its folder: the axes to read, and of the hash what keeps others apart."""
        text = "_".join(f"{axis}-{as_label(value)}" for axis, value in self.axes.items())
        readable = re.sub(r"[^A-Za-z0-9.+_-]+", "-", text)[:NAME_LENGTH].strip("-._")
        return f"{readable}-{self.hash[:10]}"


@dataclass(frozen=True)
class Plan:
    """A study."""

    study: str
    runs: tuple[PlannedRun, ...]
    """In the order in which they are begun: first one seed of all."""
    checkpoint_every: str | int | None = None
    """None: see :func:`checkpoint_steps`."""
    threads: int = 1
    """Of each run."""
    gpus: float = 0.0
    """Of each run, for Ray: a share of one is allowed."""
    memory: float | None = None
    """Of each run, for Ray, in GB; None: as measured."""
    tensorboard: bool = False
    gym_packages: tuple[str, ...] = ()
    content: dict[str, Any] = field(default_factory=dict, repr=False)
    """As it stands in the file."""


def read_plan(path: Path) -> Plan:
    """
    Read a plan, and find all its runs. Nothing of it is evaluated as Python.

    :param path: A file of YAML; ``docs/studies.md`` says what stands in it.
    :raises ValueError: If something in it is wrong.
    :raises ImportError: If PyYAML or rl-zoo3 is missing, or what an environment of DeepMind Control or Atari needs.
    """
    content = read_yaml(path)
    try:
        return make_plan(content, default_name=path.stem)
    except ValueError as error:
        raise WrongSettingError(f"{path}: {error}") from error


def make_plan(content: Any, default_name: str = "study") -> Plan:
    """
    A plan from its content.

    :param content: As the file has it.
    :param default_name: Of the study, where the plan has none.
    :raises ValueError: If something in it is wrong.
    """
    check_names("the plan", content, (*OF_STUDY, *OF_RUN))
    study = content.get("study", default_name)
    if not isinstance(study, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", study):
        raise ValueError(f"study={study!r}: expected a name of letters, digits, '.', '_' and '-'.")
    packages = tuple(names("gym_packages", content["gym_packages"])) if content.get("gym_packages") else ()
    if packages:
        import_packages(packages)
    base = {name: content[name] for name in OF_RUN if name in content}
    runs: list[PlannedRun] = []
    packaged = functools.cache(packaged_hyperparams)
    for block in (content, *_blocks(content)):
        own = [] if block is content else [{name: block[name] for name in OF_RUN if name in block}]
        points = itertools.product(*axes_of(block).values())
        runs += _all_different([_run(base, own, point, packaged) for point in points])
    check_labels(run.axes for run in runs)
    for run in runs:
        checkpoint_steps(content.get("checkpoint_every"), run.settings["n_timesteps"])
    # Of the first block that names it: what a later one calls it otherwise is made once, and keeps its labels.
    different: dict[str, PlannedRun] = {}
    for run in runs:
        different.setdefault(run.hash, run)
    if len({run.name for run in different.values()}) < len(different):
        raise ValueError("two runs have one name: rename the labels of the axes.")
    return Plan(
        study=study,
        runs=tuple(sorted(different.values(), key=_seed_place(runs))),
        checkpoint_every=content.get("checkpoint_every"),
        threads=whole_number("threads", content.get("threads", 1), 1),
        gpus=non_negative("gpus", content.get("gpus", 0)),
        memory=None if content.get("memory") is None else non_negative("memory", content["memory"]),
        tensorboard=flag("tensorboard", content.get("tensorboard", False)),
        gym_packages=packages,
        content=content,
    )


def steps_of(name: str, value: Any, n_timesteps: int) -> int:
    """
    A number of steps, or a part of the run: ``"25%"``.

    :param name: For messages.
    :param value: The number, or the part.
    :param n_timesteps: Of the run.
    :raises ValueError: If it is neither, or below 1, or more than 100%.
    """
    if isinstance(value, str) and re.fullmatch(r"\d+(\.\d+)?\s*%", value):
        percent = float(value.rstrip(" %"))
        if not 0 < percent <= 100:
            raise ValueError(f"{name}={value!r}: expected a part of the run, more than 0% and at most 100%.")
        return max(1, round(percent / 100 * n_timesteps))
    try:
        return whole_number(name, value, 1)
    except ValueError as error:
        raise ValueError(
            f"{name}={value!r}: expected a positive whole number, or a part of the run, such as '25%'."
        ) from error


def checkpoint_steps(given: str | int | None, n_timesteps: int) -> int:
    """
    Steps between two checkpoints: as a plan says, else a tenth of the run, but not less than ``FEW_STEPS``, in which there is
    little to lose, and a checkpoint takes a tenth of a second.

    :param given: By the plan.
    :param n_timesteps: Of the run.
    """
    return max(FEW_STEPS, n_timesteps // 10) if given is None else steps_of("checkpoint_every", given, n_timesteps)


def check_places(runs: Iterable[PlannedRun]) -> None:
    """
    See whether policies, wrappers and callbacks that runs name by their place are there, and whether policies take their
    keywords. Who makes the runs needs them, and who only reads the plan does not.

    :raises WrongSettingError: If one is missing, no such thing, or has no such keyword.
    """
    known: list[dict[str, Any]] = []
    for run in runs:
        named = {**run.settings["hyperparams"], "callback": run.settings["callbacks"]}
        if named not in known:
            check_classes(named)
            _check_policy_kwargs(run)
            known.append(named)


def _check_policy_kwargs(run: PlannedRun) -> None:
    """Those of SB3's policies have no width, which an axis may have given them all the same."""
    hyperparams = run.settings["hyperparams"]
    policy, kwargs = hyperparams.get("policy"), as_entries("policy_kwargs", hyperparams.get("policy_kwargs"))
    if not isinstance(policy, str) or not isinstance(kwargs, Mapping):
        return
    known = algorithms()[run.settings["algo"]].policy_aliases
    kind = named_class(policy) if "." in policy else known.get(policy)
    parameters = inspect.signature(kind).parameters if isinstance(kind, type) else {}
    # Who takes any keyword knows what to do with it.
    takes_any = not parameters or any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    if not takes_any and (unknown := sorted(kwargs.keys() - parameters.keys())):
        raise WrongSettingError(
            f"{run.name}: policy {policy} has no keyword {', '.join(unknown)} in policy_kwargs. Axes that not all policies "
            "have belong into a block of `also` of their own."
        )


def _run(
    base: dict[str, Any],
    own: list[dict[str, Any]],
    point: tuple[Point, ...],
    packaged: Callable[[str, str], dict[str, Any]],
) -> PlannedRun:
    """One run: of the plan, then the block, then the axes in turn."""
    changes = [base, *own, *(change for _, _, change in point)]
    last: dict[str, Any] = {}
    for change in changes:
        last.update({name: value for name, value in change.items() if name not in ("hyperparams", "callbacks", "evaluation")})
    for needed in ("algo", "env"):
        if not isinstance(last.get(needed), str):
            raise ValueError(f"{needed}={last.get(needed)!r}: expected a name, in the plan or as an axis.")
    hyperparams = packaged(last["algo"], last["env"])
    for change in changes:
        hyperparams = set_by_path(hyperparams, _hyperparams_of(last["algo"], change))
    _check_all_hold(point, last, hyperparams)
    in_file = hyperparams.pop("n_timesteps", None)
    n_timesteps = whole_number("n_timesteps", last.get("n_timesteps", in_file), 1)
    in_file = hyperparams.pop("callback", None) or []
    callbacks = [*(in_file if isinstance(in_file, list) else [in_file])]
    evaluation: dict[str, Any] = dict(EVALUATION)
    for change in changes:
        callbacks += _callbacks(change.get("callbacks"))
        evaluation |= mapping("evaluation", change.get("evaluation"))
    for name, label, change in point:
        if any(evaluation[key] != value for key, value in mapping("evaluation", change.get("evaluation")).items()):
            raise _overwritten(name, label, f"evaluation of {change['evaluation']!r}", f"is {evaluation!r}")
    buffer = as_entries("replay_buffer_kwargs", hyperparams.get("replay_buffer_kwargs"))
    if isinstance(buffer, Mapping) and (storage := buffer.get("storage_path")):
        raise ValueError(
            f"storage_path={storage!r} in replay_buffer_kwargs: every run would learn from the steps of the runs before it. "
            "Leave it out, which keeps the buffer in memory, and choose a smaller buffer_size."
        )
    settings = {
        "algo": last["algo"],
        "env": last["env"],
        # The last evaluation has a seed a little larger.
        "seed": whole_number("seed", last.get("seed", 0), 0, MAX_SEED),
        "n_timesteps": n_timesteps,
        "device": _device(last.get("device", "auto")),
        "hyperparams": hyperparams,
        "evaluation": _evaluation(evaluation, n_timesteps),
        "callbacks": _with_steps(callbacks, n_timesteps),
    }
    try:
        settings = json.loads(json.dumps(settings, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"a setting of {last['algo']} on {last['env']} is no plain data ({error}): {settings}") from error
    return PlannedRun({name: label for name, label, _ in point}, settings)


def _hyperparams_of(algo: str, change: Mapping[str, Any]) -> dict[str, Any]:
    """By path, of the plan, a block or a point of an axis."""
    given = mapping("hyperparams", change.get("hyperparams"))
    for name, where in ELSEWHERE.items():
        if name in given:
            raise ValueError(f"hyperparams.{name}={given[name]!r} is none of the algorithm's: {where}.")
    return _for_algo(algo, given)


def _check_all_hold(point: tuple[Point, ...], last: Mapping[str, Any], hyperparams: Mapping[str, Any]) -> None:
    """:raises ValueError: If what one axis sets is set otherwise by another one: the run's label would not be true."""
    for name, label, change in point:
        for key, value in change.items():
            if key not in ("hyperparams", "callbacks", "evaluation") and last[key] != value:
                raise _overwritten(name, label, f"{key}={value!r}", f"is {last[key]!r}")
        own = _hyperparams_of(last["algo"], change)
        together = set_by_path({}, own)
        for path, value in own.items():
            # The point may put more into an entry that it sets.
            has_more = any(other.startswith(f"{path}.") for other in own)
            first = path.partition(".")[0]
            if not still_holds(hyperparams, *((first, together[first]) if has_more else (path, value))):
                raise _overwritten(name, label, f"{path}={value!r}", "has another value, or none")


def _overwritten(axis: str, label: Any, what: str, instead: str) -> ValueError:
    return ValueError(
        f"axes.{axis}: {as_label(label)} means {what}, which {instead} where another axis has had its turn. Two axes cannot "
        "set the same: make one axis of them; what needs fewer axes is a block of `also`."
    )


def _all_different(runs: list[PlannedRun]) -> list[PlannedRun]:
    """Runs of one block, if no two of other labels have the same settings: one of these would not be made."""
    known: dict[str, PlannedRun] = {}
    for run in runs:
        twin = known.setdefault(run.hash, run)
        if twin is not run:
            differing = [name for name in run.axes if run.axes[name] != twin.axes[name]]
            one, other = (", ".join(f"{name}={as_label(each.axes[name])}" for name in differing) for each in (twin, run))
            same = ", ".join(f"{name}={as_label(value)}" for name, value in run.axes.items() if name not in differing)
            raise ValueError(
                f"axes: {one} and {other} are the same run{f' (of {same})' if same else ''}: none of their settings differ. "
                "Leave one out; what needs fewer axes is a block of `also`."
            )
    return runs


def _for_algo(algo: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The width of DrQ-v2 is that of its critic."""
    return {_WIDTH_OF_DRQV2 if algo == "drqv2" and path == SHORT["width"] else path: value for path, value in changes.items()}


def _device(given: Any) -> str:
    try:
        # Whether this machine has it is another matter: the runs may be made elsewhere.
        if isinstance(given, str) and (given == "auto" or th.device(given)):
            return given
    except RuntimeError:
        pass
    raise ValueError(f"device={given!r}: expected auto, cpu, cuda, cuda:0 or another device of PyTorch.")


def _evaluation(given: dict[str, Any], n_timesteps: int) -> dict[str, Any]:
    check_names("evaluation", given, (*EVALUATION,))
    # 0: none during training.
    every = 0 if given["every"] in (0, None) else steps_of("evaluation.every", given["every"], n_timesteps)
    if every > n_timesteps:
        raise ValueError(
            f"evaluation.every={every}: the run has {n_timesteps} steps, and would never be evaluated while it is trained. "
            "Say a smaller number, a part of the run, such as '10%', or 0 for the evaluation at the end alone."
        )
    stop_at, stop_after = given["stop_at"], given["stop_after"]
    if not every and (stop_at, stop_after) != (None, None):
        raise ValueError("evaluation.every=0: stop_at and stop_after need evaluations.")
    return {
        "every": every,
        "episodes": whole_number("evaluation.episodes", given["episodes"], 1),
        "final_episodes": whole_number("evaluation.final_episodes", given["final_episodes"], 1),
        "deterministic": flag("evaluation.deterministic", given["deterministic"]),
        "epsilon": fraction("evaluation.epsilon", given["epsilon"]),
        "stop_at": None if stop_at is None else finite("evaluation.stop_at", stop_at),
        "stop_after": None if stop_after is None else whole_number("evaluation.stop_after", stop_after, 1),
    }


def _with_steps(value: Any, n_timesteps: int) -> Any:
    """Parts of the run as numbers of steps, anywhere in the arguments of callbacks."""
    if isinstance(value, dict):
        return {name: _with_steps(entry, n_timesteps) for name, entry in value.items()}
    if isinstance(value, list):
        return [_with_steps(entry, n_timesteps) for entry in value]
    is_part = isinstance(value, str) and value.endswith("%")
    return steps_of("a part of the run", value, n_timesteps) if is_part else value


def _callbacks(given: Any) -> list[Any]:
    if given is None:
        return []
    if not isinstance(given, list) or not all(isinstance(each, str) or _is_entry(each) for each in given):
        raise ValueError(f"callbacks={given!r}: expected a list of names, or of one name with its arguments each.")
    return given


def _is_entry(each: Any) -> bool:
    return isinstance(each, dict) and len(each) == 1 and isinstance(next(iter(each.values())), dict)


def _blocks(content: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    blocks = content.get("also") or []
    if not isinstance(blocks, list):
        raise ValueError(f"also={blocks!r}: expected a list of blocks, each with axes of its own.")
    for i, block in enumerate(blocks):
        check_names(f"also[{i}]", block, ("axes", *OF_RUN))
    return blocks


def _seed_place(runs: list[PlannedRun]) -> Any:
    """Sorts by the place of the seed among all seeds, so that what there is after some hours has all arms."""
    seeds = list(dict.fromkeys(run.settings["seed"] for run in runs))
    return lambda run: seeds.index(run.settings["seed"])
