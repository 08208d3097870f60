"""All or nothing: tensors that become what they were if something fails halfway, and state dicts that load that way."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch as th
from torch import nn


@contextmanager
def all_or_nothing(
    *modules: nn.Module, tensors: Iterable[th.Tensor] = (), undo: Callable[[], object] | None = None
) -> Iterator[None]:
    """
    If the block fails, or is interrupted, the tensors of modules are the objects that they were, with what was in them.

    >>> layer = nn.Linear(2, 2)
    >>> before = layer.weight.detach().clone()
    >>> try:
    ...     with th.no_grad(), all_or_nothing(layer):
    ...         _ = layer.weight.zero_()
    ...         raise KeyboardInterrupt
    ... except KeyboardInterrupt:
    ...     th.equal(layer.weight, before)
    True

    :param modules: All their parameters and buffers.
    :param tensors: Others.
    :param undo: Takes back what else the block does.
    """
    owned: list[tuple[dict[str, Any], str, th.Tensor | None, Any]] = [
        (place, name, tensor, _content(tensor))
        for module in modules
        for part in module.modules()
        for place in (part._parameters, part._buffers)
        for name, tensor in place.items()
    ]
    others = [(tensor, _content(tensor)) for tensor in tensors]
    try:
        yield
    except BaseException:
        with th.no_grad():
            for place, name, tensor, content in owned:
                place[name] = tensor
                if tensor is not None:
                    # Sparse layers notice that their identity was written, and take the old topology again.
                    tensor.copy_(content)
            for tensor, content in others:
                tensor.copy_(content)
        if undo is not None:
            undo()
        raise


def _content(tensor: th.Tensor | None) -> Any:
    return None if tensor is None else tensor.detach().clone()


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
        with all_or_nothing(self):
            return super().load_state_dict(state_dict, strict=strict, assign=assign)
