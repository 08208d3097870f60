"""What is around the algorithm: reports, dense copies, measurements of its three networks, settings that made its buffer."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch as th
from torch import nn

from sb3_sparse import to_dense
from sb3_sparse.common.model_report import describe_model
from sb3_sparse.drqv2 import DrQv2
from sb3_sparse.plasticity import PlasticityCallback, measure
from sb3_sparse.sparse.layers import sparse_layers
from tests.drqv2.pictures import Dot, agent

SPARSE = dict(sparsity={"encoder": 0.5, "pi": 0.5, "qf": 0.8}, critic_width_scale=2)


def test_the_layers_of_its_three_networks_are_listed():
    said = describe_model(agent(policy_kwargs=SPARSE))
    tables = dict(table.split("\n", 1) for table in said.split("\n\n"))
    assert list(tables) == ["encoder", "actor", "critic"]
    for name in ("encoder", "actor"):
        assert float(re.search(r"weight sparsity ([0-9.]+)", tables[name])[1]) == pytest.approx(0.5, abs=0.005)
    # The bottleneck is dense; the heads are pruned to 0.8 together.
    trunk, *heads = [line.split() for line in tables["critic"].splitlines()[2:-1]]
    assert trunk[:3] == ["trunk.0", f"5x{4 * 25}", "1.0000"]
    assert [head[0] for head in heads] == [f"q_networks.{i}.{j}" for i in range(2) for j in (0, 2, 4)]
    kept, total = (sum(int(head[column].replace(",", "")) for head in heads) for column in (3, 4))
    assert kept / total == pytest.approx(0.2, abs=0.002)


@pytest.mark.parametrize("sparsity", [0.0, SPARSE["sparsity"]])
def test_a_dense_copy_does_the_same(sparsity):
    model = agent(policy_kwargs={**SPARSE, "sparsity": sparsity}).learn(20)
    dense = to_dense(model.policy)
    assert not sparse_layers(dense)
    images = th.randint(0, 256, (64, 9, 24, 24), dtype=th.uint8)
    actions = th.rand(64, 2) * 2 - 1
    with th.no_grad():
        for policy_output, dense_output in (
            (model.policy(images, deterministic=True), dense(images, deterministic=True)),
            *zip(model.critic(model.policy.encode(images), actions), dense.critic(dense.encode(images), actions), strict=True),
            *zip(
                model.critic_target(model.policy.encode(images), actions),
                dense.critic_target(dense.encode(images), actions),
                strict=True,
            ),
        ):
            assert policy_output.std() > 0
            np.testing.assert_allclose(policy_output, dense_output, rtol=0, atol=1e-5)


def relu_fractions(model, batch):
    """By hooks on the modules, and counted by numpy."""
    found, outputs = {}, []
    features = model.policy.encode(batch.observations)
    for name, network, forward in (
        ("encoder", model.policy.encoder, lambda: model.policy.encode(batch.observations)),
        ("actor", model.actor, lambda: model.actor(features)),
        ("critic", model.critic, lambda: model.critic(features, batch.actions)),
    ):
        outputs.clear()
        hooks = [
            module.register_forward_hook(lambda module, inputs, output: outputs.append(output.detach().numpy().ravel()))
            for module in network.modules()
            if isinstance(module, nn.ReLU)
        ]
        forward()
        for hook in hooks:
            hook.remove()
        entries = np.concatenate(outputs)
        found[name] = (len(outputs), (entries > 0).sum() / entries.size)
    return found


@pytest.mark.parametrize("sparsity", [0.0, SPARSE["sparsity"]])
def test_active_units_of_each_network(sparsity):
    model = agent(policy_kwargs={**SPARSE, "sparsity": sparsity, "net_arch": [64, 64]}).learn(7)
    batch = model.replay_buffer.sample(32)
    values = measure(model, batch=batch, metrics=["fau", "fau_relu"], networks=["encoder", "actor", "critic"])
    expected = relu_fractions(model, batch)
    # Convolutions; hidden layers; those of two heads.
    assert [n for n, _ in expected.values()] == [4, 2, 4]
    for name, (_, fraction) in expected.items():
        assert values[f"{name}_fau_relu"] == pytest.approx(fraction, abs=1e-9)
    assert values["encoder_fau"] == values["encoder_fau_relu"]
    # The tanh of the bottlenecks counts there.
    assert values["critic_fau"] != values["critic_fau_relu"]


def test_about_half_of_the_units_of_new_heads_are_active():
    model = agent(Dot(), dict(net_arch=[512, 512], feature_dim=50)).learn(7)
    values = measure(model, batch=model.replay_buffer.sample(64), metrics=["fau_relu"], networks=["actor", "critic"])
    assert all(value == pytest.approx(0.5, abs=0.05) for value in values.values()), values


def test_active_units_are_logged(tmp_path):
    path = tmp_path / "plasticity.csv"
    networks = ["encoder", "actor", "critic"]
    callback = PlasticityCallback(20, 12, metrics=["fau_relu"], networks=networks, csv_path=path)
    agent(policy_kwargs=SPARSE).learn(40, callback=callback)
    header, *rows = path.read_text().splitlines()
    assert header == "timesteps,encoder_fau_relu,actor_fau_relu,critic_fau_relu"
    assert len(rows) == 2
    assert all(0 < float(value) < 1 for row in rows for value in row.split(",")[1:])


def test_a_saved_agent_keeps_what_made_its_buffer(tmp_path):
    model = agent(n_steps=2).learn(20)
    model.save(tmp_path / "agent")
    assert DrQv2.load(tmp_path / "agent").replay_buffer.n_steps == 2
    with pytest.raises(ValueError, match=r"n_steps=7, and the replay buffer's is 2: say n_steps once"):
        DrQv2.load(tmp_path / "agent", n_steps=7)
    with pytest.raises(ValueError, match="say n_steps once, as a keyword of DrQv2"):
        agent(replay_buffer_kwargs=dict(n_steps=5))
    assert model.fixed_settings() == {"n_steps": 2, "gamma": 0.99, "replay_buffer_kwargs": {"n_stack": 3}}


def test_updates_under_autocast_as_the_page_on_speed_has_them(monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "performance.md").read_text().partition("### Under autocast")[2]
    names = {}
    exec(re.search(r"```python\n(.*?)```", page, flags=re.DOTALL)[1], names)
    trained = []
    for kind in (DrQv2, names["Bfloat16DrQv2"]):
        monkeypatch.setattr("tests.drqv2.pictures.DrQv2", kind)
        model = agent(policy_kwargs=SPARSE)
        before = [parameter.detach().clone() for parameter in model.policy.parameters()]
        model.learn(40)
        assert all(parameter.dtype == th.float32 for parameter in model.policy.parameters())
        trained.append(th.cat([(p - q).flatten() for p, q in zip(model.policy.parameters(), before, strict=True)]).detach())
    # The same way, but not by the same steps.
    assert not th.equal(*trained)
    assert th.cosine_similarity(*trained, dim=0) > 0.8
