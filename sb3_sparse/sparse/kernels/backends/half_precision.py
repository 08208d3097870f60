"""
What kernels for float32 do with tensors of 16 bits, such as autocast makes: they compute in float32 and round the result.

So a sparse layer keeps its gain under autocast: the processors that were tried multiply dense matrices of 16 bits less than
twice as fast as those of float32, and products with a fifth of the weights are faster than that. On one that is better at it,
such as with AMX, the measurement takes the dense ones.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch as th

KERNEL_DTYPES = (th.float32, th.bfloat16, th.float16)
"""What the products of :func:`through_float32` are for."""

_Self = TypeVar("_Self")
_Rest = ParamSpec("_Rest")
_Product = Callable[Concatenate[_Self, th.Tensor, _Rest], th.Tensor]


def through_float32(product: _Product[_Self, _Rest]) -> _Product[_Self, _Rest]:
    """Of a backend's product in float32: the same for tensors of 16 bits, which are widened before, and the result rounded."""

    @wraps(product)
    def run(self: _Self, packed: th.Tensor, *args: _Rest.args, **keywords: _Rest.kwargs) -> th.Tensor:
        if packed.dtype is th.float32:
            return product(self, packed, *args, **keywords)
        wide: Any = map(_widened, args)
        named: Any = {name: _widened(value) for name, value in keywords.items()}
        return product(self, packed.float(), *wide, **named).to(packed.dtype)

    return run


def _widened(value: Any) -> Any:
    return value.float() if isinstance(value, th.Tensor) else value
