"""A limit for what settings of a file may ask for: its networks are built before its tensors are put into them."""

import math
from typing import Any

import torch as th
from torch.overrides import TorchFunctionMode

_MAKERS = {th.empty, th.zeros, th.ones, th.full, th.rand, th.randn}
_BYTES_OF_A_NUMBER = 4
# A million tiny networks take long, too.
_MAX_TENSORS = 20_000


class TensorLimit(TorchFunctionMode):
    """
    Inside, tensors are made up to a size, all together; the one that goes beyond is refused before it is allocated.

    :param max_bytes: The size.
    """

    def __init__(self, max_bytes: int):
        super().__init__()
        self._left = self._max_bytes = max_bytes
        self._n_tensors = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Count what the function makes, and call it."""
        kwargs = kwargs or {}
        if func in _MAKERS:
            size = kwargs.get("size", args)
            size = size[0] if size and isinstance(size[0], (tuple, list)) else size
            self._left -= math.prod(int(n) for n in size) * _BYTES_OF_A_NUMBER
            self._n_tensors += 1
            if self._left < 0 or self._n_tensors > _MAX_TENSORS:
                raise ValueError(
                    f"its settings ask for networks of more than {self._max_bytes:,} bytes or {_MAX_TENSORS:,} tensors, far "
                    "more than it has"
                )
        return func(*args, **kwargs)
