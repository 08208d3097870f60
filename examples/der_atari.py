"""
Data-Efficient Rainbow on an Atari game, by Dopamine's protocol: 100,000 steps, then whole games without noise.

Needs the extra ``atari``. The sparse IMPALA network of width 3 is the paper's; on a CPU begin with
``--width 0.5 --steps 5000``.
"""

import argparse

import numpy as np
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecTransposeImage

from sb3_sparse import DER, DopamineAtari, make_atari


def main() -> None:
    """Train, then play."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--game", default="Pong")
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--width", type=float, default=3.0, help="of the encoder")
    parser.add_argument("--sparsity", type=float, default=0.8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--episodes", type=int, default=100, help="games that are played in the end")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()

    model = DER(
        "CnnPolicy",
        stacked(make_atari(options.game)),
        # Frames are kept once, not in each of the four stacks that show them.
        replay_buffer_kwargs=dict(n_stack=4),
        policy_kwargs=dict(encoder="impala", width_scale=options.width, sparsity=options.sparsity),
        seed=options.seed,
        device=options.device,
        verbose=1,
    )
    model.learn(options.steps)
    model.save(f"der-{options.game}")

    returns = play(model, options.game, options.episodes, options.seed)
    print(f"Mean return over {len(returns)} games of {options.game}: {np.mean(returns):.2f} +/- {np.std(returns):.2f}")


def stacked(game: DopamineAtari) -> VecTransposeImage:
    """Four frames, one after the other, channels first. The Monitor sees whole games, with their own rewards."""
    game.env = Monitor(game.env)
    return VecTransposeImage(VecFrameStack(DummyVecEnv([lambda: game]), 4))


def play(model: DER, game: str, episodes: int, seed: int) -> list[float]:
    """Returns of whole games, without noise; one action in a thousand is random, lest a game stand still."""
    env, generator = stacked(make_atari(game)), np.random.default_rng(seed)
    env.seed(seed)
    obs, returns = env.reset(), []
    while len(returns) < episodes:
        action, _ = model.predict(obs, deterministic=True)
        if generator.random() < 0.001:
            action = np.array([generator.integers(env.action_space.n)])
        obs, _, _, infos = env.step(action)
        returns += [info["episode"]["r"] for info in infos if "episode" in info]
    env.close()
    return returns


if __name__ == "__main__":
    main()
