"""Keywords of the policies: which there are, and what they say about sizes and optimizers."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import torch as th

from sb3_sparse.common.signatures import full_signature
from sb3_sparse.common.validation import no_array, per_network, positive, whole_numbers
from sb3_sparse.networks.simba import simba_size
from sb3_sparse.simba.misuse import WRONG_POLICY

NetArch = list[int] | dict[str, list[int]]

DEFAULT_WIDTH_SCALE = 2.0
DEFAULT_DEPTH_SCALE = 1.0


def check_keywords(policy_class: type, kwargs: Mapping[str, Any]) -> None:
    """
    :raises ValueError: If no constructor of a policy knows a keyword.
    """
    known = full_signature(policy_class).parameters
    for name in kwargs:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            if name == "use_sde":
                # SB3 passes this one itself, to the policies of some algorithms, in the dictionary that it was given.
                hint = f" {WRONG_POLICY} Or was the same policy_kwargs given to SAC before, which writes into it? Pass a copy."
            raise ValueError(f"{policy_class.__name__} has no keyword {name!r}.{hint} Keywords: {sorted(known)}.")


@dataclass(frozen=True)
class Sizes:
    """How large the networks of a policy are."""

    blocks: dict[str, list[int]]
    """The width of every residual block, by network."""
    keywords: dict[str, Any]
    """What said so, as plain Python that JSON can hold."""

    @classmethod
    def checked(cls, networks: list[str], width_scale: Any, depth_scale: Any, net_arch: Any) -> "Sizes":
        """
        From the keywords of a policy.

        :param networks: The names of its networks.
        :param width_scale: See :class:`SimBaPolicy`, as the others.
        :raises ValueError: If a value is out of range, or scales are given together with ``net_arch``.
        """
        widths = per_network("width_scale", width_scale, networks, positive)
        depths = per_network("depth_scale", depth_scale, networks, positive)
        keywords = {"width_scale": _as_given(width_scale, widths), "depth_scale": _as_given(depth_scale, depths)}
        if net_arch is None:
            blocks = {network: simba_size(network, widths[network], depths[network]) for network in networks}
            return cls(blocks, {**keywords, "net_arch": None})
        blocks = per_network("net_arch", no_array("net_arch", net_arch), networks, _check_blocks, "a list")
        if {*widths.values()} != {DEFAULT_WIDTH_SCALE} or {*depths.values()} != {DEFAULT_DEPTH_SCALE}:
            given = ", ".join(f"{name}={value}" for name, value in keywords.items())
            raise ValueError(
                f"net_arch={net_arch!r} together with {given}: "
                "the scales multiply SimBa's default sizes, net_arch replaces them. Give one or the other."
            )
        # The networks get lists of their own.
        return cls(
            {network: list(widths) for network, widths in blocks.items()},
            {**keywords, "net_arch": _as_given(net_arch, blocks)},
        )


def _as_given(value: Any, checked: dict[str, Any]) -> Any:
    return dict(checked) if isinstance(value, Mapping) else next(iter(checked.values()))


def _check_blocks(name: str, blocks: Any) -> list[int]:
    widths = whole_numbers(name, blocks, minimum=1)
    if len(set(widths)) > 1:
        raise ValueError(
            f"{name}={blocks!r}: all residual blocks of a network are equally wide, e.g. {[widths[0]] * len(widths)}."
        )
    return widths


def may_be_default_of_qrdqn(optimizer_class: Any, optimizer_kwargs: Any) -> bool:
    """Whether this is the optimizer that QR-DQN names where the user names none."""
    if optimizer_class is not th.optim.Adam or not isinstance(optimizer_kwargs, Mapping) or set(optimizer_kwargs) != {"eps"}:
        return False
    eps = optimizer_kwargs["eps"]
    # Exactly the number that QR-DQN computes; Adam's own 1e-8 would need a batch of a million.
    return isinstance(eps, float) and eps > 1e-7 and eps == 0.01 / round(0.01 / eps)


def is_round(number: float) -> bool:
    """Whether it has two digits at most, as numbers that people write."""
    return len(Decimal(repr(number)).normalize().as_tuple().digits) <= 2
