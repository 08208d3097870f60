"""
Train a small agent, write it as ONNX and as a program of torch.export, run both: python examples/export.py

About a minute on two cores. Needs the extra: pip install ".[export]"
"""

import timeit
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from stable_baselines3 import SAC

import sb3_sparse  # noqa: F401  (gives SAC the policy "SparseSimBaPolicy")
from sb3_sparse.export import export_onnx, export_torch

FOLDER = Path("exported")


def microseconds(act: Callable[[], object]) -> float:
    """Time of a call, the best of twenty rounds."""
    return min(timeit.repeat(act, number=50, repeat=20)) / 50 * 1e6


def main() -> None:
    torch.set_num_threads(1)
    policy_kwargs = {"width_scale": 0.5, "sparsity": 0.8, "n_critics": 1}
    model = SAC("SparseSimBaPolicy", "Pendulum-v1", policy_kwargs=policy_kwargs, learning_rate=1e-3, seed=0)
    model.learn(2_000)

    onnx_file = export_onnx(model, FOLDER / "pendulum.onnx")
    torch_file = export_torch(model, FOLDER / "pendulum.pt2")

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(onnx_file, options)
    program = torch.export.load(torch_file).module()

    space = model.observation_space
    space.seed(0)
    observations = np.stack([space.sample() for _ in range(1000)])
    expected, _ = model.predict(observations, deterministic=True)
    (from_onnx,) = session.run(None, {"observation": observations})
    from_torch = program(torch.from_numpy(observations)).numpy()
    print(f"1,000 observations, actions from {expected.min():.3f} to {expected.max():.3f}; largest difference to predict:")
    print(f"  onnxruntime {np.abs(from_onnx - expected).max():.1e}, torch.export {np.abs(from_torch - expected).max():.1e}")

    one = observations[:1]
    print("one observation, microseconds:")
    print(f"  model.predict {microseconds(lambda: model.predict(one, deterministic=True)):.0f}")
    print(f"  onnxruntime   {microseconds(lambda: session.run(None, {'observation': one})):.0f}")
    print(f"  torch.export  {microseconds(lambda: program(torch.from_numpy(one))):.0f}")
    for file in (onnx_file, torch_file):
        print(f"{file}: {file.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
