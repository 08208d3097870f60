"""What the networks of a model look like, layer by layer."""

from typing import Any

from torch import nn

from sb3_sparse.common.model_parts import NoKnownNetworks
from sb3_sparse.common.sb3_models import model_parts
from sb3_sparse.sparse import sparsity_report


def describe_model(model: Any) -> str:
    """
    The layer table of every trained network of an SB3 model.

    :param model: Any algorithm of SB3, trained or not.
    """
    return "\n\n".join(f"{name}\n{sparsity_report(network)}" for name, network in trained_networks(model).items())


def trained_networks(model: Any) -> dict[str, nn.Module]:
    """
    The networks of an SB3 model that are trained, by their place in the policy; the whole policy where it has no such parts.

    Targets are copies. A network inside another one is shown there.

    :param model: Any algorithm of SB3, trained or not.
    """
    try:
        networks = model_parts(model).networks
    except NoKnownNetworks:
        return {"policy": model.policy}
    if any(network.place == "" for network in networks.values()):
        return {"policy": model.policy}
    modules = {network.place or name: network.module for name, network in networks.items()}
    inside = {place for place in modules for other in modules if place.startswith(f"{other}.")}
    return {place: module for place, module in modules.items() if place not in inside}
