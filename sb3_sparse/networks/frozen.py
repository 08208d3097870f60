"""Networks whose gradients nobody wants."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch as th
from torch import nn


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """
    No graph to the parameters of modules is recorded inside, so that no gradients of theirs are computed.

    Nothing is frozen where torch refuses it: under ``torch.compile`` and the transforms of ``torch.func``, and with computed
    tensors in the place of parameters (``functional_call``), whose gradients somebody may want.

    :param modules: What others are trained through.
    """
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    is_transformed = th.compiler.is_compiling() or th._C._functorch.peek_interpreter_stack() is not None
    if is_transformed or not all(parameter.is_leaf for parameter in parameters):
        yield
        return
    try:
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
