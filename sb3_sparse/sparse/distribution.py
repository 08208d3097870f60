"""How many weights each layer keeps: from one overall sparsity to a density per layer."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, get_args

from sb3_sparse.common.validation import choice, number_in

Budget = Literal["weights", "all_parameters"]


def check_sparsity(sparsity: float, name: str = "sparsity") -> float:
    """
    Return the sparsity as a float, or raise.

    :param sparsity: Fraction of weights removed.
    :param name: How the error message calls it.
    :raises ValueError: If it is not a number in [0, 1).
    """
    try:
        return number_in(name, sparsity, 0, 1)
    except ValueError as error:
        hint = "It is the fraction of weights removed: 0 is the dense network, 0.9 keeps one weight in ten."
        raise ValueError(f"{error} {hint}") from None


def uniform(shapes: Mapping[str, Sequence[int]], sparsity: float) -> dict[str, float]:
    """
    The same density for every weight tensor.

    :param shapes: Shape of each tensor by name; 1-D ones (biases, norms) are never pruned.
    :param sparsity: Overall fraction of weights removed, in [0, 1).
    :return: Density (fraction kept) of each tensor by name.
    :raises ValueError: If ``sparsity`` is out of range.
    """
    density = 1.0 - check_sparsity(sparsity)
    return {name: density if len(shape) > 1 else 1.0 for name, shape in shapes.items()}


def erdos_renyi(shapes: Mapping[str, Sequence[int]], sparsity: float, budget: Budget = "weights") -> dict[str, float]:
    """
    Erdős-Rényi allocation (Mocanu et al. 2018; with kernel sizes, Evci et al. 2020; paper section 2.2).

    Small layers are kept denser than large ones: the density of layer ``i`` is ``scale * ratio_i`` with
    ``ratio_i = sum(shape_i) / prod(shape_i)``, for a linear layer ``(n_in + n_out) / (n_in * n_out)``.
    One common ``scale`` makes the kept weights of all layers meet the overall budget.

    :param shapes: Shape of each tensor by name: ``(out, in)`` or ``(out, in, kernel, kernel)``.
        1-D tensors (biases, norms) are never pruned: their density is 1.
    :param sparsity: Overall fraction of weights removed, in [0, 1).
    :param budget: ``"weights"``: only weight tensors count in the budget. ``"all_parameters"``: the 1-D
        tensors count too, as in the paper's released code, which therefore prunes the weights slightly harder.
    :return: Density (fraction kept) of each tensor by name.
    :raises ValueError: If ``sparsity`` or ``budget`` is not allowed, or the budget cannot be met.
    """
    sparsity = check_sparsity(sparsity)
    choice("budget", budget, get_args(Budget))
    if sparsity == 0.0:
        return dict.fromkeys(shapes, 1.0)

    numel = {name: math.prod(shape) for name, shape in shapes.items()}
    ratio = {name: sum(shape) / numel[name] for name, shape in shapes.items()}
    pruned = {name for name, shape in shapes.items() if len(shape) > 1}
    counted = set(shapes) if budget == "all_parameters" else set(pruned)

    # With the tensors in `pruned` at density scale * ratio and the other counted ones at density 1,
    #     sum_pruned(scale * ratio * numel) + sum_dense(numel) = sum_counted(numel - floor(sparsity * numel)).
    # Solved for `scale`, the largest densities can exceed 1. Those tensors become dense and the rest is
    # solved again: each round moves only the largest, since the new, smaller scale may save the others.
    kept = sum(numel[name] - math.floor(sparsity * numel[name]) for name in counted)
    while pruned:
        available = kept - sum(numel[name] for name in counted - pruned)
        if available < 0:
            raise ValueError(
                f"sparsity={sparsity} leaves {kept} parameters, fewer than the layers that have to stay dense hold. "
                "Lower the sparsity, or use distribution 'uniform'."
            )
        scale = available / sum(ratio[name] * numel[name] for name in pruned)
        largest = max(ratio[name] for name in pruned)
        if scale * largest <= 1.0:
            break
        pruned -= {name for name in pruned if ratio[name] == largest}
    return {name: scale * ratio[name] if name in pruned else 1.0 for name in shapes}


DISTRIBUTIONS: dict[str, Callable[[Mapping[str, Sequence[int]], float], dict[str, float]]] = {
    "erdos_renyi": erdos_renyi,
    "uniform": uniform,
}
