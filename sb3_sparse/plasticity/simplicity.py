"""
Simplicity bias score: how smooth the functions are that an untrained network computes.

The score of Lee et al. 2024 (SimBa), which the paper uses in Figure 8, after the complexity of Teney et al. 2024
("Neural Redshift"): draw the initial weights, evaluate the network on a square grid of two inputs, take the mean
frequency ``c`` of that picture, and average ``1 / c`` over initialisations. A high score is a bias to simple functions.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch as th
from torch import nn

from sb3_sparse.common.validation import flag, positive, whole_number
from sb3_sparse.networks.simba import SimBaEncoder, orthogonal_linear, simba_sizes
from sb3_sparse.sparse.distribution import check_sparsity, get_distribution
from sb3_sparse.sparse.sparsity import sparsify_

# Points per pass: the widest layer of a large critic has 10240 units.
CHUNK = 4096

Factory = Callable[[], nn.Module]


@dataclass(frozen=True)
class SimplicityBias:
    """What :func:`simplicity_bias_score` found."""

    scores: tuple[float, ...]
    """``1 / c`` of each initialisation."""
    seeds: tuple[int, ...]
    """The seed of each initialisation."""

    @property
    def mean(self) -> float:
        """The score: the mean of ``1 / c``."""
        return sum(self.scores) / len(self.scores)

    @property
    def standard_error(self) -> float:
        """Standard error of the mean; not a number with a single initialisation."""
        n, mean = len(self.scores), self.mean
        return math.sqrt(sum((score - mean) ** 2 for score in self.scores) / (n - 1) / n) if n > 1 else math.nan


def spectral_complexity(image: th.Tensor) -> float:
    """
    Mean frequency of a square picture, between 0 (constant) and 1.

    Amplitudes of the real Fourier transform, frequencies from 0 to half the sampling rate along both axes, without
    the constant part. Distances from the origin are rounded to whole bins and divided by the largest one (212 bins
    on a grid of 300 points).

    >>> wave = th.cos(2 * math.pi * 30 * th.arange(300, dtype=th.float64) / 300)
    >>> round(spectral_complexity(wave[:, None].expand(300, 300)) * 212, 6)
    30.0

    :param image: ``(n, n)``, values of the function on a grid, n at least 2.
    :raises ValueError: If it is not square, or holds values that are not finite.
    """
    if image.ndim != 2 or image.shape[0] != image.shape[1] or len(image) < 2:
        raise ValueError(f"image of shape {tuple(image.shape)}: expected (n, n) with n at least 2.")
    if not image.isfinite().all():
        raise ValueError("image holds values that are not finite: the function has no spectrum. Check its weights.")
    image = image.detach().double()
    # Only the constant part, which does not count, changes; of a constant picture exactly nothing is left.
    image = image - image[0, 0]
    n_frequencies = len(image) // 2 + 1
    amplitude = th.fft.rfft2(image)[:n_frequencies].abs()
    amplitude[0, 0] = 0.0
    frequency = th.arange(n_frequencies, dtype=th.float64, device=image.device)
    radius = th.hypot(frequency[:, None], frequency[None, :]).round()
    total = amplitude.sum()
    return float((amplitude * radius).sum() / total / radius[-1, -1]) if total > 0 else 0.0


def simplicity_bias_score(
    factory: Factory,
    n_inits: int = 100,
    *,
    grid_size: int = 300,
    limit: float = 100.0,
    normalize_inputs: bool = True,
    seed: int = 0,
    device: th.device | str = "cpu",
) -> SimplicityBias:
    """
    Simplicity bias score of a kind of network with two inputs: the mean of ``1 / c`` over initialisations.

    Initialisation ``i`` is drawn with seed ``seed + i`` and nothing else, so a long measurement can be split. The
    global random state is left as it was. The spread over initialisations is large: use 100 to tell sparsities apart.

    >>> result = simplicity_bias_score(simba_actor(sparsity=0.9), n_inits=2)
    >>> f"{result.mean:.1f}"
    '5.8'

    :param factory: Called without arguments for each initialisation; returns a freshly initialised module that maps
        ``(batch, 2)`` to ``(batch,)`` or ``(batch, 1)``.
    :param n_inits: Number of initialisations, at least 1.
    :param grid_size: Points along each input.
    :param limit: The grid covers ``[-limit, limit]`` in both inputs.
    :param normalize_inputs: Scale the inputs to mean 0 and variance 1 over the grid, as a running normalisation of
        observations would; otherwise the network sees the raw grid.
    :param seed: Of the first initialisation.
    :param device: Where to evaluate.
    :raises ValueError: If an argument is out of range, the network's output has another shape or is not finite, or
        it is constant over the grid, for which the score is not defined.
    """
    n_inits, seed = whole_number("n_inits", n_inits, 1), whole_number("seed", seed)
    grid_size = whole_number("grid_size", grid_size, 2)
    grid = input_grid(grid_size, limit, normalize_inputs).to(device)
    seeds = range(seed, seed + n_inits)
    place = th.device(device)
    accelerators = [place] if place.type == "cuda" else []
    scores = []
    for init_seed in seeds:
        with th.random.fork_rng(accelerators):
            th.manual_seed(init_seed)
            network = factory().to(place).eval()
            complexity = spectral_complexity(_evaluate(network, grid).view(grid_size, grid_size))
        if complexity == 0.0:
            raise ValueError(
                f"the network of seed {init_seed} is constant over the grid: its complexity is 0, and 1 / 0 is no score. "
                "No path from input to output is left, or no unit is active: lower the sparsity, or leave this seed out."
            )
        scores.append(1.0 / complexity)
    return SimplicityBias(tuple(scores), tuple(seeds))


def input_grid(grid_size: int = 300, limit: float = 100.0, normalize: bool = True) -> th.Tensor:
    """
    The two inputs at every point of a square grid, row by row: ``(grid_size ** 2, 2)``.

    :param grid_size: Points along each input, at least 2.
    :param limit: The grid covers ``[-limit, limit]``, both ends included.
    :param normalize: Divide by the standard deviation over the grid, whose mean is 0.
    :raises ValueError: If an argument is out of range.
    """
    grid_size, limit = whole_number("grid_size", grid_size, 2), positive("limit", limit)
    normalize = flag("normalize", normalize)
    axis = th.linspace(-limit, limit, grid_size, dtype=th.float64)
    if normalize:
        axis = axis / axis.std(correction=0)
    return th.cartesian_prod(axis, axis).float()


def mlp(width: int = 256, n_layers: int = 2) -> Factory:
    """
    Networks of two inputs and one output with plain hidden layers: SB3's default for continuous control at 256 x 2.

    ReLU, orthogonal weights with gain sqrt(2) (head: 1), biases 0.

    :param width: Units of each hidden layer.
    :param n_layers: Number of hidden layers.
    """
    width, n_layers = whole_number("width", width, 1), whole_number("n_layers", n_layers, 1)

    def build() -> nn.Module:
        layers: list[nn.Module] = []
        for in_features in [2] + [width] * (n_layers - 1):
            hidden = nn.Linear(in_features, width)
            nn.init.orthogonal_(hidden.weight, math.sqrt(2.0))
            nn.init.zeros_(hidden.bias)
            layers += [hidden, nn.ReLU()]
        return nn.Sequential(*layers, orthogonal_linear(width, 1))

    return build


def simba_actor(
    width_scale: float = 1.0,
    sparsity: float = 0.0,
    *,
    depth_scale: float = 1.0,
    sparsity_distribution: str = "erdos_renyi",
    mask_seed: int | None = None,
    rescale: bool = False,
) -> Factory:
    """
    Networks of two inputs and one output of the shape of SimBa's actor: 128 wide with 1 block at scale 1.

    :param width_scale: Multiplies the width.
    :param sparsity: Fraction of the weights that is removed from stem, blocks and head together.
    :param depth_scale: Multiplies the number of blocks.
    :param sparsity_distribution: How the sparsity is spread over the layers.
    :param mask_seed: The same topology for every initialisation; None draws one for each.
    :param rescale: Multiply the surviving weights of a layer by ``1 / sqrt(density)``.
    :raises ValueError: If an argument is out of range.
    """
    sizes = simba_sizes(width_scale, depth_scale)["pi"]
    return _simba(sizes, sparsity, sparsity_distribution, mask_seed, rescale)


def simba_critic(
    width_scale: float = 1.0,
    sparsity: float = 0.0,
    *,
    depth_scale: float = 1.0,
    sparsity_distribution: str = "erdos_renyi",
    mask_seed: int | None = None,
    rescale: bool = False,
) -> Factory:
    """
    Networks of two inputs and one output of the shape of SimBa's critic: 512 wide with 2 blocks at scale 1.

    The keywords are those of :func:`simba_actor`.
    """
    sizes = simba_sizes(width_scale, depth_scale)["qf"]
    return _simba(sizes, sparsity, sparsity_distribution, mask_seed, rescale)


def _simba(sizes: list[int], sparsity: float, distribution: str, mask_seed: int | None, rescale: bool) -> Factory:
    sparsity, rescale = check_sparsity(sparsity), flag("rescale", rescale)
    mask_seed = None if mask_seed is None else whole_number("mask_seed", mask_seed, 0)
    get_distribution(distribution)

    def build() -> nn.Module:
        network = nn.Sequential(SimBaEncoder(2, sizes[0], len(sizes)), orthogonal_linear(sizes[0], 1))
        # Without a seed of their own, topologies follow from the seed of the initialisation.
        return sparsify_(network, sparsity, distribution, seed=mask_seed, rescale=rescale)

    return build


@th.no_grad()
def _evaluate(network: nn.Module, grid: th.Tensor) -> th.Tensor:
    outputs = th.cat([network(points) for points in grid.split(CHUNK)])
    if outputs.numel() != len(grid):
        raise ValueError(
            f"the network maps (batch, 2) to {tuple(outputs.shape)} for {len(grid)} points: expected one number for each. "
            "Give it a head with a single output."
        )
    return outputs
