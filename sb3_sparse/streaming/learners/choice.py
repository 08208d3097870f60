"""Which learner a network gets."""

from collections.abc import Sequence

from torch import nn

from sb3_sparse.common.warn import warn_user
from sb3_sparse.streaming.learners.autograd import AutogradLearner
from sb3_sparse.streaming.learners.base import Learner
from sb3_sparse.streaming.learners.compiled import CompiledLearner, why_not_compiled
from sb3_sparse.streaming.obgd import ObGD


def make_learner(network: nn.Module, optimizer: ObGD, known: Sequence[Learner] = ()) -> Learner:
    """
    The fastest learner for a network with its optimiser.

    :param network: The network.
    :param optimizer: Optimiser of all its parameters.
    :param known: Learners that there are already: the one that is still right goes on.
    :raises ValueError: If the optimiser does not have exactly the network's parameters, in one group.
    """
    if len(optimizer.param_groups) != 1:
        raise ValueError(f"{len(optimizer.param_groups)} parameter groups: a network and its optimiser have one.")
    if {id(p) for p in network.parameters()} != {id(p) for p in optimizer.param_groups[0]["params"]}:
        raise ValueError(
            "a network has parameters that its optimiser does not know, so they would not be trained: change values in "
            "place (load_state_dict without assign=True) instead of replacing layers or parameters."
        )
    kind: type[Learner] = AutogradLearner
    if CompiledLearner.supports(network, optimizer):
        if (reason := why_not_compiled()) is None:
            kind = CompiledLearner
        else:
            warn_user(f"the compiled update is not available, learning is slower without it: {reason}")
    for learner in known:
        same = type(learner) is kind and learner.network is network and learner.optimizer is optimizer
        if same and learner.notice_changes():
            return learner
    return kind(network, optimizer)
