"""TRPO on pruned policies of SB3: second derivatives, and parameters that it picks by their names."""

import gymnasium as gym
import torch as th
from sb3_contrib import TRPO
from torch import nn

from sb3_sparse.sparse import SparseLinear, sparsify_, to_dense
from sb3_sparse.sparse.layers import sparse_layers


class Masked(nn.Module):
    """A dense weight with the zeros of a sparse layer."""

    def __init__(self, mask):
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight):
        return weight * self.mask


def test_a_pruned_policy_learns_as_a_masked_one():
    """Mistake of ours: sparse weights of the actor stayed as they were drawn, and second derivatives lacked a part."""
    policies = []
    for dense in (False, True):
        model = TRPO("MlpPolicy", gym.make("CartPole-v1"), n_steps=256, batch_size=64, seed=0, device="cpu")
        sparsify_(model.policy, 0.5, seed=1)
        masks = {name: layer.topology.mask() for name, layer in sparse_layers(model.policy).items()}
        if dense:
            model.policy = to_dense(model.policy)
            for name, mask in masks.items():
                mask = th.as_tensor(mask)
                nn.utils.parametrize.register_parametrization(model.policy.get_submodule(name), "weight", Masked(mask))
        else:
            before = {name: layer.values.clone() for name, layer in sparse_layers(model.policy).items()}
        model.learn(256)
        policies.append(model.policy)
    sparse, masked = policies
    for name, layer in sparse_layers(sparse).items():
        assert isinstance(layer, SparseLinear)
        moved, apart = layer.values - before[name], layer.weight - masked.get_submodule(name).weight
        assert apart.detach().abs().max() < 0.01 * moved.detach().abs().max(), name
