"""What tests of safe files share: agents of every kind, and equality down to the last bit."""

from collections import deque
from types import FunctionType

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib import ARS, QRDQN, TQC, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3

from sb3_sparse.rainbow import DER, Rainbow
from sb3_sparse.replay.frame_buffer import FrameReplayBuffer
from sb3_sparse.streaming import StreamAC
from tests.envs import SpaceEnv
from tests.export.agents import BOX, DICT, DISCRETE, IMAGE, MAKERS, OFF_POLICY, VECTOR, drqv2, mlp, stream

FRAMES = spaces.Box(0, 255, (4, 36, 36), np.uint8)
SMALL = {"policy_kwargs": {"net_arch": [8]}}


def rainbow(algorithm, observations, policy="MlpPolicy", **kwargs):
    return algorithm(policy, SpaceEnv(observations, DISCRETE), seed=0, **{**OFF_POLICY, **SMALL, **kwargs})


# Those that are pruned after they were built are none that SB3's `load` builds either.
KINDS = {name: maker for name, maker in MAKERS.items() if "sparse" not in name and name not in ("ppo", "ppo image")}
KINDS |= {
    "stream_ac minatar": lambda: stream(StreamAC, spaces.Box(0, 1, (10, 10, 4), bool), DISCRETE, "CnnPolicy"),
    "rainbow": lambda: rainbow(Rainbow, VECTOR),
    "rainbow dict": lambda: rainbow(Rainbow, DICT, "MultiInputPolicy"),
    "rainbow frames": lambda: rainbow(Rainbow, FRAMES, "CnnPolicy", replay_buffer_class=FrameReplayBuffer, prioritized=False),
    "dqn with nothing": lambda: rainbow(
        Rainbow, VECTOR, distributional=False, dueling=False, double=False, noisy=False, prioritized=False, n_steps=1
    ),
    "rainbow simba": lambda: rainbow(Rainbow, VECTOR, "SparseSimBaPolicy", policy_kwargs={"width_scale": 0.125}),
    "der": lambda: rainbow(DER, VECTOR),
    "der impala": lambda: rainbow(DER, IMAGE, "CnnPolicy", policy_kwargs={"encoder": "impala", "sparsity": 0.5}),
    "drqv2 frames": lambda: drqv2(spaces.Box(0, 255, (6, 24, 24), np.uint8), sparsity_scope="critic", critic_width_scale=2),
    "sb3 td3": lambda: mlp(TD3, VECTOR, BOX),
    "sb3 dqn": lambda: mlp(DQN, VECTOR, DISCRETE),
    "sb3 dqn image": lambda: mlp(DQN, IMAGE, DISCRETE, "CnnPolicy"),
    "sb3 qrdqn": lambda: mlp(QRDQN, VECTOR, DISCRETE),
    "sb3 tqc": lambda: mlp(TQC, VECTOR, BOX),
    "sb3 sac dict": lambda: mlp(SAC, DICT, BOX, "MultiInputPolicy"),
    "sb3 sac sde": lambda: mlp(SAC, VECTOR, BOX, use_sde=True),
    "sb3 sac fixed": lambda: mlp(SAC, VECTOR, BOX, ent_coef=0.1),
    "sb3 ppo": lambda: mlp(PPO, VECTOR, BOX, clip_range_vf=0.3),
    "sb3 a2c": lambda: mlp(A2C, VECTOR, DISCRETE),
    "maskable": lambda: MaskablePPO("MlpPolicy", SpaceEnv(VECTOR, DISCRETE), n_steps=16, batch_size=8, seed=0),
    "recurrent": lambda: RecurrentPPO("MlpLstmPolicy", SpaceEnv(VECTOR, DISCRETE), n_steps=16, batch_size=8, seed=0),
    "ars": lambda: ARS("MlpPolicy", SpaceEnv(VECTOR, DISCRETE), n_delta=2, seed=0),
}


def learn(model, n_steps):
    # Its environments would have to say which actions there are.
    masking = {"use_masking": False} if isinstance(model, MaskablePPO) else {}
    return model.learn(n_steps, **masking)


def same(a, b):
    """Whether two values are equal bit by bit, with the same types inside."""
    if isinstance(a, th.Tensor) and isinstance(b, th.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and bits(a) == bits(b)
    if type(a) is not type(b):
        return False
    if isinstance(a, np.random.Generator):
        return same(a.bit_generator.state, b.bit_generator.state)
    if isinstance(a, (np.ndarray, np.generic)):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, deque) and a.maxlen != b.maxlen:
        return False
    if isinstance(a, (list, tuple, deque)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, spaces.Space):
        # What is printed of a Box is only worked out when it is asked for.
        kept = [{k: v for k, v in vars(space).items() if not k.endswith("_repr")} for space in (a, b)]
        return a == b and same(*kept)
    if hasattr(a, "__dict__") and not isinstance(a, (type, FunctionType)):
        return same(vars(a), vars(b))
    return a == b or (a != a and b != b)


def bits(tensor):
    return tensor.detach().cpu().contiguous().reshape(-1).view(th.uint8).numpy().tobytes()


def saved_parts(model):
    """The attributes that are saved, without tensors that are."""
    state_dicts, variables = model._get_torch_save_params()
    left_out = {*model._excluded_save_params(), *(name.split(".")[0] for name in state_dicts + variables)}
    return {name: value for name, value in vars(model).items() if name not in left_out}
