"""
Train Stream AC(λ) on a MuJoCo task, save the agent, load it again and evaluate it. Half a minute on one core:

    python examples/stream_ac.py
    python examples/stream_ac.py --env Walker2d-v5 --steps 1000000 --width-scale 4 --sparsity 0.9
"""

import argparse

import gymnasium as gym
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_sparse import StreamAC
from sb3_sparse.sparse import sparsity_report

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--env", default="InvertedPendulum-v5")
parser.add_argument("--steps", type=int, default=50_000)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--width-scale", type=float, default=1.0, help="multiplies the width of 128")
parser.add_argument("--sparsity", type=float, default=0.0, help="fraction of weights removed; 0: SparseInit instead")
parser.add_argument("--save", default="stream_ac_agent", help="file to save the agent to")
parser.add_argument("--episodes", type=int, default=10, help="of the evaluation")
args = parser.parse_args()

# Observations and rewards are normalised inside the agent: the environment stays as it is.
model = StreamAC(
    "MlpPolicy",
    args.env,
    policy_kwargs=dict(width_scale=args.width_scale, sparsity=args.sparsity),
    seed=args.seed,
    verbose=1,
)
print(sparsity_report(model.policy.actor))
model.learn(args.steps, log_interval=20)
model.save(args.save)

loaded = StreamAC.load(args.save)
mean, std = evaluate_policy(loaded, gym.make(args.env), n_eval_episodes=args.episodes, deterministic=True, warn=False)
print(f"Mean evaluation return over {args.episodes} episodes of {args.env}: {mean:.1f} +/- {std:.1f}")
