"""Callbacks that are slow, that raise, and that end their process: what plans of tests name."""

import os
import signal
import time

from stable_baselines3.common.callbacks import BaseCallback


class _Stateless(BaseCallback):
    def get_state(self):
        return None

    def set_state(self, state):
        pass


# Seconds of each step.
SLOW = "TESTS_SLOW"


class Slow(_Stateless):
    """Time to kill something, where the environment of the process says so."""

    def _on_step(self):
        time.sleep(float(os.environ.get(SLOW, 0)))
        return True


class Raises(_Stateless):
    """At a step; where a file is named, only if that is not there."""

    def __init__(self, at, unless=None):
        super().__init__()
        self.at, self.unless = at, unless

    def _on_step(self):
        if self.num_timesteps >= self.at and not (self.unless and os.path.exists(self.unless)):
            raise RuntimeError(f"nothing beyond {self.at} steps")
        return True


class Exits(_Stateless):
    """Ends the process at a step; with the number of a signal, as that does."""

    def __init__(self, at, status=0):
        super().__init__()
        self.at, self.status = at, status

    def _on_step(self):
        if self.num_timesteps >= self.at:
            if self.status == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            os._exit(self.status)
        return True
