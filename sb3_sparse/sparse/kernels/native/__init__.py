"""
Our own kernels for the CPU: ``code.py`` is what they are written with, ``compile.py`` and ``kernel.py`` make them run,
``threads.py`` shares their rows among threads.

Each of ``sample/single.py``, ``rows.py`` and ``blocked/`` has the three products of a sparse layer: for one sample, for
batches row by row, and for batches block by block; ``convolution/`` those of a convolution. ``docs/kernels.md`` explains
them; ``python -m sb3_sparse.sparse.kernels.native`` shows their code.
"""
