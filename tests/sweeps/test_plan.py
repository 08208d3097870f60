"""What runs come of a plan."""

import datetime
import json

import pytest
import yaml

from sb3_sparse.sweeps.planning.paths import set_by_path
from sb3_sparse.sweeps.planning.plan import PlannedRun, checkpoint_steps, make_plan, read_plan, steps_of
from sb3_sparse.sweeps.planning.yaml_plain import read_yaml, write_yaml
from sb3_sparse.sweeps.study import Study
from sb3_sparse.zoo import hyperparams_file, packaged_hyperparams

SAC = {"algo": "sac", "env": "Pendulum-v1"}
MLP = {"hyperparams": {"policy": "MlpPolicy", "policy_kwargs": {}}}


def hyperparams(plan, **axes):
    (run,) = [run for run in plan.runs if axes.items() <= run.axes.items()]
    return run.settings["hyperparams"]


def test_axes_make_every_combination_with_one_seed_of_all_first():
    plan = make_plan({**SAC, "axes": {"sparsity": [0, 0.8], "width": [0.25, 0.5, 1], "seed": 2}})
    assert [tuple(run.axes.values()) for run in plan.runs] == [
        (sparsity, width, seed) for seed in (0, 1) for sparsity in (0, 0.8) for width in (0.25, 0.5, 1)
    ]
    assert hyperparams(plan, sparsity=0.8, width=0.5, seed=1)["policy_kwargs"] == {
        "width_scale": 0.5,
        "sparsity": 0.8,
        "n_critics": 1,
    }


def test_settings_are_those_of_the_packaged_file_where_the_plan_says_nothing():
    plan = make_plan({**SAC, "hyperparams": {"gamma": 0.5, "policy_kwargs.depth_scale": 2}})
    packaged = yaml.safe_load(hyperparams_file("sac").read_text())["Pendulum-v1"]
    (run,) = plan.runs
    assert run.settings["n_timesteps"] == packaged.pop("n_timesteps")
    packaged["gamma"] = 0.5
    packaged["policy_kwargs"]["depth_scale"] = 2
    assert run.settings["hyperparams"] == packaged
    assert packaged_hyperparams("sac", "Pendulum-v1")["gamma"] == 0.99


def test_an_axis_of_labels_changes_anything_and_blocks_add_runs():
    plan = make_plan(
        {
            **SAC,
            "n_timesteps": 1000,
            "callbacks": [{"sb3_sparse.PlasticityCallback": {"log_freq": "50%"}}],
            "axes": {
                "arm": {
                    "ours": {},
                    "resets": {"callbacks": [{"sb3_sparse.ResetCallback": {"at": ["25%", "50%"]}}]},
                    "mlp": {"hyperparams": {"policy": "MlpPolicy", "policy_kwargs": {}}, "n_timesteps": 500},
                },
            },
            "also": [{"algo": "td3", "axes": {"width": [2]}, "hyperparams": {"policy_kwargs.sparsity": 0.5}}],
        }
    )
    runs = {str(run.axes.get("arm", "also")): run.settings for run in plan.runs}
    assert [*runs] == ["ours", "resets", "mlp", "also"]
    assert runs["resets"]["callbacks"] == [
        {"sb3_sparse.PlasticityCallback": {"log_freq": 500}},
        {"sb3_sparse.ResetCallback": {"at": [250, 500]}},
    ]
    assert runs["mlp"]["callbacks"] == [{"sb3_sparse.PlasticityCallback": {"log_freq": 250}}]
    assert runs["mlp"]["hyperparams"]["policy_kwargs"] == {}
    assert runs["also"]["algo"] == "td3"
    assert (
        runs["also"]["hyperparams"]["policy_kwargs"] | {"width_scale": 2, "sparsity": 0.5}
        == (runs["also"]["hyperparams"]["policy_kwargs"])
    )


def test_the_width_of_drqv2_is_that_of_its_critic():
    # Read without an environment of pictures, which this algorithm needs only when it is built.
    plan = make_plan({"algo": "drqv2", "env": "CartPole-v1", "axes": {"width": [4]}, "n_timesteps": 10})
    assert plan.runs[0].settings["hyperparams"]["policy_kwargs"]["critic_width_scale"] == 4


