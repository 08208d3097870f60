"""
How the identity of a topology travels through state dicts, among weights that strangers cast, average, decay and fill.

Whatever lies in a state dict is taken for a weight by somebody: cast to bfloat16, averaged over checkpoints, smoothed
over time, moved by noise, filled with random numbers, broadcast to other processes. An identity is therefore written as
twelve floats that survive this, or betray it. Each holds four bits as one of sixteen widely spaced values; six hold a
24-bit number, six a checksum of it and of what the layer is. Equal identities averaged stay what they are, noise of the
size of weights is rounded away, and mixtures of different ones are refused.
"""

import math
import zlib
from collections.abc import Sequence

N_DIGITS = 12
# The largest number that fits, plus one.
MAX_NUMBER = 2**24
# Noise up to this is left as it is, for those who compare what they loaded with what they saved; more is taken off.
_KEPT_NOISE = 4.0
# Digit d is written as (d + 1) * 1024: exact in float32, float16 and bfloat16, and never near zero.
_SPACING = 1024.0
# Noise on weights that may have been added to a digit: far less than half a spacing, so that a mixture of two identities,
# of one in a hundred parts already, is no identity.
_NOISE = 16.0


class DamagedIdentity(ValueError):
    """Numbers that are no identity of a topology, or the one of another layer."""


def encode(number: int, about: tuple[int, ...]) -> list[float]:
    """
    :param number: In [0, 2**24).
    :param about: What the number is about: the same has to be known for reading it.
    :return: Twelve numbers.
    """
    digits = f"{number:06x}{_checksum(number, about):06x}"
    return [(int(digit, 16) + 1) * _SPACING for digit in digits]


def decode(numbers: Sequence[float], about: tuple[int, ...], eps: float = 0.0) -> int | None:
    """
    The number that was encoded, or None if there is none: all are nearly zero, as in a state dict filled with small ones.

    :param numbers: Twelve numbers, as :func:`encode` returned them or nearly so.
    :param about: What was given to :func:`encode`.
    :param eps: Relative spacing of floats of the type that they came in (``torch.finfo(dtype).eps``): what has been
        computed with them was rounded by as much.
    :raises DamagedIdentity: If they are anything else.
    """
    if len(numbers) != N_DIGITS or not all(map(math.isfinite, numbers)):
        raise DamagedIdentity(f"{list(numbers)}: expected {N_DIGITS} finite numbers.")
    if all(abs(value) <= _NOISE for value in numbers):
        return None
    digits = [round(value / _SPACING) - 1 for value in numbers]
    for digit, value in zip(digits, numbers, strict=True):
        if not 0 <= digit <= 15 or abs(value - (digit + 1) * _SPACING) > _NOISE + 2 * eps * abs(value):
            raise DamagedIdentity(f"{value:g} among them is none of the values that one can consist of.")
    text = "".join(f"{digit:x}" for digit in digits)
    number, checksum = int(text[:6], 16), int(text[6:], 16)
    if checksum != _checksum(number, about):
        raise DamagedIdentity("their checksum is that of another layer or number.")
    return number


def is_near(numbers: Sequence[float], identity: Sequence[float]) -> bool:
    """Whether numbers are that identity, with a little noise at most, which decides nothing and need not be taken off."""
    return len(numbers) == N_DIGITS and all(abs(a - b) <= _KEPT_NOISE for a, b in zip(numbers, identity, strict=True))


def _checksum(number: int, about: tuple[int, ...]) -> int:
    return zlib.crc32(repr((number, *about)).encode()) % MAX_NUMBER
