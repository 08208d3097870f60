"""``sb3-sparse export``."""

import sys
import warnings
from pathlib import Path
from typing import Any

import sb3_contrib
import stable_baselines3 as sb3
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_sparse import drqv2, rainbow, streaming
from sb3_sparse.cli.options.parsers import Parser
from sb3_sparse.export.check import N_OBSERVATIONS, check_agent
from sb3_sparse.export.files import export_onnx, export_torch
from sb3_sparse.export.loading import load_agent
from sb3_sparse.export.plain import export_sb3
from sb3_sparse.export.safe import statistics_inside
from sb3_sparse.export.vec_normalize import load_vec_normalize
from sb3_sparse.resume.safe.agents import is_safe_file, save_safe
from sb3_sparse.zoo import find_agent
from sb3_sparse.zoo.saved.statistics import statistics_beside

ALGORITHMS: dict[str, type[BaseAlgorithm]] = {
    "sac": sb3.SAC,
    "td3": sb3.TD3,
    "ddpg": sb3.DDPG,
    "dqn": sb3.DQN,
    "ppo": sb3.PPO,
    "a2c": sb3.A2C,
    "tqc": sb3_contrib.TQC,
    "crossq": sb3_contrib.CrossQ,
    "qrdqn": sb3_contrib.QRDQN,
    "trpo": sb3_contrib.TRPO,
    "stream_ac": streaming.StreamAC,
    "stream_q": streaming.StreamQ,
    "stream_sarsa": streaming.StreamSARSA,
    "rainbow": rainbow.Rainbow,
    "der": rainbow.DER,
    "drqv2": drqv2.DrQv2,
}
ENDINGS = {"onnx": ".onnx", "torch": ".pt2", "sb3": "-dense.zip", "safetensors": ".safetensors"}


def export(args: list[str]) -> None:
    """Write a saved agent's deterministic `predict` as a file that runs without this package, or the agent without pickle."""
    parser = options_parser()
    options = parser.parse_args(args)
    if (options.model is None) == (options.env is None):
        parser.error("expected --model FILE, or --env ID, and not both.")
    if options.to == "safetensors" and options.channels_last:
        parser.error("--to safetensors: an agent takes images as in training, without --channels-last.")
    if options.to == "sb3" and (options.vecnormalize or options.channels_last):
        parser.error(
            "--to sb3: an agent of SB3 has no place for --vecnormalize and --channels-last. Load the statistics as ever."
        )
    path = Path(options.model) if options.env is None else _trained_agent(options)
    output = Path(options.output or path.with_name(path.stem + ENDINGS[options.to]))
    if output.resolve() == path.resolve():
        raise ValueError(f"--output {output} is the agent itself: name another file.")
    with warnings.catch_warnings():
        warnings.showwarning = _print_warning
        written = _write(load_agent(ALGORITHMS[options.algo], path), output, options, path)
    size = written.stat().st_size / 1024
    print(f"{written} ({size:,.1f} KiB), compared with predict on {N_OBSERVATIONS:,} random observations")


def options_parser() -> Parser:
    """The options of ``export``."""
    parser = Parser(
        "export",
        export.__doc__,
        [
            ("export --algo sac --env Pendulum-v1 --to onnx", "the last agent that train left in logs"),
            ("export --algo sac --model agent.zip --to safetensors", "a file that executes nothing when it is read"),
            ("export --algo sac --model agent.zip --to torch -o agent.pt2", "a program of torch.export"),
        ],
    )
    parser.add_argument("--algo", required=True, choices=list(ALGORITHMS), help="algorithm of the agent")
    parser.add_argument(
        "--model", metavar="FILE", help="the saved agent, a .zip of SB3 (a pickle: only open your own) or a .safetensors"
    )
    parser.add_argument("--env", help="environment ID: instead of --model, the agent that `sb3-sparse train` left in -f")
    parser.add_argument("-f", "--folder", metavar="FOLDER", default="logs", help="log folder of --env (default: logs)")
    parser.add_argument("--exp-id", type=int, default=0, help="run of --env (default: 0, the latest)")
    parser.add_argument("--load-best", action="store_true", help="the best agent of the run of --env, not the last")
    parser.add_argument(
        "--to",
        "--format",
        choices=list(ENDINGS),
        default="onnx",
        help="onnx (default); torch: a torch.export program; sb3: SB3's own file with dense layers, for SB3's own policies; "
        "safetensors: the whole agent, in a file that executes nothing when it is read",
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="default: beside the agent, with the ending of the format")
    parser.add_argument(
        "--vecnormalize",
        metavar="FILE",
        help="statistics of VecNormalize, to be put inside; a pickle, only open your own (default: those that rl-zoo3 saved "
        "beside the agent, if it did, or those in a .safetensors; 'none': leave them out)",
    )
    parser.add_argument("--channels-last", action="store_true", help="take images with their channels last")
    return parser


def _write(model: BaseAlgorithm, output: Path, options: Any, path: Path) -> Path:
    if options.to == "sb3":
        return export_sb3(model, output)
    statistics: Any = None
    if options.vecnormalize not in (None, "none"):
        statistics = Path(options.vecnormalize)
    elif options.vecnormalize is None:
        statistics = statistics_inside(path) if is_safe_file(path) else statistics_beside(path)
    if statistics is not None:
        print(f"observations are normalised by {statistics if isinstance(statistics, Path) else f'what {path} holds'}")
    if options.to == "safetensors":
        written = save_safe(model, output, vec_normalize=load_vec_normalize(statistics))
        check_agent(load_agent(type(model), written), model, 0.0)
        return written
    write = export_onnx if options.to == "onnx" else export_torch
    return write(model, output, vec_normalize=statistics, channels_last=options.channels_last)


def _trained_agent(options: Any) -> Path:
    return find_agent(options.folder, options.algo, options.env, options.exp_id, options.load_best)


def _print_warning(message: Warning | str, *args: Any, **kwargs: Any) -> None:
    print(f"sb3-sparse export: {message}", file=sys.stderr)
