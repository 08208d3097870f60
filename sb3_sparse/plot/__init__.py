"""``sb3-sparse plot``: the curves of runs. ``sb3-sparse describe --plot``: where the weights are."""
