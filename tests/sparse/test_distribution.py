"""Layer densities against the published tables of the paper's released code."""

import math

import pytest

from sb3_sparse.sparse.distribution import erdos_renyi, uniform


def critic_shapes(width: int, n_blocks: int, in_features: int = 91) -> dict[str, tuple[int, ...]]:
    """All parameter tensors of a SimBa critic; humanoid with the paper's 24 actions has 67 + 24 inputs."""
    shapes: dict[str, tuple[int, ...]] = {"stem": (width, in_features), "stem_bias": (width,)}
    for block in range(n_blocks):
        shapes |= {
            f"norm{block}_weight": (width,),
            f"norm{block}_bias": (width,),
            f"fc1_{block}": (4 * width, width),
            f"fc1_{block}_bias": (4 * width,),
            f"fc2_{block}": (width, 4 * width),
            f"fc2_{block}_bias": (width,),
        }
    return shapes | {"norm_weight": (width,), "norm_bias": (width,), "head": (1, width), "head_bias": (1,)}


def actor_shapes(width: int, n_heads: int = 2) -> dict[str, tuple[int, ...]]:
    shapes = critic_shapes(width, 1, in_features=67)
    del shapes["head"], shapes["head_bias"]
    for head in range(n_heads):
        shapes |= {f"head{head}": (24, width), f"head{head}_bias": (24,)}
    return shapes


# (network, sparsity, budget, sparsity of stem, blocks, head)
PUBLISHED = [
    ("critic1", 0.8, "all_parameters", 0.0, 0.810642, 0.0),
    ("critic1", 0.8, "weights", 0.0, 0.808983, 0.0),
    ("critic1", 0.9, "all_parameters", 0.503697, 0.906377, 0.0),
    ("critic1", 0.9, "weights", 0.494356, 0.904615, 0.0),
    ("actor1", 0.8, "all_parameters", 0.640808, 0.845732, 0.218374),
    ("actor1", 0.8, "weights", 0.627273, 0.839918, 0.188920),
    ("actor1", 0.9, "all_parameters", 0.828859, 0.926497, 0.627585),
    ("actor1", 0.9, "weights", 0.813624, 0.919954, 0.594432),
    ("critic5", 0.8, "all_parameters", 0.0, 0.802129, 0.0),
    ("critic5", 0.8, "weights", 0.0, 0.801797, 0.0),
    ("critic5", 0.9, "all_parameters", 0.0, 0.902395, 0.0),
    ("critic5", 0.9, "weights", 0.0, 0.902021, 0.0),
    ("actor5", 0.8, "all_parameters", 0.0, 0.819543, 0.0),
    ("actor5", 0.8, "weights", 0.0, 0.817969, 0.0),
    ("actor5", 0.9, "all_parameters", 0.307454, 0.917962, 0.0),
    ("actor5", 0.9, "weights", 0.293993, 0.916368, 0.0),
    ("ddpg_actor1", 0.8, "all_parameters", 0.615580, 0.834897, 0.163477),
    ("ddpg_actor1", 0.9, "all_parameters", 0.816881, 0.921353, 0.601521),
]
NETWORKS = {
    "critic1": critic_shapes(512, 2),
    "critic5": critic_shapes(2560, 2),
    "actor1": actor_shapes(128),
    "actor5": actor_shapes(640),
    "ddpg_actor1": actor_shapes(128, n_heads=1),
}


@pytest.mark.parametrize(("network", "sparsity", "budget", "stem", "blocks", "head"), PUBLISHED)
def test_erdos_renyi_equals_published_tables(network, sparsity, budget, stem, blocks, head):
    density = erdos_renyi(NETWORKS[network], sparsity, budget)
    assert 1 - density["stem"] == pytest.approx(stem, abs=1e-6)
    assert 1 - density["fc1_0"] == pytest.approx(blocks, abs=1e-6)
    assert density["fc2_0"] == density["fc1_0"]
    assert 1 - density.get("head", density.get("head0")) == pytest.approx(head, abs=1e-6)
    assert all(density[name] == 1.0 for name, shape in NETWORKS[network].items() if len(shape) == 1)


