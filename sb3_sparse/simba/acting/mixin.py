"""What a policy does with its compiled pass: it takes it where it can, and says so where it could and cannot any more."""

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BaseModel

from sb3_sparse.common.validation import flag
from sb3_sparse.common.warn import warn_user
from sb3_sparse.simba.acting.forms import NotPlain
from sb3_sparse.simba.acting.written import WrittenPass
from sb3_sparse.simba.misuse import building_algorithm
from sb3_sparse.simba.observation_norm import runs
from sb3_sparse.sparse.kernels import kernels_allowed
from sb3_sparse.sparse.kernels.native.sample.forward import ForwardProgram

# The attribute of an algorithm, saved with it, that says how its policy acts.
_RECORD = "compiled_acting"
_LOADERS: tuple[Any, ...] = (BaseAlgorithm.load, BaseModel.load)
# Asked before each action, so not looked up each time.
_number_of_dispatch_modes = th._C._len_torch_dispatch_stack
_DTYPES = (np.dtype(np.float32), np.dtype(np.float64))
_NO_HOOKS = (
    "hooks on the network that acts are not called: this agent acts by one compiled pass, and goes on so, since a hook must "
    "not change a training. For hooks, build the policy with compiled_acting=False, or load the agent with "
    "load(path, compiled_acting=False)."
)


def _decide(given: bool | None, algorithm: BaseAlgorithm | None) -> bool:
    """How a policy acts that is being built, perhaps by an algorithm, which keeps it; of one in a file, how it did."""
    wanted = given if algorithm is None else vars(algorithm).get(_RECORD, given)
    decision = not any(runs(load.__func__.__code__) for load in _LOADERS) if wanted is None else flag(_RECORD, wanted)
    if algorithm is not None:
        vars(algorithm)[_RECORD] = decision
    return decision


class ActsCompiled:
    """
    Mixin for a policy of SB3 that can act by a compiled pass.

    It does so for one vector of numbers, by a SimBa network of plain layers in float32 on the CPU, and equals torch's pass but
    for rounding. Everything else, such as several observations, is left to torch, as is what became infinite or NaN, with
    SB3's errors.

    :param compiled_acting: Whether to act by the compiled pass, where there is one. Hooks on the network are not called then.
        It is decided once for an agent and saved with it. None: True; for agents in files from before there was a choice
        False, so that they act as they did.
    :raises ValueError: If it is none of True, False and None.
    """

    #: Of the class too, for policies that were pickled without it.
    compiled_acting: bool = False
    # The pass. None: nobody asked yet; False: there is none.
    _pass: WrittenPass | bool | None = None
    _said_no_hooks = False

    def __init__(self, *args: Any, compiled_acting: bool | None = None, **kwargs: Any):
        self.compiled_acting = _decide(compiled_acting, building_algorithm())
        super().__init__(*args, **kwargs)

    def predict(
        self,
        observation: Any,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        The action for an observation; SB3 calls this.

        :param observation: One or several.
        :param state: Returned as it is.
        :param episode_start: Of no meaning here.
        :param deterministic: Whether to take the most likely action.
        """
        if self.compiled_acting:
            action = self._compiled_action(observation, deterministic)
            if action is not None:
                return action, state
        return super().predict(observation, state, episode_start, deterministic)

    def _compiled_action(self: Any, observation: Any, deterministic: bool) -> np.ndarray | None:
        """What ``predict`` returns, or None where torch has to say it."""
        if self._pass is False or type(observation) is not np.ndarray or observation.dtype not in _DTYPES:
            return None
        shape = self.observation_space.shape
        is_one = observation.shape == shape
        if not is_one and observation.shape != (1, *(shape or ())):
            return None
        # A mode, such as one that counts operations, is there to see those of torch.
        if not kernels_allowed() or th.is_autocast_enabled("cpu") or _number_of_dispatch_modes():
            return None
        if (written := self._written_pass()) is None:
            return None
        self.set_training_mode(False)
        action = written.act(observation, deterministic)
        if action is None:
            return None
        # From here on as SB3 does.
        action = action.reshape((-1, *self.action_space.shape))
        if isinstance(self.action_space, spaces.Box):
            if self.squash_output:
                action = self.unscale_action(action)
            else:
                action = np.clip(action, self.action_space.low, self.action_space.high)
        return action.squeeze(axis=0) if is_one else action

    def _written_pass(self) -> WrittenPass | None:
        written = self._pass
        if not (isinstance(written, WrittenPass) and written.fits()):
            written = self._write_pass()
        if written is not None and any(written.hooks) and not self._said_no_hooks:
            self._said_no_hooks = True
            warn_user(_NO_HOOKS)
        return written

    def _write_pass(self) -> WrittenPass | None:
        acted = self._pass is not None
        try:
            written = WrittenPass(self)
        except NotPlain as reason:
            if reason.elsewhere:
                # It may come back.
                return None
            self._pass = False
            if acted:
                warn_user(
                    f"its network has {reason} now, for which there is no compiled pass: from here on this agent acts by "
                    "torch's, which gives the same but for the last digits. compiled_acting=False does so from the beginning."
                )
            return None
        if (failure := ForwardProgram.kernels.why_not_compiled()) is not None:
            self._pass = False
            warn_user(f"the compiled pass is not available, acting is slower without it: {failure}")
            return None
        self._pass = written
        return written

    def _get_constructor_parameters(self: Any) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "compiled_acting": self.compiled_acting}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_pass", "_said_no_hooks")}
