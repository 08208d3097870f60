"""
Data-Efficient Rainbow on one game of Atari-100k, as Dopamine prepares and scores it.

    pip install "sb3-sparse[atari]"
    python examples/der_atari.py --game Pong                                        # DQN's encoder, dense: 100,000 steps
    python examples/der_atari.py --game Pong --encoder impala --width-scale 3 --sparsity 0.8        # the paper's network

Writes the returns of all games of training as a CSV and the agent beside it, plays 100 games by the protocol and prints
their score. A step is four frames. What ``sb3-sparse evaluate --suite atari-100k GAME=FILE`` prints of the agent is the same.
"""

import argparse
import csv
import time
from pathlib import Path

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack

from sb3_sparse.atari import make_atari
from sb3_sparse.common.files import written_beside
from sb3_sparse.evaluation import evaluate_on_game
from sb3_sparse.rainbow import DER
from sb3_sparse.results.atari100k import human_normalized

N_STACK = 4


def make_game(game: str) -> VecEnv:
    """Stacks of frames; a monitor inside counts whole games, where the agent sees lives and clipped rewards."""
    return VecFrameStack(DummyVecEnv([lambda: make_atari(game)]), N_STACK)


class Games(BaseCallback):
    """Step at its end and return of each game, and a line on how it goes."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, float]] = []
        self.start = time.perf_counter()

    def _on_step(self) -> bool:
        self.rows += [(self.num_timesteps, info["episode"]["r"]) for info in self.locals["infos"] if "episode" in info]
        if self.num_timesteps % 5_000 == 0:
            last = np.mean([value for _, value in self.rows[-10:]] or [np.nan])
            print(
                f"{self.num_timesteps} steps, {time.perf_counter() - self.start:.0f} s, last ten games {last:.1f}", flush=True
            )
        return True


def main() -> None:
    """Train, play, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--game", default="Pong", help="a game of ale-py")
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--encoder", default="nature_same", help="nature, nature_same (Dopamine's) or impala (the paper's)")
    parser.add_argument("--width-scale", type=float, default=1.0, help="multiplies the channels of the encoder")
    parser.add_argument("--sparsity", type=float, default=0.0)
    parser.add_argument("--sigma", type=float, default=0.5, help="noise at first: 0.5 in the paper, 0.1 in Dopamine")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--games", type=int, default=100, help="to play in the end")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--folder", type=Path, default=Path("logs/der_atari"))
    args = parser.parse_args()
    th.set_num_threads(1)
    name = f"{args.game}-{args.encoder}-x{args.width_scale:g}-S{args.sparsity:g}-sigma{args.sigma:g}-{args.seed}"
    model = DER(
        "CnnPolicy",
        make_game(args.game),
        sigma=args.sigma,
        buffer_size=args.steps,
        replay_buffer_kwargs={"n_stack": N_STACK},
        policy_kwargs={"encoder": args.encoder, "width_scale": args.width_scale, "sparsity": args.sparsity},
        seed=args.seed,
        device=args.device,
    )
    games = Games()
    model.learn(args.steps, callback=games)
    args.folder.mkdir(parents=True, exist_ok=True)
    with written_beside(args.folder / f"{name}.csv") as beside, beside.open("w", newline="") as file:
        csv.writer(file).writerows([("step", "return"), *games.rows])
    model.save(args.folder / f"{name}.zip")
    if args.games:
        score = float(evaluate_on_game(model, args.game, args.games).returns.mean())
        print(f"{name}: {score:.1f} over {args.games} games, human-normalised {human_normalized(args.game, score):.3f}")


if __name__ == "__main__":
    main()
