"""Changes of layers that are there: other topologies, other values, another kind of layer in the same place."""
