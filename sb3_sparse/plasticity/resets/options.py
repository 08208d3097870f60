"""The options of a reset: what there is, what is allowed, and what goes with which strategy."""

from dataclasses import dataclass
from typing import Any

from sb3_sparse.common.validation import choice, flag, fraction, number_in, whole_number
from sb3_sparse.plasticity.resets.redo import DEFAULT_TAU

STRATEGIES = ("full", "last_layers", "redo", "shrink_perturb")
TARGETS = ("copy", "fresh", "keep")
# Options that one strategy alone has.
STRATEGY_OF = {
    "n_layers": "last_layers",
    "shrink": "shrink_perturb",
    "perturb": "shrink_perturb",
    "tau": "redo",
    "batch_size": "redo",
    "reset_step": "redo",
}


@dataclass(frozen=True)
class ResetOptions:
    """
    Arguments of :func:`~sb3_sparse.plasticity.reset_model_`, which says what they mean. Checked, and plain Python.

    :raises ValueError: If one is out of range or does not go with the strategy.
    """

    strategy: str = "full"
    target: str | None = None
    redraw_topology: bool = False
    include_temperature: bool = False
    n_layers: int = 1
    shrink: float = 0.5
    perturb: float = 0.5
    tau: float = DEFAULT_TAU
    batch_size: int = 256
    reset_step: bool = False
    seed: int | None = None

    def __post_init__(self) -> None:
        choice("strategy", self.strategy, STRATEGIES)
        if self.target is not None:
            choice("target", self.target, TARGETS)
        self._set(redraw_topology=flag("redraw_topology", self.redraw_topology))
        self._set(include_temperature=flag("include_temperature", self.include_temperature))
        self._check_combination()
        self._set(
            n_layers=whole_number("n_layers", self.n_layers, 1),
            shrink=fraction("shrink", self.shrink),
            perturb=fraction("perturb", self.perturb),
            tau=number_in("tau", self.tau, 0, 1),
            batch_size=whole_number("batch_size", self.batch_size, 1),
            reset_step=flag("reset_step", self.reset_step),
            seed=None if self.seed is None else whole_number("seed", self.seed),
        )

    def _set(self, **checked: Any) -> None:
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def _check_combination(self) -> None:
        strategy, target = self.strategy, self.target
        draws_all = strategy in ("full", "last_layers")
        if target == "fresh" and not draws_all:
            raise ValueError(
                f"target='fresh' goes with 'full' and 'last_layers', not with {strategy!r}: use 'copy' or 'keep'."
            )
        if self.redraw_topology and not draws_all:
            raise ValueError(f"redraw_topology=True goes with 'full' and 'last_layers': {strategy!r} keeps trained values.")
        if self.redraw_topology and target == "keep":
            raise ValueError(
                "redraw_topology=True with target='keep': the target's old values stand at the old positions, and averaging "
                "mixes values by position. Use target='copy' or 'fresh'."
            )
        if self.include_temperature and strategy != "full":
            raise ValueError(f"include_temperature=True goes with strategy='full', not with {strategy!r}.")


def default_target(strategy: str) -> str:
    """What happens to target networks if nothing is said."""
    return "copy" if strategy in ("full", "last_layers") else "keep"
