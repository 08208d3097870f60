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
