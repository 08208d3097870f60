"""Which runs are put together, and which are kept apart."""

import csv

import numpy as np
import pytest

from sb3_sparse.results.studies.figures import draw_scaling
from sb3_sparse.results.studies.grouping import group_study
from sb3_sparse.results.studies.page import page_data
from sb3_sparse.results.studies.reading import read_study
from sb3_sparse.results.studies.scaling import LEARNABLE, TOTAL, horizontal_axes, place, scaling_lines
from sb3_sparse.results.studies.summary import summarize
from sb3_sparse.results.studies.tables import runs_csv
from tests.results.studies.made import make_study, write_run


def groups_of(folder):
    return group_study(read_study(folder))


def seeds(grouping):
    return {group.label: [run.seed for run in group.runs] for group in grouping.groups}


def test_runs_that_differ_in_their_seed_are_one_group(tmp_path):
    for width in (10, 2, 0.5):
        for seed in (10, 9):
            write_run(tmp_path, {"width": width, "sparsity": 0.5, "seed": seed}, [width + seed])
    grouping = groups_of(tmp_path)
    # In the order of numbers, and without what is the same in all.
    assert seeds(grouping) == {"width=0.5": [9, 10], "width=2": [9, 10], "width=10": [9, 10]}
    assert grouping.axes == ["width", "sparsity"]
    assert grouping.notes == []


def test_numbers_words_and_truths_are_not_each_other(tmp_path):
    for value in (1, "1", True, None, 1.5):
        write_run(tmp_path, {"kind": value, "seed": 0}, [1.0])
    assert len(groups_of(tmp_path).groups) == 5
    # But 1 and 1.0 are one value.
    write_run(tmp_path, {"kind": 1.0, "seed": 1}, [1.0], settings={"hyperparams": {"policy_kwargs": {"kind": 1}}})
    assert len(groups_of(tmp_path).groups) == 5


@pytest.mark.parametrize("axis", ["env", "task", "name"])
def test_axes_that_name_the_task(tmp_path, axis):
    for env in ("A-v0", "B-v0"):
        for width in (1, 2):
            write_run(tmp_path, {axis: env.lower(), "width": width, "seed": 0}, [1.0], env=env)
    grouping = groups_of(tmp_path)
    labels = [(group.env, group.label) for group in grouping.groups]
    if axis == "name":
        assert labels[0] == ("A-v0", "name=a-v0 width=1")
    else:
        assert labels == [("A-v0", "width=1"), ("A-v0", "width=2"), ("B-v0", "width=1"), ("B-v0", "width=2")]


def test_a_task_axis_that_says_more_than_the_environment_stays(tmp_path):
    for task in ("easy", "hard"):
        write_run(tmp_path, {"task": task, "seed": 0}, [1.0])
    assert list(seeds(groups_of(tmp_path))) == ["task=easy", "task=hard"]


def test_other_settings_are_never_merged(tmp_path):
    for seed in range(3):
        write_run(tmp_path, {"width": 1, "seed": seed}, [seed], settings={"hyperparams": {"gamma": 0.9, "tau": {"a": 1}}})
    write_run(tmp_path, {"width": 1, "seed": 0}, [50.0], settings={"hyperparams": {"gamma": 0.99, "tau": {"a": 1}}})
    write_run(tmp_path, {"width": 2, "seed": 0}, [60.0])
    grouping = groups_of(tmp_path)
    assert seeds(grouping) == {
        "width=1 [hyperparams.gamma=0.9]": [0, 1, 2],
        "width=1 [hyperparams.gamma=0.99]": [0],
        "width=2": [0],
    }
    assert grouping.notes == [
        "Mixed settings of sac, Pendulum-v1, width=1: 3 run(s) with hyperparams.gamma=0.9; "
        "1 run(s) with hyperparams.gamma=0.99. They are kept apart."
    ]


