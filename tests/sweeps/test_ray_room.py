"""Runs that no machine of Ray can hold."""

import pytest

from sb3_sparse.sweeps.backends import ray_cluster
from sb3_sparse.sweeps.backends.ray_cluster import _wait_for_room

SMALL = {"CPU": 8.0, "memory": 10e9, "node:10.0.0.1": 1.0}
LARGE = {"CPU": 2.0, "GPU": 1.0, "memory": 64e9}


def nodes(*resources, dead=()):
    return lambda: [{"Alive": each not in dead, "Resources": each} for each in resources]


@pytest.mark.parametrize(
    "needed",
    [
        {"CPU": 8, "GPU": 0.0, "memory": 0},
        {"CPU": 1, "GPU": 0.25, "memory": 0},
        {"CPU": 2, "GPU": 1.0, "memory": 64_000_000_000},
    ],
    ids=str,
)
def test_one_machine_is_enough(needed):
    _wait_for_room(nodes(SMALL, LARGE), needed, 0)


@pytest.mark.parametrize(
    ("needed", "said"),
    [
        ({"CPU": 16, "GPU": 0.0, "memory": 0}, "needs 16 CPU; there is 8 CPU; 2 CPU\\. Lower `threads`"),
        ({"CPU": 1, "GPU": 2.0, "memory": 0}, "needs 1 CPU, 2 GPU; there is 8 CPU, 0 GPU; 2 CPU, 1 GPU"),
        ({"CPU": 1, "GPU": 0.0, "memory": 70e9}, "needs 1 CPU, 70.0 GB; there is 8 CPU, 10.0 GB; 2 CPU, 64.0 GB"),
        # Each of it is somewhere, and not all in one place.
        ({"CPU": 4, "GPU": 1.0, "memory": 1e9}, "needs 4 CPU, 1 GPU, 1.0 GB; there is"),
    ],
    ids=str,
)
def test_what_no_machine_can_hold_is_said(needed, said):
    """Mistake of ours: Ray waited for such a machine without a word."""
    with pytest.raises(RuntimeError, match=said):
        _wait_for_room(nodes(SMALL, LARGE), needed, 0)


def test_machines_that_are_gone_do_not_count():
    with pytest.raises(RuntimeError, match="there is 8 CPU, 0 GPU"):
        _wait_for_room(nodes(SMALL, LARGE, dead=[LARGE]), {"CPU": 1, "GPU": 1.0, "memory": 0}, 0)
    with pytest.raises(RuntimeError, match="there is no machine"):
        _wait_for_room(nodes(SMALL, dead=[SMALL]), {"CPU": 1, "GPU": 0.0, "memory": 0}, 0)


def test_a_machine_that_joins_is_waited_for(monkeypatch):
    monkeypatch.setattr(ray_cluster, "TICK", 0)
    looks = iter([[SMALL], [SMALL], [SMALL, LARGE]])
    _wait_for_room(lambda: nodes(*next(looks))(), {"CPU": 1, "GPU": 1.0, "memory": 0}, 60)
