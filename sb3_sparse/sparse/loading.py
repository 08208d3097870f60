"""State dicts that load as a whole, or not at all."""

from collections.abc import Mapping
from typing import Any

import torch as th
from torch import nn


class LoadsWhole(nn.Module):
    """
    Mixin for a module: if a state dict does not fit, or loading is interrupted, the module stays what it was.

    Torch copies what fits and raises afterwards, which leaves a network that is neither the old nor the new one.
    """

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """
        As ``nn.Module.load_state_dict``, all or nothing.

        :param state_dict: What to load.
        :param strict: Whether it has to have exactly the entries of this module.
        :param assign: Whether to take over its tensors instead of copying into ours.
        """
        kept = _Kept(self)
        try:
            return super().load_state_dict(state_dict, strict=strict, assign=assign)
        except BaseException:
            kept.restore()
            raise


class _Kept:
    """The tensors of a module: which objects they are, and what is in them."""

    def __init__(self, module: nn.Module):
        self._tensors: list[tuple[dict[str, Any], str, th.Tensor | None, th.Tensor | None]] = [
            (tensors, name, tensor, None if tensor is None else tensor.detach().clone())
            for part in module.modules()
            for tensors in (part._parameters, part._buffers)
            for name, tensor in tensors.items()
        ]

    @th.no_grad()
    def restore(self) -> None:
        for tensors, name, tensor, content in self._tensors:
            tensors[name] = tensor
            if tensor is not None and content is not None:
                # Sparse layers notice that their identity was written, and take the old topology again.
                tensor.copy_(content)
