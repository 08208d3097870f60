"""What of a sparse layer cannot be written: its dense weight, which is for looking at, and what is computed."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch as th
from torch import nn

_WRITES = "the dense weight of a sparse layer is a copy, made when it is asked for, so {} it has no effect: "
_WAY_OUT = "change layer.values (1-D, in the order of layer.topology) instead, or take to_dense(module) for a plain layer."
# What changes a tensor, or how gradients treat it, without saying so by an underscore at its end.
_SETTERS = {"__setitem__", "__set__", "register_hook", "register_post_accumulate_grad_hook", "retain_grad"}
_READS = {"__init__", "__index__", "__int__", "__invert__"}


class ReadOnlyWeight(th.Tensor):
    """
    A tensor that refuses to be written to; results of operations on it are plain tensors, views of it are read-only.

    ``nn.init.zeros_(layer.weight)`` or ``layer.weight.requires_grad_(False)`` would change a copy that nobody sees again.
    """

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        is_write = name in _SETTERS or (name.endswith("_") and not name.endswith("__")) or name.startswith("__i")
        # An operation in place changes its first argument (torch.nn.init passes it by name), one with `out=` that.
        changed = (*args[:1], *kwargs.values()) if is_write and name not in _READS else (kwargs.get("out"),)
        if any(isinstance(tensor, ReadOnlyWeight) for entry in changed for tensor in _tensors(entry)):
            raise RuntimeError(_WRITES.format(f"{name}(...) on") + _WAY_OUT)
        with th._C.DisableTorchFunctionSubclass():
            if name in ("numpy", "__array__"):
                array = np.asarray(func(args[0].detach(), *args[1:], **kwargs))
                array.flags.writeable = False
                return array
            result = func(*args, **kwargs)
            if not (args and isinstance(args[0], ReadOnlyWeight)):
                return result
            if isinstance(result, (tuple, list)):
                return type(result)(_like(args[0], entry) for entry in result) if type(result) in (tuple, list) else result
            return _like(args[0], result)

    def __reduce_ex__(self, protocol: Any) -> Any:
        with th._C.DisableTorchFunctionSubclass():
            return self.detach().as_subclass(th.Tensor).__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> th.Tensor:
        with th._C.DisableTorchFunctionSubclass():
            return self.detach().clone().as_subclass(th.Tensor)


def check_written(layer: nn.Module, *names: str) -> None:
    """
    :param layer: A sparse layer.
    :param names: Of parameters and buffers.
    :raises ValueError: If one of them is computed (parametrizations): what is written into it would be lost.
    """
    if computed := [name for name in names if name not in layer._parameters and name not in layer._buffers]:
        raise ValueError(
            f"{computed} of a sparse layer ({layer.extra_repr()}) cannot be written, being computed from others: write to "
            "these, or call torch.nn.utils.parametrize.remove_parametrizations (of torch.nn.utils.prune: remove) first."
        )


def _tensors(entry: Any) -> Iterable[Any]:
    return entry if isinstance(entry, (tuple, list)) else (entry,)


def _like(weight: th.Tensor, result: Any) -> Any:
    """A view of the weight cannot be written to either; all else is as it is."""
    if type(result) is not th.Tensor or result.is_meta:
        return result
    is_view = result.untyped_storage().data_ptr() == weight.untyped_storage().data_ptr() != 0
    return result.as_subclass(ReadOnlyWeight) if is_view else result
