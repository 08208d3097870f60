"""``sb3-sparse describe``: what the networks of an agent would look like."""

import argparse
import contextlib
import io
import tempfile
from typing import Any

from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from torch import nn

from sb3_sparse.sparse import sparsity_report

# The networks that are trained, by the names algorithms give them; targets are copies.
NETWORKS = ("actor", "critic", "q_net", "quantile_net")


def describe_model(model: Any) -> str:
    """
    The layer table of every trained network of an SB3 model.

    :param model: Any algorithm of SB3, trained or not.
    """
    networks = {name: getattr(model.policy, name, None) for name in NETWORKS}
    tables = [f"{name}\n{sparsity_report(network)}" for name, network in networks.items() if isinstance(network, nn.Module)]
    return "\n\n".join(tables or [f"policy\n{sparsity_report(model.policy)}"])


def main(args: list[str]) -> None:
    """Build the agent that ``train`` with the same options would build, and print its tables."""
    from rl_zoo3 import ALGOS
    from rl_zoo3.exp_manager import ExperimentManager
    from rl_zoo3.utils import StoreDict

    from sb3_sparse.dmc import register_dmc
    from sb3_sparse.zoo import hyperparams_file

    parser = argparse.ArgumentParser(prog="sb3-sparse describe", description=describe_model.__doc__)
    parser.add_argument("--algo", default="sac", choices=list(ALGOS))
    parser.add_argument("--env", required=True, help="environment ID")
    parser.add_argument("-params", "--hyperparams", nargs="+", action=StoreDict, help="overwrite hyperparameters")
    parser.add_argument("-conf", "--conf-file", help="YAML file of rl-zoo3; default: the packaged one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(args)

    if options.env.startswith("dm_control/"):
        register_dmc()
    config = options.conf_file or hyperparams_file(options.algo)
    hyperparams = dict(options.hyperparams or {})
    if issubclass(ALGOS[options.algo], OffPolicyAlgorithm):
        # A replay buffer is of no use here, and may be larger than the machine.
        hyperparams["buffer_size"] = 1
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        manager = ExperimentManager(
            options,
            options.algo,
            options.env,
            log_folder=folder,
            eval_freq=-1,
            hyperparams=hyperparams,
            config=None if config is None else str(config),
            seed=options.seed,
            device=options.device,
            verbose=0,
        )
        model, _ = manager.setup_experiment() or (None, None)
        assert model is not None
        assert model.env is not None
        model.env.close()
    print(describe_model(model))
