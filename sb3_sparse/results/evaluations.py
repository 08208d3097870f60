"""What evaluations measured: as a JSON file, as a table, and as the scores of games."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sb3_sparse.common.files import written_beside
from sb3_sparse.results.atari100k import game_of
from sb3_sparse.results.statistics import bootstrap_interval

FORMAT = "sb3-sparse evaluations"


@dataclass(frozen=True)
class Evaluation:
    """Episodes of one agent in one environment."""

    agent: str
    """The file."""
    algo: str
    """Name of the class."""
    env: str
    seed: int
    """Of the environments and of everything random."""
    deterministic: bool
    epsilon: float
    """Probability of a random action."""
    suite: str | None
    """The protocol, ``"atari-100k"``."""
    statistics: str | None
    """The file of ``VecNormalize`` by which observations were normalised."""
    returns: list[float]
    """Of whole episodes, undiscounted, before any normalisation or clipping."""
    lengths: list[int]
    """Of the episodes, as the environment inside of all wrappers counts them; of a suite, steps of the agent."""
    checksum: str | None = None
    """SHA-256 of the agent's file, where it is known."""

    @property
    def mean(self) -> float:
        """The mean return."""
        return float(np.mean(self.returns))


def write_evaluations(path: str | Path, evaluations: Sequence[Evaluation]) -> None:
    """
    Write evaluations as JSON; the file is whole at any time.

    :param path: The file. Its folder is made.
    :param evaluations: What it is to hold.
    :raises OSError: If it cannot be written.
    """
    content = {"format": FORMAT, "evaluations": [asdict(each) for each in evaluations]}
    with written_beside(path) as beside:
        beside.write_text(json.dumps(content, indent=1) + "\n")


def read_evaluations(path: str | Path) -> list[Evaluation]:
    """
    What :func:`write_evaluations` wrote.

    :param path: The file.
    :raises ValueError: If it is no such file.
    """
    try:
        content = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{str(path)!r} cannot be read ({error}): expected a file of sb3-sparse evaluate --json.") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{str(path)!r} is no file of sb3-sparse evaluate --json.")
    try:
        found = [_evaluation(entry) for entry in content["evaluations"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{str(path)!r} is damaged ({type(error).__name__}: {error}).") from error
    if not found:
        raise ValueError(f"{str(path)!r} holds no evaluation.")
    return found


def _evaluation(entry: Any) -> Evaluation:
    evaluation = Evaluation(**entry)
    if not evaluation.returns or len(evaluation.returns) != len(evaluation.lengths):
        raise ValueError(f"{len(evaluation.returns)} returns and {len(evaluation.lengths)} lengths of {evaluation.agent}")
    if not np.isfinite(np.array(evaluation.returns, dtype=np.float64)).all():
        raise ValueError(f"returns of {evaluation.agent} that are no finite numbers")
    return evaluation


def run_means(evaluations: Iterable[Evaluation]) -> dict[str, dict[str, float]]:
    """
    The mean return of every agent over all of its episodes, by environment. Two evaluations are of one agent if the files had
    the same content, whatever their names; where that is not known, if the names lead to the same file.

    :param evaluations: Of any agents.
    :raises ValueError: If the same episodes are there twice: an agent would count more than others, or its episodes.
    """
    seen: set[tuple[str, str, int]] = set()
    returns: dict[str, dict[str, list[float]]] = {}
    evaluations = list(evaluations)
    for each, agent in zip(evaluations, _first_names(evaluations), strict=True):
        if (key := (each.env, agent, each.seed)) in seen:
            known_as = "" if agent == each.agent else f" (also as {agent})"
            raise ValueError(
                f"{each.agent} is there twice{known_as}, in {each.env} with seed {each.seed}: name each agent once."
            )
        seen.add(key)
        returns.setdefault(each.env, {}).setdefault(agent, []).extend(each.returns)
    return {env: {agent: float(np.mean(runs)) for agent, runs in agents.items()} for env, agents in returns.items()}


def _first_names(evaluations: Sequence[Evaluation]) -> list[str]:
    """Of each evaluation, by what name its agent is there first; another agent of a name that is taken gets one of its own."""
    known: dict[Path | str, str] = {}
    names = []
    for each in evaluations:
        # Content tells agents apart. Where it is not known, their places have to do: one may be of several machines.
        mark: Path | str = each.checksum or Path(each.agent).resolve()
        if mark not in known:
            is_taken = each.agent in known.values()
            known[mark] = f"{each.agent} ({str(mark)[:8]})" if is_taken else each.agent
        names.append(known[mark])
    return names


def game_scores(evaluations: Iterable[Evaluation]) -> dict[str, list[float]]:
    """
    The scores of a suite: the mean return of every run, by game, in the order of their agents' files.

    :param evaluations: Of a suite.
    :raises ValueError: If one is of something else, or twice there, or a game goes by two names.
    """
    evaluations = list(evaluations)
    for each in evaluations:
        if each.suite is None:
            raise ValueError(f"{each.agent} was not evaluated by the protocol of a suite: its returns cannot be compared.")
    found: dict[str, list[float]] = {}
    ids: dict[str, str] = {}
    for env, means in run_means(evaluations).items():
        game = game_of(env)
        if (other := ids.setdefault(game, env)) != env:
            raise ValueError(
                f"{game} was evaluated as {other} and as {env}, which are two environments: evaluate all agents in one."
            )
        found[game] = [means[agent] for agent in sorted(means)]
    return found


def evaluations_table(evaluations: Sequence[Evaluation]) -> str:
    """
    A line for each evaluation, then for each environment with several agents their mean with its 95 % interval.

    :param evaluations: What is shown.
    :raises ValueError: If the same episodes are there twice.
    """
    rows = [
        (
            each.agent,
            each.algo,
            each.env,
            str(each.seed),
            str(len(each.returns)),
            f"{each.mean:,.2f} ± {np.std(each.returns):,.2f}",
            f"{np.mean(each.lengths):,.1f}",
        )
        for each in evaluations
    ]
    lines = [aligned(("agent", "algorithm", "environment", "seed", "episodes", "return", "length"), rows, left=3)]
    used = {each.agent: each.statistics for each in evaluations if each.statistics}
    lines += [f"observations of {agent} are normalised by {statistics}" for agent, statistics in used.items()]
    for env, means in run_means(evaluations).items():
        if len(means) > 1:
            values = np.array(list(means.values()))
            low, high = bootstrap_interval(values)
            lines.append(f"{env}: {values.mean():,.2f} [{low:,.2f}, {high:,.2f}], the mean of {len(values)} agents")
    return "\n".join(lines)


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """
    A table of text.

    :param header: Of the columns.
    :param rows: Cells.
    :param left: How many columns begin at the left; the others end at the right.
    """
    widths = [max(len(line[column]) for line in [header, *rows]) for column in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in [header, *rows]
    ]
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(lines)
