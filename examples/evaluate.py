"""
Evaluate the latest agent of a task that ``sb3-sparse train`` saved, and print its mean return.

    python examples/evaluate.py --algo sac --env dm_control/cartpole-swingup-v0 --log-folder logs --episodes 10
"""

import argparse
from pathlib import Path

from rl_zoo3 import ALGOS, create_test_env, get_latest_run_id, get_saved_hyperparams
from rl_zoo3.utils import EnvironmentName
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_sparse.dmc import register_dmc
from sb3_sparse.zoo import register_algorithms

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--algo", default="sac")
parser.add_argument("--env", default="dm_control/cartpole-swingup-v0")
parser.add_argument("-f", "--log-folder", default="logs")
parser.add_argument("--episodes", type=int, default=10)
parser.add_argument("--seed", type=int, default=1000, help="of the evaluation environment")
args = parser.parse_args()

register_algorithms()
if args.env.startswith("dm_control/"):
    register_dmc()
name = EnvironmentName(args.env)
folder = Path(args.log_folder) / args.algo
run = folder / f"{name}_{get_latest_run_id(str(folder), name)}"
hyperparams, _ = get_saved_hyperparams(str(run / name), test_mode=True)
env = create_test_env(args.env, seed=args.seed, should_render=False, hyperparams=hyperparams)
model = ALGOS[args.algo].load(run / f"{name}.zip", buffer_size=1)
mean, std = evaluate_policy(model, env, n_eval_episodes=args.episodes, deterministic=True, warn=False)
print(f"Agent: {run / name}.zip")
print(f"Mean evaluation return over {args.episodes} episodes of {args.env}: {mean:.1f} +/- {std:.1f}")
