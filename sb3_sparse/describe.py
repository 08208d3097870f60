"""What the networks of an agent look like: the table of ``sb3-sparse describe``."""

from typing import Any

from torch import nn

from sb3_sparse.sparse import sparsity_report

# The networks that are trained, by the names algorithms give them; targets are copies.
NETWORKS = ("actor", "critic", "q_net", "quantile_net")


def describe_model(model: Any) -> str:
    """
    The layer table of every trained network of an SB3 model.

    :param model: Any algorithm of SB3, trained or not.
    """
    return "\n\n".join(f"{name}\n{sparsity_report(network)}" for name, network in trained_networks(model).items())


def trained_networks(model: Any) -> dict[str, nn.Module]:
    """
    The networks of an SB3 model that are trained, by name; the whole policy where it has no such parts.

    :param model: Any algorithm of SB3, trained or not.
    """
    networks = {name: getattr(model.policy, name, None) for name in NETWORKS}
    return {name: network for name, network in networks.items() if isinstance(network, nn.Module)} or {"policy": model.policy}
