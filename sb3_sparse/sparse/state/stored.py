"""Which topology a state dict stands for, as this version and earlier ones wrote it."""

from collections.abc import Mapping

import numpy as np
import torch as th
from torch import nn

from sb3_sparse.sparse.state.identity import N_DIGITS, DamagedIdentity, decode
from sb3_sparse.sparse.topology import MAX_SEED, Topology, positions_checksum


def loaded_topology(mine: Topology, given: Mapping[str, th.Tensor]) -> Topology | None:
    """
    The topology that stands in what a state dict has for a layer; None: nothing stands there.

    :param mine: That of the layer.
    :param given: The entries ``topology_seed`` and ``topology_index``, at least one of them.
    :raises DamagedIdentity: If they stand for none.
    """
    seed, index = given.get("topology_seed"), given.get("topology_index")
    if seed is None:
        assert index is not None
        return _old_given_topology(mine, index)
    if seed.dim() == 0:
        return _old_drawn_topology(mine, seed)
    return stored_topology(mine, seed, index)


def stored_topology(mine: Topology, identity: th.Tensor, index: th.Tensor | None) -> Topology | None:
    """
    The topology that an identity stands for; None: it is blank.

    :param mine: That of the layer: of the same shape, with as many weights.
    :param identity: As ``identity.py`` writes it.
    :param index: Positions, if there are some.
    :raises DamagedIdentity: If there is none such.
    """
    numbers = numbers_of(identity)
    if numbers is None:
        return mine
    eps = th.finfo(identity.dtype).eps if identity.dtype.is_floating_point else 0.0
    for kind in (0, 1):
        try:
            number = decode(numbers, (kind, *mine.shape, mine.nnz), eps)
        except DamagedIdentity:
            if kind == 1:
                raise
            continue
        if number is None:
            return None
        if (kind, number) == (mine.kind, mine.number):
            return mine
        if kind == 0:
            return Topology.random(mine.shape, mine.nnz, number)
        return _given_topology(mine, index, number)
    raise AssertionError


def _given_topology(mine: Topology, index: th.Tensor | None, number: int) -> Topology:
    if index is None or index.dim() != 1 or len(index) != mine.nnz:
        raise DamagedIdentity(f"it stands for a given topology, whose {mine.nnz} positions (topology_index) are missing.")
    positions = index.detach().cpu().double().round().numpy().astype(np.int64)
    if positions_checksum(positions) != number:
        raise DamagedIdentity("topology_index holds other positions: it was cast, averaged or damaged.")
    return Topology(mine.shape, positions)


def holds_positions(index: th.Tensor | None, topology: Topology) -> bool:
    """
    Whether a buffer holds the positions of a topology; one without data (meta, fake) may.

    :param index: The buffer.
    :param topology: A given one.
    """
    if index is None or index.shape != (topology.nnz,):
        return False
    plain = unwrapped(index).detach()
    if type(plain) is not th.Tensor or plain.is_meta:
        return True
    return th.equal(plain.cpu().long(), topology.flat_index())


def _old_given_topology(mine: Topology, index: th.Tensor) -> Topology:
    """As version 0.1 saved it: positions alone, as integers."""
    if index.dtype.is_floating_point or index.dim() != 1 or len(index) != mine.nnz:
        raise DamagedIdentity(f"topology_index of {tuple(index.shape)} {index.dtype}: expected {mine.nnz} integers.")
    return Topology(mine.shape, index.detach().cpu().numpy().astype(np.int64))


def _old_drawn_topology(mine: Topology, seed: th.Tensor) -> Topology:
    """As version 0.1 saved it: the seed as one float32."""
    value = float(seed)
    if seed.dtype not in (th.float32, th.float64) or not value.is_integer() or not 0 <= value < MAX_SEED:
        raise DamagedIdentity(
            f"{value:g} ({seed.dtype}) is no seed of a topology, as a file of version 0.1 has it: it was cast, averaged or "
            "damaged. Load the file as it was saved."
        )
    return Topology.random(mine.shape, mine.nnz, int(value))


def unwrapped(tensor: th.Tensor) -> th.Tensor:
    """
    The tensor inside the wrappers of ``torch.func``.

    :param tensor: Any.
    """
    while th._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = th._C._functorch.get_unwrapped(tensor)
    return tensor


def numbers_of(buffer: th.Tensor) -> list[float] | None:
    """
    What is in an identity buffer; None if it has no data. Stacked ones have to be equal.

    :param buffer: ``(..., 12)``
    :raises DamagedIdentity: If it has another shape.
    :raises ValueError: If different ones are stacked.
    """
    plain = unwrapped(buffer).detach()
    if type(plain) not in (th.Tensor, nn.Parameter) or plain.is_meta:
        return None
    if plain.dim() == 0 or plain.shape[-1] != N_DIGITS:
        raise DamagedIdentity(f"a tensor of shape {tuple(plain.shape)}: expected ({N_DIGITS},).")
    # In this order: some devices have no float64.
    rows = plain.cpu().double().reshape(-1, N_DIGITS).tolist()
    if any(row != rows[0] for row in rows[1:]):
        raise ValueError(
            "sparse layers with different topologies cannot be stacked: make the models with one mask_seed (or seed), or "
            "stack dense copies, to_dense(module)."
        )
    return rows[0]
