"""
States of environments: what is needed to make the same steps again.

``layers.py`` captures an environment with its wrappers, ``native.py`` what Python cannot copy, ``vec_env.py`` vectorised
environments and the test whether it worked, which leaves them the same objects by ``kept.py``, ``worker.py`` those in other
processes, ``recipe.py`` how to make them again.
"""
