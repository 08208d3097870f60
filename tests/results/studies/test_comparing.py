"""Groups against baselines and over environments, beside plain NumPy."""

import numpy as np
import pytest

from sb3_sparse.results.studies.comparing import choose_baseline, compare, over_environments, parse_baseline
from sb3_sparse.results.studies.grouping import group_study
from sb3_sparse.results.studies.reading import read_study
from sb3_sparse.results.studies.summary import summarize
from tests.results.studies.made import make_study, write_run


def grouping_of(folder):
    return group_study(read_study(folder))


def against(grouping, baseline):
    return {each.group.label: each.baseline and each.baseline.label for each in compare(grouping.groups, baseline)}


def test_the_baseline_of_each_group_keeps_its_other_axes(tmp_path):
    list(make_study(tmp_path, widths=(1, 2), sparsities=(0.5, 0.0, 0.9), seeds=2, points=(3, 3)))
    grouping = grouping_of(tmp_path)
    dense = choose_baseline(grouping, None)
    assert dense == {"sparsity": 0.0}
    found = against(grouping, dense)
    assert found["width=1 sparsity=0.9"] == "width=1 sparsity=0"
    assert found["width=2 sparsity=0.5"] == "width=2 sparsity=0"
    one = choose_baseline(grouping, parse_baseline(["width=1", "sparsity=0.5"]))
    assert set(against(grouping, one).values()) == {"width=1 sparsity=0.5"}


def test_without_sparsity_the_first_group_is_the_baseline(tmp_path):
    for width in (3, 2):
        write_run(tmp_path, {"width": width, "seed": 0}, [1.0])
    grouping = grouping_of(tmp_path)
    assert set(against(grouping, choose_baseline(grouping, {})).values()) == {"width=2"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sparsity"], "expected AXIS=VALUE"),
        (["=1"], "expected AXIS=VALUE"),
        (["sparsity=0.1"], "no group has it; 'sparsity' has the values 0, 0.8"),
        (["depth=1"], r"the axes are \['width', 'sparsity'\]"),
        (["sparsity=false"], "no group has it"),
    ],
)
def test_a_baseline_that_is_not_there_is_refused(tmp_path, arguments, said):
    list(make_study(tmp_path, widths=(1,), seeds=1, points=(3, 3)))
    with pytest.raises(ValueError, match=said):
        choose_baseline(grouping_of(tmp_path), parse_baseline(arguments))


def test_numbers_of_a_comparison(tmp_path):
    first, second = [3.0, 5.0, 9.0, 9.5], [4.0, 5.0, 1.0]
    for sparsity, values in ((0.8, first), (0.0, second)):
        for seed, value in enumerate(values):
            write_run(tmp_path, {"sparsity": sparsity, "seed": seed}, [value - 1, value + 1])
    dense, sparse = compare(grouping_of(tmp_path).groups, {"sparsity": 0})
    assert (dense.probability, dense.reason) == (None, "is the baseline")
    wins = [(a > b) + 0.5 * (a == b) for a in first for b in second]
    assert sparse.probability.value == pytest.approx(np.mean(wins))
    assert sparse.difference.value == pytest.approx(np.mean(first) - np.mean(second))
    # An independent bootstrap: other draws, the same interval but for their noise.
    rng = np.random.default_rng(5)
    draws = [rng.choice(first, 4).mean() - rng.choice(second, 3).mean() for _ in range(20_000)]
    low, high = np.quantile(draws, [0.025, 0.975])
    assert sparse.difference.low == pytest.approx(low, abs=0.25)
    assert sparse.difference.high == pytest.approx(high, abs=0.25)


def test_of_mixed_settings_each_has_its_own_baseline_or_none(tmp_path):
    for gamma in (0.9, 0.99):
        for sparsity in (0.0, 0.8):
            write_run(tmp_path, {"sparsity": sparsity, "seed": 0}, [gamma], settings={"hyperparams": {"gamma": gamma}})
    write_run(tmp_path, {"sparsity": 0.9, "seed": 0}, [1.0], settings={"hyperparams": {"gamma": 0.5}})
    found = compare(grouping_of(tmp_path).groups, {"sparsity": 0.0})
    by_label = {each.group.label: each for each in found}
    own = by_label["sparsity=0.8 [hyperparams.gamma=0.99]"]
    assert own.baseline.label == "sparsity=0 [hyperparams.gamma=0.99]"
    assert by_label["sparsity=0.9"].reason == "no run with sparsity=0 of the same other settings: settings are mixed"


