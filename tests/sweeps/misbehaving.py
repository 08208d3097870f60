"""Callbacks of runs that go wrong."""

import os

from stable_baselines3.common.callbacks import BaseCallback


class Raises(BaseCallback):
    """Ends training with an error, unless a file is there."""

    def __init__(self, unless: str = ""):
        super().__init__()
        self.unless = unless

    def _on_step(self) -> bool:
        if self.num_timesteps >= 120 and not os.path.exists(self.unless):
            raise ZeroDivisionError("a mistake\nin two lines")
        return True


class Stops(BaseCallback):
    """Asks for the end as a scheduler does, once."""

    def __init__(self, unless: str):
        super().__init__()
        self.unless = unless

    def _on_step(self) -> bool:
        if self.num_timesteps == 120 and not os.path.exists(self.unless):
            os.close(os.open(self.unless, os.O_CREAT))
            import signal

            os.kill(os.getpid(), signal.SIGTERM)
        return True


class Leaves(BaseCallback):
    """Ends the process without a word."""

    def _on_step(self) -> bool:
        if self.num_timesteps >= 30:
            os._exit(9)
        return True


class SameSeed(BaseCallback):
    """Lets every evaluation play the same episodes, with an agent that does not change."""

    def _on_step(self) -> bool:
        if self.num_timesteps == 1:
            self.weights = {name: value.clone() for name, value in self.model.policy.state_dict().items()}
        self.model.policy.load_state_dict(self.weights)
        evaluation = next(each for each in self.locals["callback"].callbacks if hasattr(each, "eval_env"))
        evaluation.eval_env.seed(0)
        return True