def settings_of(axes=None, n_timesteps=1000, callbacks=(), **hyperparams):
    """As plans make them: parts of a run are numbers of steps."""
    kwargs = hyperparams.pop("policy_kwargs", {f"{name}_scale": value for name, value in (axes or {}).items()})
    return {
        "n_timesteps": n_timesteps,
        "hyperparams": {"gamma": 0.99, "policy_kwargs": kwargs, **hyperparams},
        "evaluation": {"every": n_timesteps // 10, "episodes": 2},
        "callbacks": [{"Some": {"log_freq": n_timesteps // 4, "more": True}}, *callbacks],
    }


def test_a_plan_that_was_changed_between_two_values_of_an_axis(tmp_path):
    """Mistake of ours: settings were compared at one place of the axes only, and these lay on one line."""
    for width, gamma in ((1, 0.99), (2, 0.9), (4, 0.9)):
        for seed in range(2):
            settings = settings_of({"width": width}, gamma=gamma)
            write_run(tmp_path, {"width": width, "seed": seed}, [float(width)], settings=settings)
    summary = summarize(read_study(tmp_path))
    assert list(seeds(summary.grouping)) == [
        "width=1 [hyperparams.gamma=0.99]",
        "width=2 [hyperparams.gamma=0.9]",
        "width=4 [hyperparams.gamma=0.9]",
    ]
    assert summary.warnings == [
        "Mixed settings of sac, Pendulum-v1, all runs: 2 run(s) with hyperparams.gamma=0.99 (width=1); "
        "4 run(s) with hyperparams.gamma=0.9 (width=2; width=4). They are kept apart."
    ]
    reasons = [each.reason for each in summary.tasks["sac, Pendulum-v1"]]
    assert reasons == ["is the baseline", *["no run with width=1 of the same other settings: settings are mixed"] * 2]
    lines = scaling_lines(summary.grouping.groups, ["width"], "width")
    assert {name: len(line) for name, line in lines.items()} == {
        "all runs [hyperparams.gamma=0.99]": 1,
        "all runs [hyperparams.gamma=0.9]": 2,
    }


def test_a_plan_that_was_changed_beside_labels(tmp_path):
    """What is still to be made says that no label stands for the change."""
    made = [("a", 1, 0.9, [1.0]), ("a", 2, 0.99, [1.0]), ("b", 1, 0.99, [1.0]), ("b", 2, 0.99, None), ("a", 1, 0.99, None)]
    for arm, width, gamma, returns in made:
        settings = settings_of({"width": width}, gamma=gamma, tau={"a": 1, "b": 2}[arm])
        write_run(tmp_path, {"arm": arm, "width": width, "seed": 0}, returns, settings=settings)
    assert list(seeds(groups_of(tmp_path))) == [
        "arm=a width=1 [hyperparams.gamma=0.9]",
        "arm=a width=2 [hyperparams.gamma=0.99]",
        "arm=b width=1",
    ]


def labels_that_mean_something_else_at_each_width():
    """As in the plan of Figure 2: a network is as sparse as makes it as small as another one."""
    for width, sparsity in ((1, 0), (2, 0), (4, 0), (2, 0.5), (4, 0.7)):
        network = "sparse" if sparsity else "dense"
        settings = settings_of(policy_kwargs={"width_scale": width, "sparsity": sparsity})
        yield {"width": width, "network": network}, settings


def lengths_and_parts_of_them():
    for n_timesteps in (1000, 3000):
        yield {"n_timesteps": n_timesteps}, settings_of(n_timesteps=n_timesteps)


def settings_written_as_python():
    for width in (1, 2):
        kwargs = f"dict(activation_fn=nn.ReLU, width_scale={width})"
        yield {"policy_kwargs.width_scale": width}, settings_of(policy_kwargs=kwargs)


def an_arm_without_the_axes_of_the_others():
    for width in (1, 2):
        yield {"width": width, "arm": "ours"}, settings_of({"width": width})
    yield {"arm": "SB3"}, settings_of(policy="MlpPolicy", policy_kwargs={})


def a_block_with_an_axis_more():
    for axes in ({"width": 1}, {"width": 2}, {"width": 1, "depth": 2}, {"width": 1, "depth": 3}):
        yield axes, settings_of({"depth": 1, **axes})


def labels_with_callbacks():
    for width in (1, 2):
        for reset, callbacks in (("none", ()), ("full", ["Reset"])):
            yield {"width": width, "reset": reset}, settings_of({"width": width}, callbacks=callbacks)


@pytest.mark.parametrize(
    "made",
    [
        labels_that_mean_something_else_at_each_width,
        lengths_and_parts_of_them,
        settings_written_as_python,
        an_arm_without_the_axes_of_the_others,
        a_block_with_an_axis_more,
        labels_with_callbacks,
    ],
)
def test_what_axes_stand_for_is_not_mixed(made, tmp_path):
    for axes, settings in made():
        write_run(tmp_path, {**axes, "seed": 0}, [1.0], settings=settings)
    summary = summarize(read_study(tmp_path))
    assert not any(group.variant for group in summary.grouping.groups)
    assert [line for line in summary.warnings if line.startswith("Mixed evaluation")] == []
    assert summary.grouping.notes == []


def test_studies_are_never_merged(tmp_path):
    write_run(tmp_path, {"width": 1, "seed": 0}, [1.0], name="first", folder="a")
    write_run(tmp_path, {"width": 1, "seed": 0}, [1.0], name="second", folder="b")
    assert seeds(groups_of(tmp_path)) == {"width=1 [study=first]": [0], "width=1 [study=second]": [0]}


def test_a_run_that_is_there_twice_counts_once(tmp_path):
    write_run(tmp_path, {"width": 1, "seed": 0}, [1.0], folder="a")
    write_run(tmp_path, {"width": 1, "seed": 0}, [1.0], folder="copy_of_a")
    grouping = groups_of(tmp_path)
    assert list(seeds(grouping).values()) == [[0]]
    assert grouping.notes == ["'copy_of_a' has the settings and the seed of 'a': it is left out."]


def test_the_same_run_under_other_labels_is_said(tmp_path):
    settings = {"hyperparams": {}}
    write_run(tmp_path, {"gamma": 0.9, "seed": 0}, [1.0], settings=settings, folder="a")
    write_run(tmp_path, {"discount": 0.9, "seed": 0}, [1.0], settings=settings, folder="b")
    write_run(tmp_path, {"discount": 0.9, "seed": 1}, [1.0], settings=settings, folder="c")
    (note,) = groups_of(tmp_path).notes
    assert note.startswith("'b' has the settings and the seed of 'a', under other labels")


def test_only_finished_runs_count(tmp_path):
    write_run(tmp_path, {"width": 1, "seed": 0}, [1.0])
    write_run(tmp_path, {"width": 1, "seed": 1}, evaluations=([1, 2], [1.0, 2.0]))
    write_run(tmp_path, {"width": 1, "seed": 2}, failed="no")
    assert list(seeds(groups_of(tmp_path)).values()) == [[0]]


def test_a_metric_that_a_run_lacks_is_none_of_the_group(tmp_path):
    write_run(tmp_path, {"seed": 0}, [1.0], evaluations=([1, 2], [1.0, 2.0]))
    write_run(tmp_path, {"seed": 1}, [1.0])
    (group,) = groups_of(tmp_path).groups
    assert group.metrics == ["final"]
    assert group.curves() == {}


def test_what_diverged_has_no_end(tmp_path):
    """Mistake of ours: the last finite number stood for the end of training."""
    steps, nan = [100, 200, 300, 400], float("nan")
    healthy = {"timesteps": steps, "critic_srank": [5, 4, 3, 2], "critic_fau": [1, nan, 1, 1], "never": [nan] * 4}
    write_run(tmp_path, {"seed": 0}, [1.0], evaluations=(steps, [1.0, 2, 3, 4]), plasticity=healthy)
    write_run(
        tmp_path,
        {"seed": 1},
        [1.0],
        evaluations=(steps, [9.0, 8.0, nan, 7.0]),
        plasticity={**healthy, "critic_srank": [9, 9, nan, nan], "critic_fau": [1, 1, 1, np.inf]},
        folder="sick",
    )
    study = read_study(tmp_path)
    (group,) = group_study(study).groups
    assert group.runs[0].values == {
        "final": 1,
        "best": 4,
        "area": 2.5,
        "plasticity/critic_srank": 2,
        "plasticity/critic_fau": 1,
    }
    assert group.runs[1].values == {"final": 1}
    assert group.metrics == ["final"]
    (said,) = [line for line in summarize(study).warnings if "sick" in line]
    assert said.startswith(
        "sick has no finite number in critic_srank (step 300), critic_fau (step 400), evaluations (step 300)"
    )


def test_what_did_not_begin_with_a_number_has_no_first_one(tmp_path):
    """Mistake of ours: the first finite number stood for the first measurement."""
    steps, nan, inf = [100, 200, 300], float("nan"), float("inf")
    series = {"whole": [3, 1, 2], "infinite": [inf, 1, 2], "late": [nan, nan, 2], "lost": [4, nan, inf], "never": [nan] * 3}
    write_run(tmp_path, {"seed": 0}, [1.0], plasticity={"timesteps": steps, **series})
    write_run(tmp_path, {"seed": 1})
    study = read_study(tmp_path)
    finished, unfinished = csv.DictReader(runs_csv(study, group_study(study).groups, []).splitlines())
    cells = {name: (finished.get(f"first_{name}"), finished.get(f"final_{name}")) for name in series}
    assert cells == {
        "whole": ("3.0", "2.0"),
        "infinite": ("", "2.0"),
        "late": ("", "2.0"),
        "lost": ("4.0", None),
        "never": (None, None),
    }
    assert unfinished["first_whole"] == ""


def test_curves_are_means_over_runs(tmp_path):
    steps = np.arange(1, 301) * 10
    for seed in range(4):
        columns = {"timesteps": steps, "critic_srank": steps * (seed + 1.0)}
        write_run(tmp_path, {"seed": seed}, [1.0], evaluations=([100, 200, 300], [seed, 2.0 * seed, 3.0]), plasticity=columns)
    (group,) = groups_of(tmp_path).groups
    curves = group.curves()
    assert curves["return"].mean.tolist() == [1.5, 3.0, 3.0]
    series = curves["plasticity/critic_srank"]
    assert len(series.x) == len(series.low) == 50
    assert (series.x[0], series.x[-1]) == (10, 3000)
    np.testing.assert_allclose(series.mean, 2.5 * series.x)
    assert (series.low < series.mean).all()
    assert (series.mean < series.high).all()


def test_lines_of_scaling_curves(tmp_path):
    list(make_study(tmp_path, widths=(4, 1, 2), sparsities=(0.0, 0.75), seeds=2, points=(3, 3)))
    grouping = groups_of(tmp_path)
    assert horizontal_axes(grouping.groups, grouping.axes) == [TOTAL, LEARNABLE, "width", "sparsity"]

    def lines(horizontal):
        found = scaling_lines(grouping.groups, grouping.axes, horizontal)
        return {name: [place(group, horizontal) for group in groups] for name, groups in found.items()}

    assert lines(TOTAL) == {"sparsity=0": [4e3, 16e3, 64e3], "sparsity=0.75": [4e3, 16e3, 64e3]}
    assert lines(LEARNABLE) == {"sparsity=0": [4e3, 16e3, 64e3], "sparsity=0.75": [1e3, 4e3, 16e3]}
    assert lines("width") == {"sparsity=0": [1, 2, 4], "sparsity=0.75": [1, 2, 4]}
    assert lines("sparsity") == {"width=1": [0, 0.75], "width=2": [0, 0.75], "width=4": [0, 0.75]}


def test_no_line_joins_labels(tmp_path):
    for size, total in (("small", 1), ("large", 2)):
        write_run(tmp_path, {"arm": size, "seed": 0, "width": total}, [1.0], settings={"hyperparams": {"size": total}})
    grouping = groups_of(tmp_path)
    assert set(scaling_lines(grouping.groups, ["arm"], TOTAL)) == {"arm=small", "arm=large"}
    assert set(scaling_lines(grouping.groups, ["width"], TOTAL)) == {"all runs"}


def test_lines_keep_settings_and_other_axes_apart(tmp_path):
    for width in (1, 2):
        for net in ("a", "b"):
            write_run(tmp_path, {"width": width, "net": net, "seed": 0}, [1.0])
    write_run(tmp_path, {"width": 2, "net": "a", "seed": 1}, [1.0], settings={"hyperparams": {}})
    grouping = groups_of(tmp_path)
    # Words are no axis to draw against.
    assert horizontal_axes(grouping.groups, grouping.axes) == [TOTAL, LEARNABLE, "width"]
    lines = scaling_lines(grouping.groups, grouping.axes, TOTAL)
    assert {name: len(groups) for name, groups in lines.items() if "[" not in name} == {"net=a": 1, "net=b": 2}
    assert len([name for name in lines if name.startswith("net=a [")]) == 2


def test_an_axis_that_some_groups_lack_is_drawn_for_the_others(tmp_path):
    """As depth in the paper's Figure 2, or any axis beside an arm of SB3's."""
    for axes in ({"width": 1}, {"width": 2, "depth": 2}, {"width": 2, "depth": 3}):
        write_run(tmp_path, {**axes, "seed": 0}, [1.0])
    summary = summarize(read_study(tmp_path))
    assert summary.horizontals == [TOTAL, LEARNABLE, "width", "depth"]
    grouping = summary.grouping
    lines = scaling_lines(grouping.groups, grouping.axes, "depth")
    assert [[place(group, "depth") for group in line] for line in lines.values()] == [[2, 3]]
    (task,) = page_data(summary)["tasks"]
    assert ["depth" in group["x"] for group in task["groups"]] == [group["axes"]["depth"] != "–" for group in task["groups"]]
    assert draw_scaling(summary.groups, grouping.axes, summary.horizontals).axes
