"""Which runs belong together, and which of their series."""

from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import yaml

from sb3_sparse.results.groups import collect, group_runs
from sb3_sparse.results.runs import RETURNS, read_run
from tests.results.made import monitor_run, zoo_run


def test_runs_that_differ_in_their_seed_are_one_group(tmp_path):
    folders = [zoo_run(tmp_path / f"Pendulum-v1_{seed}", seed) for seed in (1, 2)]
    folders += [zoo_run(tmp_path / f"Pendulum-v1_{seed}", seed, sparsity=0.0) for seed in (3, 4)]
    folders += [monitor_run(tmp_path / name) for name in ("other", "another")]
    groups = group_runs([read_run(folder) for folder in folders])
    sizes = {name: len(members) for name, members in groups.items()}
    assert sizes == {"sac Pendulum-v1 sparsity=0.8": 2, "sac Pendulum-v1 sparsity=0.0": 2, "other": 1, "another": 1}
    assert len(group_runs([read_run(folder) for folder in folders[:1]])) == 1
    with pytest.warns(UserWarning, match="another and .*other have equal returns in every point") as warned:
        groups = group_runs([read_run(f"mine={folder}") for folder in folders])
    assert len(warned) == 1
    assert {name: len(members) for name, members in groups.items()} == {"mine": 6}


def test_a_run_that_goes_on_from_another_agent_is_in_another_group(tmp_path):
    """Mistake of ours: its settings look the same."""
    folders = [Path(zoo_run(tmp_path / f"Pendulum-v1_{seed}", seed)) for seed in (1, 2)]
    arguments = folders[1] / "Pendulum-v1" / "args.yml"
    arguments.write_text(yaml.dump(OrderedDict(algo="sac", env="Pendulum-v1", seed=2, trained_agent="a.zip")))
    assert len(group_runs([read_run(str(folder)) for folder in folders])) == 2


def test_seeds_that_go_on_from_seeds_are_one_group(tmp_path):
    """Mistake of ours: each goes on from a file of its own, and was a group."""
    folders = []
    for sparsity in (0.8, 0.5):
        for seed in (1, 2):
            first = Path(zoo_run(tmp_path / f"first{sparsity}_{seed}", seed, sparsity=sparsity))
            folders.append(Path(zoo_run(tmp_path / f"second{sparsity}_{seed}", seed)))
            named = dict(algo="sac", env="Pendulum-v1", seed=seed, trained_agent=str(first / "Pendulum-v1.zip"))
            (folders[-1] / "Pendulum-v1" / "args.yml").write_text(yaml.dump(OrderedDict(named)))
    groups = group_runs([read_run(str(folder)) for folder in folders])
    assert [len(members) for members in groups.values()] == [2, 2]
    # An agent that is said to go on from itself has no end.
    (folders[0] / "Pendulum-v1" / "args.yml").write_text(yaml.dump({"trained_agent": str(folders[0] / "Pendulum-v1.zip")}))
    assert len(group_runs([read_run(str(folder)) for folder in folders])) == 3


def test_groups_that_would_share_a_name_stay_two(tmp_path):
    folders = [zoo_run(tmp_path / "a", 1), "sac Pendulum-v1=" + zoo_run(tmp_path / "b", 1)]
    assert [len(members) for members in group_runs([read_run(folder) for folder in folders]).values()] == [1, 1]


def test_returns_are_compared_in_kind(tmp_path):
    both = tmp_path / "both"
    zoo_run(both, 1)
    monitor_run(both)
    only_monitor = monitor_run(tmp_path / "only_monitor")
    runs = [read_run(str(both)), read_run(only_monitor)]
    curves = collect(group_runs(runs))
    assert list(curves) == [RETURNS["monitor"], "actor_dormant", "critic_srank"]
    assert len(curves[RETURNS["monitor"]]) == 2
    assert len(curves["critic_srank"]) == 1
    assert next(iter(collect(group_runs(runs[:1])))) == RETURNS["evaluations"]


def test_chosen_series(tmp_path):
    groups = group_runs([read_run(zoo_run(tmp_path / "run", 1))])
    assert list(collect(groups, patterns=["critic_*"])) == [RETURNS["evaluations"], "critic_srank"]
    with pytest.raises(ValueError, match=r"'critic_rank' fits nothing: the runs have \['actor_dormant', 'critic_srank'\]"):
        collect(groups, patterns=["actor_*", "critic_rank"])


def test_hours_and_smoothing(tmp_path):
    folder = tmp_path / "run"
    zoo_run(folder, 0, steps=(20, 40, 60))
    monitor_run(folder)
    curves = collect(group_runs([read_run(str(folder))]), x="hours", smooth=2)
    (curve,) = curves[RETURNS["evaluations"]].values()
    np.testing.assert_allclose(curve.x, np.array([1, 2, 3]) + 1 / 3600)
    np.testing.assert_allclose(curve.mean, [21, 31, 51])
    with pytest.raises(ValueError, match="smooth=0"):
        collect({}, smooth=0)
    with pytest.raises(ValueError, match="does not say when"):
        collect(group_runs([read_run(zoo_run(tmp_path / "no_clock", 0))]), x="hours")
