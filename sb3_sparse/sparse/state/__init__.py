"""
How sparse layers travel through state dicts: whole, or not at all.

- ``identity.py``: the twelve floats, with a checksum, that stand for a topology.
- ``stored.py``: which topology a state dict stands for, as this version and earlier ones wrote it.
- ``loading.py``: all or nothing.
"""