def test_a_name_is_a_function_of_the_settings_alone():
    first = make_plan({**SAC, "axes": {"sparsity": [0.0, 0.8], "seed": [3]}})
    # Another order, another way to write the same numbers, more of what changes no result.
    other = make_plan(
        {
            **{"axes": {"seed": [3], "sparsity": [0.8, 0]}, "threads": 2, "checkpoint_every": 7},
            **{"env": "Pendulum-v1", "algo": "sac"},
        }
    )
    assert {run.hash for run in first.runs} == {run.hash for run in other.runs}
    changed = make_plan({**SAC, "hyperparams": {"gamma": 0.98}, "axes": {"sparsity": [0.0, 0.8], "seed": [3]}})
    assert not {run.name for run in changed.runs} & {run.name for run in first.runs}


def test_the_name_of_a_run_is_the_same_in_every_version():
    run = PlannedRun({"width": 0.5, "arm": "a b/c", "seed": 0}, {"seed": 0, "x": [1.0, None, True, {"b": 1e-4, "a": "ä"}]})
    # A run that is done would be made again by whoever has another one.
    assert run.name == "width-0.5_arm-a-b-c_seed-0-70292f582d"


def test_more_seeds_are_new_runs_and_the_old_ones_stay():
    few, more = (make_plan({**SAC, "axes": {"seed": seeds}}) for seeds in (2, 4))
    assert [run.name for run in more.runs][:2] == [run.name for run in few.runs]


def test_a_run_that_two_blocks_name_is_made_once():
    plan = make_plan({**SAC, "axes": {"sparsity": [0, 0.8]}, "also": [{"axes": {"sparsity": [0.8, 0.9]}}]})
    assert [run.axes["sparsity"] for run in plan.runs] == [0, 0.8, 0.9]


def test_nothing_of_a_plan_is_evaluated(tmp_path):
    mark = tmp_path / "mark"
    code = f"__import__('pathlib').Path({str(mark)!r}).touch()"
    for name in ("policy_kwargs", "normalize", "replay_buffer_class", "monitor_kwargs", "replay_buffer_kwargs", "env_kwargs"):
        make_plan({**SAC, "hyperparams": {name: code}})
    with pytest.raises(ValueError, match="Nothing else is run"):
        make_plan({**SAC, "hyperparams": {"policy_kwargs": code, "policy_kwargs.sparsity": 0.5}})
    assert not mark.exists()


@pytest.mark.parametrize(("value", "steps"), [("25%", 250), ("0.01%", 1), ("100 %", 1000), (7, 7), (1e2, 100)], ids=str)
def test_steps(value, steps):
    assert steps_of("every", value, 1000) == steps


def test_steps_between_checkpoints():
    assert [checkpoint_steps(None, n) for n in (300, 9_999, 50_000)] == [1_000, 1_000, 5_000]
    assert [checkpoint_steps(given, 300) for given in ("10%", 50)] == [30, 50]


