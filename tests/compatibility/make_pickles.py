"""
Write what ``test_old_addresses.py`` reads: whole policies that an earlier version pickled, and networks that it saved.

Run it with the package at the commit whose files are to be kept, as ``make_files.py``; files that are there stay::

    PYTHONPATH=../before OMP_NUM_THREADS=1 python tests/compatibility/make_pickles.py
"""

import warnings

import cases
import numpy as np
import torch as th


def main() -> None:
    cases.PICKLES.mkdir(exist_ok=True)
    for name, agent in cases.PICKLED.items():
        if (cases.PICKLES / f"{name}.npz").exists():
            continue
        with cases.forced_backend("compiled"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = agent.build()
            model.learn(agent.steps)
            th.save(model.policy, cases.PICKLES / f"{name}.policy.pt")
            network = cases.network_of(model.policy)
            if hasattr(network, "save"):
                network.save(cases.PICKLES / f"{name}.network.pt")
            batches = cases.observations(model.observation_space)
            outputs = cases.agent_outputs(model, batches)
        np.savez_compressed(
            cases.PICKLES / f"{name}.npz",
            parameters=cases.saved_keywords(model.policy),
            **{f"in_{key}": batch for key, batch in batches.items()},
            **outputs,
        )


if __name__ == "__main__":
    main()
