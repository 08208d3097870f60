"""Overshooting-bounded gradient descent with eligibility traces (Elsayed et al. 2024)."""

from collections.abc import Iterable
from typing import Any

import torch as th
from torch.optim import Optimizer

from sb3_sparse.common.validation import fraction, non_negative, number_in, positive

# Squares beyond this are cut off: far from anything that is learned from, and far from where float32 ends.
MAX_MOMENT = 1e30


class ObGD(Optimizer):
    """
    Overshooting-bounded gradient descent: a step that is never larger than what corrects the current error.

    It holds one eligibility trace ``z`` per parameter. With the gradient ``g`` of what is learned (a value, or the
    log-probability of an action), found in ``.grad``, and the TD error ``delta``::

        z      = gamma * trace_lambda * z + g
        bound  = lr * kappa * max(|delta|, 1) * sum(|z|)
        theta += lr / max(bound, 1) * delta * z

    The sum runs over all parameters of the optimiser, biases included: use one optimiser per network. As soon as
    the bound exceeds 1, which it nearly always does, ``lr`` cancels out. Note the sign: ``.grad`` is a direction to
    follow, not the gradient of a loss.

    The traces are optimiser state (``state[p]["trace"]``), so a state dict holds them. A parameter that requires no
    gradient has none, and stays as it is.

    :param params: Parameters of one network.
    :param lr: Step size where the bound does not bind.
    :param gamma: Discount factor.
    :param trace_lambda: Decay of the traces, in addition to ``gamma``.
    :param kappa: How far below the largest safe step to stay; larger is more careful.
    :raises ValueError: If a value is out of range, or there is more than one parameter group.
    """

    # Of the last step, for logging.
    step_size = 0.0
    trace_l1 = 0.0

    def __init__(
        self,
        params: Iterable[th.Tensor],
        lr: float = 1.0,
        gamma: float = 0.99,
        trace_lambda: float = 0.8,
        kappa: float = 2.0,
        **defaults: Any,
    ):
        settings = dict(
            lr=non_negative("lr", lr),
            gamma=fraction("gamma", gamma),
            trace_lambda=fraction("trace_lambda", trace_lambda),
            kappa=positive("kappa", kappa),
        )
        super().__init__(params, {**settings, **defaults})
        if len(self.param_groups) != 1:
            raise ValueError(
                f"{len(self.param_groups)} parameter groups: the bound is one number for a network, so give one group, "
                "and another optimiser to another network."
            )
        for p in self.param_groups[0]["params"]:
            self._init_state(p)

    def _init_state(self, p: th.Tensor) -> None:
        self.state[p]["trace"] = th.zeros_like(p, memory_format=th.contiguous_format)

    def state_of(self, name: str) -> list[th.Tensor]:
        """One kind of state of every parameter, zero where there was none."""
        params = self.param_groups[0]["params"]
        for p in params:
            if name not in self.state[p]:
                self._init_state(p)
        return [self.state[p][name] for p in params]

    @th.no_grad()
    def step(self, delta: float, reset: bool = False) -> None:  # type: ignore[override]
        """
        Add the gradients to the traces and take a step.

        :param delta: TD error, one number.
        :param reset: Whether to clear the traces afterwards: at the end of an episode.
        """
        group, delta = self.param_groups[0], float(delta)
        params, traces = group["params"], self.state_of("trace")
        if frozen := [trace for trace, p in zip(traces, params, strict=True) if not p.requires_grad]:
            # What it had learned before would go on moving it.
            th._foreach_zero_(frozen)
        th._foreach_mul_(traces, group["gamma"] * group["trace_lambda"])
        learned = [(trace, p.grad) for trace, p in zip(traces, params, strict=True) if p.grad is not None]
        if learned:
            th._foreach_add_([trace for trace, _ in learned], [grad for _, grad in learned])
        directions = self._directions(traces, delta)
        # Not `_foreach_norm`, which is off by a thousandth at a million parameters.
        self.trace_l1 = th.stack([d.sum() for d in th._foreach_abs(directions)]).sum(dtype=th.float64).item()
        self.step_size = bounded_step_size(group["lr"], group["kappa"], delta, self.trace_l1)
        th._foreach_add_(params, directions, alpha=self.step_size * delta)
        if reset:
            self.reset_traces()

    def _directions(self, traces: list[th.Tensor], delta: float) -> list[th.Tensor]:
        """What is followed in proportion to ``delta``, and bounded."""
        return traces

    def reset_traces(self) -> None:
        """Set all traces to zero, in place."""
        th._foreach_zero_(self.state_of("trace"))


class AdaptiveObGD(ObGD):
    """
    ObGD with a step size per parameter: what is followed is ``z / sqrt(v_hat + eps)``, where ``v_hat`` is a
    bias-corrected running mean of ``(delta * z) ** 2``, and the bound is about that direction.

    The number of steps is kept in the parameter group, so that a state dict holds it.

    :param params: Parameters of one network.
    :param beta2: Decay of the running mean.
    :param eps: Added to the mean, inside the root.
    :param kwargs: Arguments of :class:`ObGD`.
    """

    def __init__(self, params: Iterable[th.Tensor], beta2: float = 0.999, eps: float = 1e-8, **kwargs: Any):
        beta2, eps = number_in("beta2", beta2, 0, 1), positive("eps", eps)
        super().__init__(params, beta2=beta2, eps=eps, n_steps=0, **kwargs)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """:raises TypeError: If the state is that of an :class:`ObGD`, which SB3 would not let pass as ValueError."""
        if any("beta2" not in group for group in state_dict["param_groups"]):
            raise TypeError("a state of ObGD cannot be loaded into AdaptiveObGD: keep `adaptive` as the agent was trained.")
        super().load_state_dict(state_dict)

    def _init_state(self, p: th.Tensor) -> None:
        super()._init_state(p)
        self.state[p]["second_moment"] = th.zeros_like(p, memory_format=th.contiguous_format)

    def _directions(self, traces: list[th.Tensor], delta: float) -> list[th.Tensor]:
        group = self.param_groups[0]
        beta2, moments = group["beta2"], self.state_of("second_moment")
        group["n_steps"] += 1
        th._foreach_mul_(moments, beta2)
        th._foreach_addcmul_(moments, traces, traces, value=min((1.0 - beta2) * delta**2, MAX_MOMENT))
        # An infinite one would stop its parameter for ever.
        th._foreach_clamp_max_(moments, MAX_MOMENT)
        scales = th._foreach_div(moments, 1.0 - beta2 ** group["n_steps"])
        th._foreach_add_(scales, group["eps"])
        th._foreach_sqrt_(scales)
        return list(th._foreach_div(traces, scales))


def bounded_step_size(lr: float, kappa: float, delta: float, l1: float) -> float:
    """
    The step size of ObGD: ``lr / max(lr * kappa * max(|delta|, 1) * l1, 1)``.

    :param l1: Sum of the absolute values of what is followed.
    """
    return lr / max(lr * kappa * max(abs(delta), 1.0) * l1, 1.0)