@pytest.mark.parametrize("value", ["x", "-5%", 0, -1, 1.5, None, "5"], ids=str)
def test_no_steps(value):
    with pytest.raises(ValueError, match="every="):
        steps_of("every", value, 1000)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"axis": {}}, "no entry 'axis'.*'axes'"),
        ({"algo": "sax"}, "algo='sax': expected one of"),
        ({"env": "Pendulum-v9"}, "unknown environment 'Pendulum-v9'"),
        ({"algo": None}, "algo=None: expected a name"),
        ({"study": "a/b"}, "study='a/b'"),
        ({"axes": {"width": 2}}, "axes.width=2: expected a list"),
        ({"axes": {"width": []}}, "axes.width has no values"),
        ({"axes": {"width": [1, 1.0]}}, "axes.width: 1 stands there twice"),
        ({"axes": {"net": [[64]]}}, "give it a label"),
        ({"axes": {"arm": {"a": {"gamma": 1}}}}, "axes.arm.a has no entry 'gamma'"),
        ({"axes": {"seed": [-1]}}, r"axes.seed\[0\]=-1"),
        ({"axes": {"seed": 0}}, "axes.seed=0"),
        ({"axes": {"seed": []}}, "axes.seed has no values"),
        ({"axes": {"seed": None}}, "axes.seed=None: expected a number of seeds"),
        ({"axes": {"seed": "3"}}, "axes.seed='3': expected a number of seeds"),
        ({"axes": {"seed": {0: {"hyperparams": {"gamma": 0.5}}, 1: {}}}}, "axes.seed=.*expected a number of seeds"),
        ({"axes": {"arm": {"a": {"seed": 5}, "b": {"seed": 6}}}}, "axes.arm.a has a seed: seeds are an axis of their own"),
        ({"axes": {"seed": 2, "arm": {"a": {"seed": 5}}}}, "axes.arm.a has a seed"),
        ({"axes": {"arm": {"a": {}, "b": {}}, "seed": 2}}, r"axes: arm=a and arm=b are the same run \(of seed=0\)"),
        (
            {"axes": {"sparsity": [0, 0.9], "arm": {"ours": {}, "SB3": MLP}}},
            "axes.sparsity: 0 means policy_kwargs.sparsity=0.*a block of `also`",
        ),
        ({"axes": {"gamma": [1, True]}}, "axes.gamma: True stands there twice, as 1 and True"),
        ({"axes": {"normalize": [0, False, True]}}, "twice, as 0 and False"),
        ({"axes": {"gamma": [float("nan")]}}, "axes.gamma: nan is no finite number"),
        ({"axes": {"arm": {float("nan"): {}}}}, "axes.arm: nan is no finite number"),
        ({"axes": {"arm": {datetime.date(2024, 1, 1): {}}}}, r"axes.arm: datetime.date\(2024, 1, 1\) is no number or word"),
        ({"axes": {"arm": {1: {}, "1": MLP}}}, "axes.arm: 1 stands there twice, as 1 and '1'"),
        ({"axes": {"arm": {1: {}}}, "also": [{"axes": {"arm": {"1": MLP}}}]}, "axes.arm has 1 and '1', which reports cannot"),
        (
            {"axes": {"arm": {1: {}}}, "also": [{"axes": {"arm": {True: MLP}}}]},
            "axes.arm has 1 and True, which reports cannot",
        ),
        ({"hyperparams": {"seed": 7}}, "hyperparams.seed=7 is none .*: seeds are an axis, axes.seed"),
        *(
            ({"hyperparams": {"replay_buffer_kwargs": given}}, "storage_path='s' .* every run would learn from the steps of")
            for given in ({"storage_path": "s"}, "dict(storage_path='s')")
        ),
        *(
            ({"hyperparams": {name: 7}}, f"hyperparams.{name}=7 is none of the algorithm's: ")
            for name in ("n_timesteps", "device", "verbose", "tensorboard_log", "exact_checkpoint_freq")
        ),
        (
            {"axes": {"arm": {"a": {"hyperparams": {"n_timesteps": 7}}}}},
            "n_timesteps=7 is none .*beside hyperparams",
        ),
        (
            {"axes": {"gamma": [0.9], "arm": {"b": {"hyperparams": {"gamma": 0.5}}}}},
            "gamma: 0.9 means gamma=0.9, which",
        ),
        ({"axes": {"arm": {"a": {"hyperparams": {"gamma": 0.5}}}, "gamma": [0.9]}}, r"axes.arm: a means gamma=0.5, which has"),
        (
            {"axes": {"width": [0.1], "policy_kwargs.width_scale": [0.2]}},
            "axes.width: 0.1 means policy_kwargs.width",
        ),
        ({"axes": {"width": [0.1], "arm": {"SB3": MLP}}}, "axes.width: 0.1 means policy_kwargs.width"),
        # Mistake of ours: in this order SB3's policy got the keyword, and its runs failed.
        ({"axes": {"arm": {"SB3": MLP}, "width": [0.1]}}, "axes.arm: SB3 means policy_kwargs={}, which has another value"),
        (
            {
                "axes": {
                    "arm": {"a": {"hyperparams": {"policy_kwargs": {"sparsity": 0}, "policy_kwargs.rescale": True}}},
                    "sparsity": [0.5],
                }
            },
            "axes.arm: a means policy_kwargs={'sparsity': 0}, which",
        ),
        (
            {"axes": {"arm": {"SB3": {"hyperparams": {"policy_kwargs": None}}}, "width": [0.1]}},
            "axes.arm: SB3 means policy_kwargs=None, which",
        ),
        (
            {"axes": {"n_timesteps": [5], "arm": {"a": {"n_timesteps": 7}}}},
            "axes.n_timesteps: 5 means .*, which is 7",
        ),
        (
            {"axes": {"a": {1: {"evaluation": {"episodes": 1}}}, "b": {1: {"evaluation": {"episodes": 2}}}}},
            "axes.a: 1 means evaluation",
        ),
        ({"evaluation": {"every": "0%"}}, "evaluation.every='0%': expected a part of the run"),
        ({"n_timesteps": 100, "evaluation": {"every": 101}}, "evaluation.every=101: the run has 100 steps, and would never"),
        ({"evaluation": {"every": "150%"}}, "evaluation.every='150%': expected a part of the run"),
        ({"axes": {"seed": [2**32 - 1]}}, "seed=4294967295"),
        ({"hyperparams": {1: 2}}, "hyperparams: 1 is no name of a setting"),
        ({"hyperparams": {True: 2}}, "hyperparams: True is no name of a setting"),
        ({"hyperparams": {"policy_kwargs..sparsity": 2}}, "hyperparams: 'policy_kwargs..sparsity' is no name of a setting"),
        ({"axes": {"policy_kwargs.": [2]}}, "hyperparams: 'policy_kwargs.' is no name of a setting"),
        ({"checkpoint_every": "often"}, "checkpoint_every='often': expected a positive whole number, or a part of the run"),
        ({"checkpoint_every": 0}, "checkpoint_every=0"),
        ({"checkpoint_every": [1]}, r"checkpoint_every=\[1\]"),
        ({"device": "gpu"}, "device='gpu': expected auto, cpu, cuda"),
        ({"device": 5}, "device=5"),
        ({"axes": {"device": ["cpu", "gpu"]}}, "device='gpu'"),
        ({"callbacks": "x"}, "callbacks='x': expected a list"),
        ({"callbacks": [{"a": {}, "b": {}}]}, "expected a list of names"),
        ({"evaluation": {"freq": 3}}, "evaluation has no entry 'freq'"),
        ({"evaluation": {"episodes": 0}}, "evaluation.episodes=0"),
        ({"evaluation": {"epsilon": 2}}, "evaluation.epsilon=2"),
        ({"evaluation": {"stop_at": "x"}}, "evaluation.stop_at='x'"),
        ({"evaluation": {"stop_after": 0}}, "evaluation.stop_after=0"),
        ({"evaluation": {"stop_after": 1, "every": 0}}, "need evaluations"),
        ({"hyperparams": {"gamma.x": 1}}, "gamma is 0.99, which has no entry 'x'"),
        ({"hyperparams": {"gamma": float("nan")}}, "no plain data"),
        ({"n_timesteps": 0}, "n_timesteps=0"),
        ({"threads": 0}, "threads=0"),
        ({"gpus": -1}, "gpus=-1"),
        ({"also": 3}, "also=3: expected a list"),
        ({"also": [{"study": "x"}]}, r"also\[0\] has no entry 'study'"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_wrong_plans(changes, message):
    with pytest.raises(ValueError, match=message):
        make_plan({**SAC, **changes})


def test_axes_that_set_the_same_alike_or_beside_each_other():
    dense = {"hyperparams": {"policy_kwargs": {"width_scale": 1, "sparsity": 0}}}
    as_text = {"hyperparams": {"policy_kwargs": "dict(width_scale=1, activation_fn=nn.ReLU)"}}
    axes = {"arm": {"dense": dense, "text": as_text}, "width": [1], "policy_kwargs.n_critics": [1], "gamma": [0.9]}
    one, other = make_plan({**SAC, "axes": axes}).runs
    assert one.settings["hyperparams"]["policy_kwargs"] == {"width_scale": 1, "sparsity": 0, "n_critics": 1}
    assert "n_critics" in other.settings["hyperparams"]["policy_kwargs"]
    emptied = {"hyperparams": {"policy_kwargs": {}, "policy_kwargs.width_scale": 1}}
    (run,) = make_plan({**SAC, "axes": {"arm": {"emptied": emptied}, "width": [1]}}).runs
    assert run.settings["hyperparams"]["policy_kwargs"] == {"width_scale": 1}
    # Mistake of ours: 1 and 1.0 were two values.
    (run,) = make_plan({**SAC, "axes": {"arm": {"a": {"hyperparams": {"gamma": 1}}}, "gamma": [1.0]}}).runs
    assert run.settings["hyperparams"]["gamma"] == 1
    # Blocks and the plan itself may be changed by any axis.
    plan = make_plan({**SAC, "hyperparams": {"gamma": 0.5}, "axes": {"gamma": [0.9]}})
    assert plan.runs[0].settings["hyperparams"]["gamma"] == 0.9


def test_a_run_keeps_its_folder_and_the_labels_of_its_first_block(tmp_path):
    """Mistake of ours: axes in another order made all runs again, and a later block took the labels away."""
    axes = {"gamma": [0.5, 0.9], "width": [0.1], "seed": 2}
    study = Study(make_plan({**SAC, "axes": axes}), tmp_path)
    study.prepare(study.plan.runs, "test")
    turned = Study(make_plan({**SAC, "axes": {"seed": 2, "width": [0.1], "gamma": [0.5, 0.9]}}), tmp_path)
    assert {turned.folder(run).path for run in turned.plan.runs} == {study.folder(run).path for run in study.plan.runs}
    assert {run.name for run in turned.plan.runs}.isdisjoint({run.name for run in study.plan.runs})
    turned.prepare(turned.plan.runs, "test")
    assert len([*turned.runs.iterdir()]) == 4
    # Another label is another run.
    renamed = Study(make_plan({**SAC, "axes": {"seed": 2, "policy_kwargs.width_scale": [0.1], "gamma": [0.5]}}), tmp_path)
    assert not any(renamed.folder(run).path.exists() for run in renamed.plan.runs)
    also = [{"hyperparams": {"gamma": 0.5, "policy_kwargs.width_scale": 0.1}}]
    plan = make_plan({**SAC, "axes": axes, "also": also})
    assert len(plan.runs) == 4
    assert all(set(run.axes) == {"gamma", "width", "seed"} for run in plan.runs)


def test_a_file_is_named_in_what_is_wrong_with_it(tmp_path):
    path = tmp_path / "plan.yml"
    path.write_text("algo: sac\nenv: Pendulum-v1\nhyperparams: {learning_rate: 1e-4}\naxes: {seed: 2}\n")
    plan = read_plan(path)
    assert plan.study == "plan"
    assert plan.runs[0].settings["hyperparams"]["learning_rate"] == 1e-4
    path.write_text("algo: sac\nalgo: td3\n")
    with pytest.raises(ValueError, match=r"plan.yml is no YAML.*'algo' stands twice in one mapping, line 2"):
        read_plan(path)
    path.write_text("algo: sac\n")
    with pytest.raises(ValueError, match=r"plan.yml: env=None"):
        read_plan(path)
    path.write_text("a: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(ValueError, match="no YAML of plain data"):
        read_plan(path)
    path.write_text("axes: {arm: [2024-13-45]}\n")
    with pytest.raises(ValueError, match=r"plan\.yml is no YAML of plain data: month must be"):
        read_plan(path)
    with pytest.raises(ValueError, match=r"missing\.yml cannot be read"):
        read_plan(tmp_path / "missing.yml")


def test_yaml_numbers_and_merges(tmp_path):
    path = tmp_path / "a.yml"
    path.write_text("a: &a {x: 1e-4, y: 1E+3, z: -2.5e-3}\nb: {<<: *a, y: 2}\nc: e-4\nd: 1e\nf: '1e-4'\n")
    assert read_yaml(path) == {
        "a": {"x": 1e-4, "y": 1000.0, "z": -2.5e-3},
        "b": {"x": 1e-4, "y": 2, "z": -2.5e-3},
        "c": "e-4",
        "d": "1e",
        "f": "1e-4",
    }


ODD = [
    "1e3",
    "-1E-4",
    "+2.5e+3",
    "1_0e2",
    "1.e5",
    "0x10",
    "0o7",
    "017",
    "1:30",
    "12_000",
    "on",
    "YES",
    "n",
    "~",
    "null",
    "Null",
]
ODD += [
    ".nan",
    ".inf",
    "-.Inf",
    "1.",
    "1.0",
    "-",
    "- a",
    "? a",
    "=",
    "<<",
    "&a",
    "*a",
    "!a",
    "%a",
    "@a",
    "`a`",
    "a: b",
    "a #b",
]
ODD += [
    "#a",
    "'a",
    '"',
    "a'b",
    "",
    " ",
    " a ",
    "a\nb",
    "a\n",
    "\ta",
    "\ufeff",
    "ширина",
    "ä/ö",
    "🦊",
    "2024-01-01",
    "{}",
    "[a]",
    "|",
    ">",
]
ODD += [
    "x" * 300,
    "a  b " * 40,
    "2001-12-14t21:59:43.10-05:00",
    "---",
    "...",
    "true",
    "a,b",
    "0",
    "1e",
    "e-4",
    "\x85",
    "\u2028",
]


def test_what_is_written_is_read_back(tmp_path):
    path = tmp_path / "a.yml"
    content = {
        "names": {text: i for i, text in enumerate(ODD)},
        "values": ODD,
        "numbers": [1e-4, 1e3, 1e22, 1e-300, -0.5, True, None],
    }
    write_yaml(path, content)
    assert read_yaml(path) == content
    assert [type(value) for value in read_yaml(path)["numbers"]] == [type(value) for value in content["numbers"]]


def test_the_plan_of_a_study_is_the_plan(tmp_path):
    labels = [text for text in ODD if text]
    arms = {text: {"hyperparams": {"gamma": i / 100}} for i, text in enumerate(labels)}
    plan = make_plan({**SAC, "study": "1e3", "axes": {"arm": arms}})
    write_yaml(tmp_path / "plan.yml", {"study": plan.study, **plan.content})
    again = read_plan(tmp_path / "plan.yml")
    assert again.study == "1e3"
    assert [run.name for run in again.runs] == [run.name for run in plan.runs]
    assert [run.axes for run in again.runs] == [run.axes for run in plan.runs]


@pytest.mark.parametrize(
    ("one", "other"),
    [("on", "yes"), ("1", "1.0"), ("16", "0x10"), ("~", "null"), ("1e3", "1000"), ("true", "1"), ("a", "'a'")],
)
def test_names_that_are_equal_as_values_are_no_two_names(tmp_path, one, other):
    path = tmp_path / "plan.yml"
    path.write_text(f"algo: sac\nenv: Pendulum-v1\naxes:\n  arm:\n    {one}: {{}}\n    {other}: {{n_timesteps: 9}}\n")
    with pytest.raises(ValueError, match=r"same name|stands twice") as raised:
        read_plan(path)
    assert repr(one) in str(raised.value)
    assert repr(other.strip("'")) in str(raised.value)
    assert "line 6" in str(raised.value)


def test_a_list_is_no_name(tmp_path):
    (tmp_path / "plan.yml").write_text("? [a, b]\n: 1\n")
    with pytest.raises(ValueError, match=r"\['a', 'b'\] is no name, line 1"):
        read_yaml(tmp_path / "plan.yml")


def test_paths():
    before = {"a": {"b": 1}, "text": "dict(activation_fn=nn.ReLU, net_arch=[2])"}
    after = set_by_path(before, {"a.c.d": 2, "text.net_arch": [4], "e": {"f": 1}, "e.g": 2})
    assert after == {
        "a": {"b": 1, "c": {"d": 2}},
        "text": "{'activation_fn': nn.ReLU, 'net_arch': [4]}",
        "e": {"f": 1, "g": 2},
    }
    assert before == {"a": {"b": 1}, "text": "dict(activation_fn=nn.ReLU, net_arch=[2])"}


def test_settings_are_json():
    for run in make_plan({**SAC, "axes": {"seed": 2}}).runs:
        assert json.loads(json.dumps(run.settings)) == run.settings
