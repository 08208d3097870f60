"""
Changes of layers that are there.

- ``swap.py``: other topologies and values, prepared first and made as a whole.
- ``redraw.py``: fresh values by a network's own initialisers, and other topologies.
- ``carry.py``: another kind of layer in the same place, with hooks, attributes and the state of optimizers.
"""
