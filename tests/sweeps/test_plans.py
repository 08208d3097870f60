"""The plans that come with the package."""

import re
from pathlib import Path

import pytest

import sb3_sparse.sweeps
from sb3_sparse.common.model_report import trained_networks
from sb3_sparse.results.studies.grouping import group_study
from sb3_sparse.results.studies.reading import Result, Study, StudyRun
from sb3_sparse.sparse import sparsity_report
from sb3_sparse.sweeps.planning.measure import measure
from sb3_sparse.sweeps.planning.plan import read_plan
from sb3_sparse.zoo import named_class, untrained_agent

FOLDER = Path(sb3_sparse.sweeps.__file__).parent / "plans"
PLANS = sorted(FOLDER.rglob("*.yml"))
# Of the paper's figures, those of training. 14 to 16 show the runs of 1 and 2, 7 and 9 those of 5, 11 those of 10, 13 and 17
# those of 12. Figure 8 is about networks before training: examples/simplicity_bias.py.
FIGURES = ["01", "02", "03", "04", "05", "06", "10", "12", "18"]


def test_every_figure_has_a_plan_and_a_small_one():
    for folder in (FOLDER, FOLDER / "small"):
        assert {f"figure_{number}.yml" for number in FIGURES} <= {path.name for path in folder.glob("*.yml")}


@pytest.mark.parametrize("path", PLANS, ids=lambda path: str(path.relative_to(FOLDER)))
def test_plans_can_be_read(path):
    plan = read_plan(path)
    assert plan.study == path.stem if path.parent == FOLDER else plan.study.endswith(path.stem)
    seeds = {run.settings["seed"] for run in plan.runs}
    assert len(seeds) >= 2
    assert len(plan.runs) % len(seeds) == 0
    for run in plan.runs[:20]:
        for callback in run.settings["callbacks"]:
            ((name, kwargs),) = callback.items()
            named_class(name)(**kwargs)
    # When they are done, a report does not take what the plan wants for settings that were changed meanwhile.
    grouping = group_study(Study(path.parent, [finished(run, plan.study) for run in plan.runs], []))
    assert grouping.notes == []
    assert not any(group.variant for group in grouping.groups)


def finished(run, study):
    result = Result([1.0], {}, 1.0, run.settings["n_timesteps"], None, {}, {}, {})
    return StudyRun(Path(run.name), study, run.axes, run.settings, run.hash, "", [], result, None)


def test_the_page_says_how_many_runs_a_plan_has():
    page = (Path(__file__).parents[2] / "docs" / "studies.md").read_text()
    said = {}
    for name, large, small in re.findall(r"^\| `([\w/]+)` \|.*\| ?([\d,]*) \| (\d+) \|$", page, flags=re.MULTILINE):
        said[f"small/{name.removeprefix('small/')}"] = small
        if large:
            said[name] = large.replace(",", "")
    assert said == {str(path.relative_to(FOLDER).with_suffix("")): str(len(read_plan(path).runs)) for path in PLANS}


def learnable(run):
    """Parameters of both networks of a run of SAC that exist."""
    model = untrained_agent(
        run.settings["algo"], run.settings["env"], hyperparams=run.settings["hyperparams"], seed=0, device="cpu"
    )
    return sum(sparsity_report(network).learnable_parameters for network in trained_networks(model).values())


def test_equal_learnable_parameters():
    runs = [run for run in read_plan(FOLDER / "small/figure_02.yml").runs if run.settings["seed"] == 0]
    sizes = {run.axes["network"]: learnable(run) for run in runs}
    assert sizes["W0.5 dense"] == 1_094_349
    for name, size in sizes.items():
        assert size == pytest.approx(sizes["W0.5 dense"], rel=0.002), name
    others = {run.axes["network"]: run for run in read_plan(FOLDER / "small/figure_05.yml").runs}
    assert learnable(others["W1 S=0.75"]) == pytest.approx(learnable(others["W0.5 dense"]), rel=0.002)


@pytest.mark.full
@pytest.mark.parametrize("path", sorted((FOLDER / "small").glob("*.yml")), ids=lambda path: path.stem)
def test_small_plans_can_be_trained(path):
    runs = {
        str(sorted((name, label) for name, label in run.axes.items() if name != "seed")): run for run in read_plan(path).runs
    }
    for run in runs.values():
        assert measure(run.settings, 1, 0.5).seconds_per_step > 0
