"""How a network is pruned, as one value: how much, spread how, which weights, and how the others start."""

from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch as th
from torch import nn

from sb3_sparse.common.validation import choice, flag, per_network, whole_number
from sb3_sparse.common.warn import warn_user
from sb3_sparse.sparse.distribution import DISTRIBUTIONS, check_sparsity
from sb3_sparse.sparse.pruning import Exclude, leading_names, prunable_layers, prune_
from sb3_sparse.sparse.topology import Topology, derive_seed

Module = TypeVar("Module", bound=nn.Module)

_FIELDS = ("sparsity", "distribution", "seed", "rescale")
_KEYWORDS = ("sparsity", "sparsity_distribution", "mask_seed", "rescale")


@dataclass(frozen=True)
class Sparsity:
    """
    How a network is pruned. It checks itself, and applies itself to a module.

    >>> sparsity = Sparsity(0.9, seed=1)
    >>> network = sparsity.apply_(nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512)))

    Policies and networks have it as four keywords, ``sparsity``, ``sparsity_distribution``, ``mask_seed`` and ``rescale``,
    which are also what is saved: :meth:`from_keywords` and :attr:`keywords` translate.

    :raises ValueError: If a value is out of range.
    """

    amount: float = 0.0
    """Fraction of the weights that is removed, in [0, 1), over all layers together. 0 leaves a module as it is."""
    distribution: str = "erdos_renyi"
    """How it is spread over the layers: ``"erdos_renyi"`` or ``"uniform"``."""
    seed: int | None = None
    """Draws which weights exist. None: ``torch.initial_seed()``, from which nothing is drawn."""
    rescale: bool = False
    """Whether the surviving initial weights of a layer are multiplied by ``1 / sqrt(density)``."""

    def __post_init__(self) -> None:
        for field, value in _checked(_FIELDS, self.amount, self.distribution, self.seed, self.rescale).items():
            object.__setattr__(self, field, value)

    @classmethod
    def from_keywords(
        cls,
        sparsity: Any = 0.0,
        sparsity_distribution: Any = "erdos_renyi",
        mask_seed: Any = None,
        rescale: Any = False,
    ) -> "Sparsity":
        """
        From the keywords of policies and networks.

        :param sparsity: The ``amount``.
        :param sparsity_distribution: The ``distribution``.
        :param mask_seed: The ``seed``.
        :param rescale: The same.
        :raises ValueError: If a value is out of range, by the name of its keyword.
        """
        return cls(**_checked(_KEYWORDS, sparsity, sparsity_distribution, mask_seed, rescale))

    @classmethod
    def per_network(cls, networks: Iterable[str], sparsity: Any = 0.0, **others: Any) -> dict[str, "Sparsity"]:
        """
        One for each network of a policy, from its keywords.

        >>> Sparsity.per_network(["pi", "qf"], {"pi": 0.5, "qf": 0.9}, mask_seed=1)["qf"]
        Sparsity(amount=0.9, distribution='erdos_renyi', seed=1, rescale=False)

        :param networks: Their names.
        :param sparsity: One number for all of them, or one for each by its name.
        :param others: The other keywords, which hold for all.
        :raises ValueError: If a value is out of range, or a network has none.
        """
        common, names = cls.from_keywords(**others), list(networks)
        amounts = per_network("sparsity", sparsity, names, lambda name, value: check_sparsity(value, name))
        return {name: replace(common, amount=amount) for name, amount in amounts.items()}

    @staticmethod
    def take_keywords(kwargs: MutableMapping[str, Any]) -> dict[str, Any]:
        """
        Take the keywords of :meth:`from_keywords` out of a dictionary that holds others too.

        :param kwargs: Keeps the others.
        """
        return {name: kwargs.pop(name) for name in _KEYWORDS if name in kwargs}

    @property
    def keywords(self) -> dict[str, Any]:
        """The keywords that :meth:`from_keywords` takes, as plain values that JSON can hold."""
        return dict(zip(_KEYWORDS, (self.amount, self.distribution, self.seed, self.rescale), strict=True))

    @staticmethod
    def keywords_of(per_network: Mapping[str, "Sparsity"]) -> dict[str, Any]:
        """
        The keywords that :meth:`per_network` takes.

        :param per_network: What it returned.
        """
        amounts = {name: sparsity.amount for name, sparsity in per_network.items()}
        first = next(iter(per_network.values()))
        return {**first.keywords, "sparsity": first.amount if len(set(amounts.values())) == 1 else amounts}

    def dense(self) -> "Sparsity":
        """The same without any sparsity: what a network has once :func:`to_dense` was there."""
        return replace(self, amount=0.0)

    def apply_(self, module: Module, *, exclude: Exclude = (), name: str = "") -> Module:
        """
        Prune a module, in place, see :func:`sparsify_`.

        :param module: Any module. If it is itself a layer, the sparse layer is only returned.
        :param exclude: What to leave out.
        :param name: Of the network, where several have layers of the same names: each gets positions of its own.
        :return: The module.
        """
        if not isinstance(module, nn.Module):
            raise ValueError(f"module is a {type(module).__name__}: expected a torch.nn.Module, such as the network itself.")
        if self.amount == 0.0:
            return module
        layers = prunable_layers(module, exclude)
        if not layers:
            left = "that exclude does not name " if exclude else ""
            warn_user(f"sparsify_ found no nn.Linear or nn.Conv2d {left}in {type(module).__name__}: it is as it was.")
        densities = DISTRIBUTIONS[self.distribution]({name: layer.weight.shape for name, layer in layers.items()}, self.amount)
        seed = th.initial_seed() if self.seed is None else self.seed
        seed = derive_seed(seed, name) if name else seed
        topologies, leading = {}, leading_names(module)
        for place, layer in layers.items():
            nnz = round(densities[place] * layer.weight.numel())
            if nnz < layer.weight.numel():
                # A target network is pruned as the network that it follows, whose weights are averaged into its own.
                topologies[layer] = Topology.random(layer.weight.shape, nnz, derive_seed(seed, leading[layer]))
        if empty := [place for place, layer in layers.items() if layer in topologies and topologies[layer].nnz == 0]:
            warn_user(
                f"sparsity={self.amount:g} leaves no weight of {empty}: what these layers return does not depend on their "
                "input. Name them in exclude=, or take fewer."
            )
        return prune_(module, topologies, self.rescale)


