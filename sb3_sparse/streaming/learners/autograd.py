"""The general learner: any network on any device, through torch's autograd."""

import numpy as np
import torch as th

from sb3_sparse.streaming.learners.base import Learner


class AutogradLearner(Learner):
    """Any module and device, through torch."""

    def _tensor(self, features: np.ndarray) -> th.Tensor:
        return th.from_numpy(features).to(self._parameters[0].device).unsqueeze(0)

    def _forward(self, features: np.ndarray) -> np.ndarray:
        with th.no_grad():
            return self.network(self._tensor(features))[0].cpu().numpy()

    def _forward_and_keep(self, features: np.ndarray) -> np.ndarray:
        with th.enable_grad():
            self._graph = self.network(self._tensor(features))[0]
        return self._graph.detach().cpu().numpy()

    def _step(self, features: np.ndarray, direction: np.ndarray, delta: float, reset: bool) -> None:
        self.optimizer.zero_grad()
        # Without any trainable parameter there is nothing to go back to.
        if self._graph.requires_grad:
            self._graph.backward(th.from_numpy(direction).to(self._graph))
        del self._graph
        self.optimizer.step(delta, reset)
        self.step_size, self.trace_l1 = self.optimizer.step_size, self.optimizer.trace_l1

    def reset_traces(self) -> None:
        """Clear the traces."""
        self.optimizer.reset_traces()
