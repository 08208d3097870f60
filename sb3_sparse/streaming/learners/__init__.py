"""Learners: a network with its optimiser, for one observation at a time; through autograd, or compiled."""

from sb3_sparse.streaming.learners.autograd import AutogradLearner
from sb3_sparse.streaming.learners.base import Learner
from sb3_sparse.streaming.learners.choice import make_learner
from sb3_sparse.streaming.learners.compiled import CompiledLearner

__all__ = ["AutogradLearner", "CompiledLearner", "Learner", "make_learner"]
