"""
Evaluate the latest agent of a task that ``sb3-sparse train`` saved, and print its mean return.

    python examples/evaluate.py --algo sac --env dm_control/cartpole-swingup-v0 --log-folder logs --episodes 10
"""

import argparse

from rl_zoo3 import create_test_env, get_saved_hyperparams
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_sparse.zoo import algorithms, find_agent, make_known

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--algo", default="sac")
parser.add_argument("--env", default="dm_control/cartpole-swingup-v0")
parser.add_argument("-f", "--log-folder", default="logs")
parser.add_argument("--episodes", type=int, default=10)
parser.add_argument("--seed", type=int, default=1000, help="of the evaluation environment")
args = parser.parse_args()

make_known(args.env)
agent = find_agent(args.log_folder, args.algo, args.env)
hyperparams, _ = get_saved_hyperparams(str(agent.with_suffix("")), test_mode=True)
env = create_test_env(args.env, seed=args.seed, should_render=False, hyperparams=hyperparams)
model = algorithms()[args.algo].load(agent, buffer_size=1)
mean, std = evaluate_policy(model, env, n_eval_episodes=args.episodes, deterministic=True, warn=False)
print(f"Agent: {agent}")
print(f"Mean evaluation return over {args.episodes} episodes of {args.env}: {mean:.1f} +/- {std:.1f}")