def test_erdos_renyi_equals_published_twin_critic_on_pixels():
    def shapes(width, convolutions):
        trunk = {"trunk": (50, 39200)}
        for i in "12":
            trunk |= {f"fc1_{i}": (width, 62), f"fc2_{i}": (width, width), f"head{i}": (1, width)}
        encoder = {"conv1": (32, 9, 3, 3)} | {f"conv{i}": (32, 32, 3, 3) for i in (2, 3, 4)}
        return trunk | encoder if convolutions else trunk

    def sparsity(width, convolutions=False):
        return {name: round(1 - d, 4) for name, d in erdos_renyi(shapes(width, convolutions), 0.8).items()}

    narrow = sparsity(1024)
    assert (narrow["trunk"], narrow["fc1_1"], narrow["fc2_1"], narrow["head1"]) == (0.6326, 0.6861, 0.9642, 0.0)
    wide = sparsity(4096)
    assert (wide["trunk"], wide["fc1_2"], wide["fc2_2"], wide["head2"]) == (0.0, 0.0, 0.859, 0.0)
    with_encoder = sparsity(1024, convolutions=True)
    assert [with_encoder[f"conv{i}"] for i in (1, 2, 3, 4)] == [0.6668, 0.8604, 0.8604, 0.8604]
    assert all(sparsity(4096, convolutions=True)[f"conv{i}"] == 0.0 for i in (1, 2, 3, 4))


def test_erdos_renyi_equals_published_impala_network():
    # A three times wider IMPALA encoder with dueling heads: groups of (out, in, kernel, kernel) and how many.
    groups = {
        (48, 4, 3, 3): 1,
        (48, 48, 3, 3): 4,
        (96, 48, 3, 3): 1,
        (96, 96, 3, 3): 9,
        (512, 11616): 1,
        (918, 512): 1,
        (51, 512): 1,
    }
    shapes = {f"{shape} {i}": shape for shape, count in groups.items() for i in range(count)}
    published = {0.4: [1, 1, 0.9991, 0.6594, 0.5633, 0.8404, 1], 0.8: [1, 0.4441, 0.3266, 0.2155, 0.1841, 0.2747, 1]}
    for sparsity, densities in published.items():
        ours = erdos_renyi(shapes, sparsity)
        assert [round(ours[f"{shape} 0"], 4) for shape in groups] == densities


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.8, 0.9, 0.95])
@pytest.mark.parametrize("network", NETWORKS)
def test_erdos_renyi_meets_the_budget_within_one_weight_per_layer(network, sparsity):
    shapes = {name: shape for name, shape in NETWORKS[network].items() if len(shape) > 1}
    numel = {name: math.prod(shape) for name, shape in shapes.items()}
    kept = sum(round(density * numel[name]) for name, density in erdos_renyi(shapes, sparsity).items())
    assert abs(kept - (1 - sparsity) * sum(numel.values())) <= 2 * len(shapes)


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.999])
def test_uniform_is_the_same_for_every_weight(sparsity):
    density = uniform({"a": (3, 4), "bias": (3,), "b": (8, 4, 3, 3)}, sparsity)
    assert density == {"a": 1 - sparsity, "bias": 1.0, "b": 1 - sparsity}


@pytest.mark.parametrize("allocate", [uniform, erdos_renyi])
@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5, float("nan"), "0.5", None, True])
def test_bad_sparsity_is_named(allocate, sparsity):
    with pytest.raises(ValueError, match=r"sparsity=.*\[0, 1\)"):
        allocate({"a": (3, 4)}, sparsity)


def test_bad_budget_and_impossible_budget_are_named():
    with pytest.raises(ValueError, match="budget='biases'"):
        erdos_renyi({"a": (3, 4)}, 0.5, budget="biases")
    with pytest.raises(ValueError, match=r"sparsity=0.9 leaves \d+ parameters"):
        erdos_renyi({"a": (2, 4), "bias": (90,)}, 0.9, budget="all_parameters")
