"""
Acting by one compiled pass: of one observation, the whole network that acts in a single call, instead of torch's operations
one after the other.

``mixin.py`` is what a policy does with it, ``written.py`` the pass, ``forms.py`` the networks that there is one for.
"""