def sparsify_(
    module: Module,
    sparsity: float,
    distribution: str = "erdos_renyi",
    *,
    exclude: Exclude = (),
    seed: int | None = None,
    rescale: bool = False,
) -> Module:
    """
    Prune a module at random, in place: every ``nn.Linear`` and ``nn.Conv2d`` becomes a sparse layer.

    At positions of your own, such as those of a file: :func:`~sb3_sparse.sparse.masks.sparsify_by_masks_`.

    What is called ``..._target`` is pruned as the network of that name without it: SB3's target networks follow theirs
    weight by weight.

    The weights that survive keep their values, hooks and attributes of the layers stay on them. Layers that the
    distribution leaves dense stay as they are, and so do subclasses of the two, with a warning. Optimizers that are
    attributes of the module, as in SB3's policies, train the new parameters, with the moments of the weights that
    survive; others have to be made again, since their parameters are gone.

    >>> net = sparsify_(nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512)), sparsity=0.9)

    :param module: Any module. If it is itself a layer, the sparse layer is only returned.
    :param sparsity: Fraction of the weights to remove, in [0, 1), over all layers together that are not excluded.
    :param distribution: How it is spread over the layers: ``"erdos_renyi"`` or ``"uniform"``.
    :param exclude: Names of submodules to leave out (with everything inside them), or a function of a layer's
        name and the layer that says True for what to leave out.
    :param seed: Draws the topologies; by default ``torch.initial_seed()``, from which nothing is drawn.
    :param rescale: Multiply the surviving weights of a layer by ``1 / sqrt(density)``.
    :return: The module.
    :raises ValueError: If an argument is out of range, a name in ``exclude`` is not a submodule, a layer is sparse
        already, layers share a weight, or a weight is computed (by parametrizations, ``weight_norm``, ...).
    """
    return Sparsity(sparsity, distribution, seed, rescale).apply_(module, exclude=exclude)


def _checked(names: tuple[str, str, str, str], amount: Any, distribution: Any, seed: Any, rescale: Any) -> dict[str, Any]:
    """The fields as plain Python. ``names`` is what errors call them."""
    return {
        "amount": check_sparsity(amount, names[0]),
        "distribution": choice(names[1], distribution, DISTRIBUTIONS),
        "seed": None if seed is None else whole_number(names[2], seed, 0),
        "rescale": flag(names[3], rescale),
    }
