"""
Show a kernel as LLVM's intermediate representation or as assembly of this processor.

    python -m sb3_sparse.sparse.kernels.native single.multiply
    python -m sb3_sparse.sparse.kernels.native rows.sample_product --vectors 1 --show ir
    python -m sb3_sparse.sparse.kernels.native sb3_sparse.streaming.kernels.sparse_linear --show optimized
"""

import argparse
import importlib
import inspect
from typing import Any

from sb3_sparse.sparse.kernels.native import blocked, convolution, norm, rows
from sb3_sparse.sparse.kernels.native.compile import assembly, optimized_ir
from sb3_sparse.sparse.kernels.native.sample import single

_OURS = {"single": single, "rows": rows, "blocked": blocked, "convolution": convolution, "norm": norm}
_PRODUCTS = ("multiply", "multiply_transposed", "sample_product")
_KERNELS = {
    "single": _PRODUCTS,
    "rows": _PRODUCTS,
    "blocked": (*_PRODUCTS, "multiply_relu", "multiply_transposed_gated"),
    # The gradient of images is a product of another shape on the same kernel.
    "convolution": ("multiply", "sample_product"),
    "norm": ("normalize", "grad_input", "grad_parameters"),
}
KERNELS = [f"{where}.{name}" for where, names in _KERNELS.items() for name in names]
"""What :func:`show` knows by a short name."""


def show(name: str, what: str = "assembly", **sizes: int) -> str:
    """
    The code of a kernel.

    :param name: Where it is and its name, such as "blocked.multiply"; or a module of any package that has a function
        ``define``, and the name that this takes.
    :param what: "ir" is what we wrote, "optimized" what LLVM's optimiser made of it, "assembly" what runs.
    :param sizes: ``vectors`` per tile and ``column_bits``, as far as ``define`` asks for them.
    :raises KeyError: If there is no such kernel.
    """
    where, _, kernel = name.rpartition(".")
    try:
        define = (_OURS.get(where) or importlib.import_module(where)).define
    except (ImportError, AttributeError, ValueError) as error:
        raise KeyError(name) from error
    wanted = inspect.signature(define).parameters
    definition: Any = define(kernel, **{size: number for size, number in sizes.items() if size in wanted})
    if what == "ir":
        return str(definition.module())
    return {"optimized": optimized_ir, "assembly": assembly}[what](definition.module(), definition.vectorize)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m sb3_sparse.sparse.kernels.native",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="kernels: " + ", ".join(KERNELS),
    )
    parser.add_argument("kernel", help="one of the kernels below, or MODULE.NAME")
    parser.add_argument("--show", choices=("ir", "optimized", "assembly"), default="assembly", help="default: assembly")
    parser.add_argument("--vectors", type=int, default=4, help="vectors per tile, for batches (default: 4)")
    parser.add_argument("--column-bits", type=int, choices=(16, 32), default=16, help="size of columns (default: 16)")
    options = parser.parse_args()
    try:
        print(show(options.kernel, options.show, vectors=options.vectors, column_bits=options.column_bits))
    except KeyError:
        parser.error(f"no kernel {options.kernel!r}: expected one of {', '.join(KERNELS)}, or MODULE.NAME.")


if __name__ == "__main__":
    main()
