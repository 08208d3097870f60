"""Statistics of observations before the first update: those of the batch that a model is looked at with."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_sparse.common.interrupts import uninterrupted
from sb3_sparse.common.model_parts import Network
from sb3_sparse.networks.running_norm import RunningNorm


@contextmanager
def first_statistics(model: BaseAlgorithm, network: Network, batch: Any) -> Iterator[None]:
    """
    Inside, every :class:`RunningNorm` of the policy that has not seen a batch yet normalises by this one.

    In training no network ever gets raw observations: the first batch counts before it is normalised. A look at the model
    before that would compare networks on other inputs than all later looks.

    :param model: The model.
    :param network: One of its networks, which is run on the batch once.
    :param batch: What it is run on.
    """
    norms = [norm for norm in model.policy.modules() if isinstance(norm, RunningNorm) and not norm.obs_count]
    if not norms:
        yield
        return
    before = [[buffer.clone() for buffer in norm.buffers(recurse=False)] for norm in norms]
    try:
        hooks = [norm.register_forward_pre_hook(_see_the_first) for norm in norms]
        try:
            with th.no_grad():
                network.forward(batch)
        finally:
            for hook in hooks:
                hook.remove()
        yield
    finally:
        with uninterrupted():
            for norm, values in zip(norms, before, strict=True):
                for buffer, value in zip(norm.buffers(recurse=False), values, strict=True):
                    buffer.copy_(value)


def _see_the_first(norm: RunningNorm, args: tuple[Any, ...]) -> None:
    if not norm.obs_count:
        norm.update(args[0])