def test_a_missing_baseline_is_said(tmp_path):
    write_run(tmp_path, {"width": 1, "sparsity": 0.0, "seed": 0}, [1.0])
    write_run(tmp_path, {"width": 2, "sparsity": 0.8, "seed": 0}, [1.0])
    found = compare(grouping_of(tmp_path).groups, {"sparsity": 0.0})
    assert [each.reason for each in found] == ["is the baseline", "no run with width=2 sparsity=0"]


def test_over_environments(tmp_path):
    rng = np.random.default_rng(1)
    scores = rng.normal(100, 20, (2, 2, 4))
    for i, env in enumerate(("A-v0", "B-v0")):
        for j, sparsity in enumerate((0.0, 0.8)):
            for seed in range(4):
                write_run(tmp_path, {"sparsity": sparsity, "seed": seed}, [scores[i, j, seed]], env=env)
    # Neither an environment too few nor a run too many is passed over in silence.
    write_run(tmp_path, {"sparsity": 0.9, "seed": 0}, [1.0], env="A-v0")
    for env, n in (("A-v0", 2), ("B-v0", 1)):
        for seed in range(n):
            write_run(tmp_path, {"sparsity": 0.95, "seed": seed}, [1.0], env=env)
    groups, reasons = over_environments(grouping_of(tmp_path).groups)
    assert [group.label for group in groups] == ["sparsity=0", "sparsity=0.8"]
    assert groups[0].task == "sac, all 2 environments"
    for j, group in enumerate(groups):
        middle = np.sort(scores[:, j].ravel())[2:-2]
        assert group.estimate("final").value == pytest.approx(middle.mean())
    assert reasons[0] == "sac, sparsity=0.9: no finished run in B-v0"
    assert reasons[1].startswith("sac, sparsity=0.95: final returns: games with different numbers of runs")
    (_, sparse) = compare(groups, {"sparsity": 0.0})
    wins = [np.mean([a > b for a in scores[i, 1] for b in scores[i, 0]]) for i in range(2)]
    assert sparse.probability.value == pytest.approx(np.mean(wins))


def test_what_only_looks_alike_is_not_put_together(tmp_path):
    """Mistake of ours: groups went together by their labels, those of other studies and of True and "True" too."""
    for i, (name, env) in enumerate((("X", "A-v0"), ("Y", "B-v0"))):
        write_run(tmp_path, {"arm": "a", "seed": 0}, [float(i)], env=env, name=name, settings={"n_timesteps": 5})
    assert over_environments(grouping_of(tmp_path).groups)[0] == []
    two = tmp_path / "two"
    for env in ("A-v0", "B-v0"):
        for i, value in enumerate((True, "True", 0.3, 0.1 + 0.2)):
            settings = {"n_timesteps": 50 if env == "A-v0" else 60}
            write_run(two, {"arm": value, "seed": 0}, [float(i)], env=env, folder=f"{env}-{i}", settings=settings)
    grouping = grouping_of(two)
    labels = [group.label for group in grouping.tasks["sac, A-v0"]]
    assert len(set(labels)) == 4
    assert any("of 2 that look alike" in label for label in labels)
    groups, said = over_environments(grouping.groups)
    assert sorted(group.estimate("final").value for group in groups) == [0, 1, 2, 3]
    assert said[0].endswith("put together, though n_timesteps is 50, 60")
    assert len(summarize(read_study(two)).curves["sac, A-v0"]) == 4


def test_algorithms_are_not_put_together(tmp_path):
    list(make_study(tmp_path, widths=(1,), seeds=1, points=(3, 3), algos=("sac", "ddpg")))
    assert over_environments(grouping_of(tmp_path).groups) == ([], [])
