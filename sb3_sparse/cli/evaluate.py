"""``sb3-sparse evaluate``."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from sb3_sparse.cli.options.parsers import Parser, ReadDict
from sb3_sparse.common.figures import new_figure, to_png
from sb3_sparse.common.files import check_writable, written_beside
from sb3_sparse.common.validation import fraction, whole_number
from sb3_sparse.evaluation.atari100k import EPISODES, EPSILON, N_ENVS, SUITE, evaluate_saved_on_game, game_of_agent
from sb3_sparse.evaluation.saved import ALGORITHMS, SavedAgent, evaluate_saved, find_saved
from sb3_sparse.results.atari100k import game_of
from sb3_sparse.results.evaluations import Evaluation, evaluations_table, game_scores, read_evaluations, write_evaluations
from sb3_sparse.results.suite_page import draw_suite, suite_html, suite_text, summarize
from sb3_sparse.zoo import find_agent, import_packages

# Options that the protocol of a suite decides.
DECIDED_BY_SUITE = ("stochastic", "epsilon", "vecnormalize", "env_kwargs")


def evaluate(args: list[str]) -> None:
    """Let saved agents play, and print their returns."""
    options = _options(args)
    if options.gym_packages:
        import_packages(options.gym_packages)
    # Before anything is played: what is missing is better said at once.
    for file in _files(options):
        check_writable(file)
    if options.out is not None:
        new_figure()
    if options.suite:
        _evaluate_suite(options)
    else:
        print(evaluations_table(_play_all([(saved, None) for saved in _agents(options)], options, _play)))


def options_parser() -> Parser:
    """The options of ``evaluate``."""
    parser = Parser(
        "evaluate",
        evaluate.__doc__,
        [
            ("evaluate logs/sac/Pendulum-v1_1 --episodes 20", "the last agent of a run, 20 episodes"),
            ("evaluate --algo sac --env Pendulum-v1 --seed 1 2 3", "the newest run in logs, with three seeds"),
            ("evaluate agent.zip --env Pendulum-v1 --json returns.json", "a file of SB3, every return into a file"),
            ("evaluate logs/der/* --suite atari-100k --out scores", "scores of a benchmark, with plots"),
        ],
        operands="[AGENT ...]",
    )
    parser.add_argument(
        "agents",
        nargs="*",
        metavar="AGENT",
        help="a .zip of SB3, or the folder of a run such as logs/sac/Pendulum-v1_1. With --suite also GAME=AGENT, and files "
        "of --json, FILE or LABEL=FILE, to be put together and compared",
    )
    parser.add_argument("--algo", choices=sorted(ALGORITHMS), help="default: what the file and the run say")
    parser.add_argument("--env", help="environment ID (default: the one in which the agent was trained, if its run says it)")
    parser.add_argument(
        "-f",
        "--folder",
        "--log-folder",
        metavar="FOLDER",
        default="logs",
        help="of --algo and --env without AGENT (default: logs)",
    )
    parser.add_argument("--exp-id", type=int, nargs="+", default=[0], help="runs in that folder (default: 0, the latest)")
    parser.add_argument("--load-best", action="store_true", help="the best agent of a run, not the last")
    parser.add_argument("-n", "--episodes", type=int, help=f"default: 10; of a suite {EPISODES}")
    parser.add_argument("--seed", type=int, nargs="+", default=[0], help="each with all the episodes (default: 0)")
    parser.add_argument("--n-envs", type=int, help=f"environments side by side (default: 1; of a suite {N_ENVS})")
    parser.add_argument("--stochastic", action="store_true", help="as in training, not what the agent thinks best")
    parser.add_argument("--epsilon", type=float, help="probability of a random action (default: 0)")
    parser.add_argument(
        "--vecnormalize",
        metavar="FILE",
        help="statistics of VecNormalize; a pickle, only open your own (default: those that rl-zoo3 saved beside the agent, "
        "if it did; 'none': leave them out)",
    )
    parser.add_argument("--env-kwargs", nargs="+", action=ReadDict, metavar="NAME:VALUE", help="arguments of the environment")
    parser.add_argument(
        "--gym-packages", nargs="+", default=[], metavar="MODULE", help="packages to import, which register environments"
    )
    parser.add_argument("--device", default="auto", help="of the networks (default: auto)")
    parser.add_argument("--json", metavar="FILE", help="write every episode's return there")
    parser.add_argument("--suite", choices=[SUITE], help="the protocol of a benchmark, and its aggregates")
    parser.add_argument("--label", help="of the agents of a suite, beside others (default: their algorithm)")
    parser.add_argument("--out", metavar="FOLDER", help=f"of a suite: writes {SUITE}.json, .png and .html there")
    return parser


def _options(args: list[str]) -> argparse.Namespace:
    parser = options_parser()
    options = parser.parse_args(args)
    for name in ("episodes", "n_envs"):
        if getattr(options, name) is not None:
            whole_number(f"--{name.replace('_', '-')}", getattr(options, name), 1)
    for seed in options.seed:
        whole_number("--seed", seed, 0)
    if len(set(options.seed)) < len(options.seed):
        parser.error(f"--seed {options.seed}: each seed once.")
    if options.epsilon is not None:
        fraction("--epsilon", options.epsilon)
    if not options.agents and not (options.algo and options.env):
        parser.error("expected an AGENT, or --algo and --env of one that train left in --folder.")
    for name in DECIDED_BY_SUITE:
        if options.suite and getattr(options, name) not in (None, False):
            parser.error(f"--{name.replace('_', '-')}: --suite {SUITE} decides this.")
    if options.suite and options.env and options.agents:
        parser.error(f"--env: with --suite {SUITE} an agent of another game is given as GAME=AGENT.")
    for name in ("label", "out"):
        if getattr(options, name) is not None and not options.suite:
            parser.error(f"--{name} is for --suite.")
    return options


def _agents(options: argparse.Namespace) -> list[SavedAgent]:
    if options.agents:
        return [find_saved(place, options.load_best) for place in options.agents]
    found = [
        find_agent(options.folder, options.algo, options.env, exp_id=exp_id, best=options.load_best)
        for exp_id in options.exp_id
    ]
    return [find_saved(path) for path in found]


def _play_all(
    agents: list[tuple[SavedAgent, str | None]],
    options: argparse.Namespace,
    play: Callable[[SavedAgent, str | None, argparse.Namespace], list[Evaluation]],
) -> list[Evaluation]:
    """One agent after the other; what is measured is kept at once."""
    known: dict[Path | str, Path] = {}
    for saved, _ in agents:
        for mark in (saved.path.resolve(), saved.checksum):
            if mark in known:
                copied = "" if saved.path == known[mark] else f" (also as {known[mark]})"
                raise ValueError(f"{saved.path} is given twice{copied}: name each agent once.")
        known.update(dict.fromkeys((saved.path.resolve(), saved.checksum), saved.path))
    evaluations: list[Evaluation] = []
    for saved, game in agents:
        found = play(saved, game, options)
        evaluations += found
        for file in _files(options):
            write_evaluations(file, evaluations)
        if len(agents) > 1:
            for each in found:
                print(f"{each.agent} in {each.env}, seed {each.seed}: {each.mean:,.2f}", file=sys.stderr)
    return evaluations


def _files(options: argparse.Namespace) -> list[Path]:
    """The JSON files to write."""
    named = [Path(options.json)] if options.json else []
    return [*named, Path(options.out) / f"{SUITE}.json"] if options.out else named


def _play(saved: SavedAgent, game: str | None, options: argparse.Namespace) -> list[Evaluation]:
    return evaluate_saved(
        saved,
        options.episodes or 10,
        algo=options.algo,
        seeds=options.seed,
        deterministic=not options.stochastic,
        epsilon=options.epsilon or 0.0,
        device=options.device,
        env_id=options.env,
        n_envs=options.n_envs or 1,
        env_kwargs=options.env_kwargs,
        statistics=options.vecnormalize,
    )


def _play_game(saved: SavedAgent, game: str | None, options: argparse.Namespace) -> list[Evaluation]:
    return evaluate_saved_on_game(
        saved,
        game,
        options.episodes or EPISODES,
        algo=options.algo,
        seeds=options.seed,
        n_envs=options.n_envs or N_ENVS,
        device=options.device,
    )


def _evaluate_suite(options: argparse.Namespace) -> None:
    agents: list[tuple[SavedAgent, str | None]] = []
    methods: dict[str, list[Evaluation]] = {}
    unnamed: dict[str, str] = {}
    for argument in options.agents:
        name, place = _split_name(argument)
        if place.endswith(".json"):
            if Path(place).resolve() in [file.resolve() for file in _files(options)]:
                raise ValueError(f"{place} is read, and would be written anew with other agents: name another file or folder.")
            other = unnamed.setdefault(Path(place).stem, place) if name is None else place
            if other != place:
                raise ValueError(f"{other} and {place} have one name: say which method each is of, LABEL={place}.")
            methods.setdefault(name or Path(place).stem, []).extend(read_evaluations(place))
        else:
            saved = find_saved(place, options.load_best)
            agents.append((saved, game_of_agent(saved) if name is None else game_of(name)))
    if not options.agents:
        agents = [(saved, game_of(options.env)) for saved in _agents(options)]
    if agents:
        played = _play_all(agents, options, _play_game)
        print(evaluations_table(played) + "\n")
        label = options.label or " and ".join(sorted({each.algo for each in played}))
        methods.setdefault(label, []).extend(played)
    elif options.label:
        raise ValueError(f"--label {options.label}: there are no agents to be played. Of a file, LABEL=FILE is the label.")
    summary = summarize({method: game_scores(evaluations) for method, evaluations in methods.items()})
    print(suite_text(summary))
    if options.out is not None:
        png = to_png(draw_suite(summary))
        page = suite_html(summary, png, _protocol([each for evaluations in methods.values() for each in evaluations]))
        for ending, content in ((".png", png), (".html", page)):
            path = Path(options.out) / f"{SUITE}{ending}"
            with written_beside(path) as beside:
                beside.write_bytes(content)
            print(path)


def _split_name(argument: str) -> tuple[str | None, str]:
    """``NAME=PATH``, where both may contain "=", or a path."""
    if not Path(argument).exists():
        for i, letter in enumerate(argument):
            if letter == "=" and i and argument[i + 1 :]:
                return argument[:i], argument[i + 1 :]
    return None, argument


def _protocol(evaluations: list[Evaluation]) -> str:
    counts = sorted({len(each.returns) for each in evaluations})
    games = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return (
        f"The score of a run is the mean return of {games} whole games, unclipped, with random actions with probability "
        f"{EPSILON} and without noise."
    )
