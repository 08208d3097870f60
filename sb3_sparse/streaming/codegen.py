"""A little code generator over llvmlite's builder, in which :mod:`~sb3_sparse.streaming.kernels` is written."""

from collections.abc import Callable, Sequence

from llvmlite import ir

FLOAT, DOUBLE, POINTER = ir.FloatType(), ir.DoubleType(), ir.PointerType()
INT16, INT32, WORD = ir.IntType(16), ir.IntType(32), ir.IntType(64)
# Sums may be reordered and vectorised; NaN and infinity still mean what they mean.
_FAST = ("reassoc", "contract", "nsz")


class Code:
    """
    The body of a function, written instruction by instruction.

    :param module: What it belongs to.
    :param function: Its declaration.
    """

    def __init__(self, module: ir.Module, function: ir.Function):
        self.module, self.function = module, function
        self.build = ir.IRBuilder(function.append_basic_block())

    def at(self, array: ir.Value, index: ir.Value, kind: ir.Type = FLOAT) -> ir.Value:
        """The address of ``array[index]``."""
        return self.build.gep(array, [index], inbounds=True, source_etype=kind)

    def load(self, array: ir.Value, index: ir.Value, kind: ir.Type = FLOAT) -> ir.Value:
        """``array[index]``."""
        return self.build.load(self.at(array, index, kind), typ=kind)

    def load_index(self, array: ir.Value, index: ir.Value, kind: ir.Type) -> ir.Value:
        """``array[index]`` of unsigned integers, as a word."""
        return self.build.zext(self.load(array, index, kind), WORD)

    def store(self, value: ir.Value, array: ir.Value, index: ir.Value) -> None:
        """``array[index] = value``."""
        self.build.store(value, self.at(array, index, value.type))

    def add(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """``a + b``."""
        return self.build.fadd(a, b, flags=_FAST)

    def sub(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """``a - b``."""
        return self.build.fsub(a, b, flags=_FAST)

    def mul(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """``a * b``."""
        return self.build.fmul(a, b, flags=_FAST)

    def div(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """``a / b``."""
        return self.build.fdiv(a, b)

    def call(self, intrinsic: str, a: ir.Value) -> ir.Value:
        """A function of LLVM's, such as ``llvm.sqrt``."""
        return self.build.call(self.module.declare_intrinsic(intrinsic, [a.type]), [a], fastmath=_FAST)

    def loop(
        self,
        start: ir.Value,
        stop: ir.Value,
        body: Callable[..., Sequence[ir.Value] | None],
        *initial: ir.Value,
        step: int = 1,
    ) -> list[ir.Value]:
        """
        ``for i in range(start, stop, step)``.

        :param body: Called with the counter and the values carried along, returns the next ones.
        :param initial: The first values carried along.
        :return: The last ones.
        """
        build, before = self.build, self.build.block
        head, inside, after = (build.append_basic_block() for _ in range(3))
        build.branch(head)
        build.position_at_end(head)
        counter = build.phi(WORD)
        carried = [build.phi(value.type) for value in initial]
        build.cbranch(build.icmp_signed("<", counter, stop), inside, after)
        build.position_at_end(inside)
        following = body(counter, *carried) or ()
        following = [build.add(counter, word(step), flags=("nsw",)), *following]
        for phi, first, later in zip([counter, *carried], [start, *initial], following, strict=True):
            phi.add_incoming(first, before)
            phi.add_incoming(later, build.block)
        build.branch(head)
        build.position_at_end(after)
        return carried


def word(value: int) -> ir.Constant:
    """An integer constant."""
    return ir.Constant(WORD, value)


def number(value: float) -> ir.Constant:
    """A float32 constant."""
    return ir.Constant(FLOAT, value)


def define_kernel(module: ir.Module, name: str, arguments: str, body: Callable[..., None]) -> None:
    """
    Define a kernel.

    :param arguments: Names, in the order of an instruction; those that begin with ``n_`` are integers.
    :param body: Called with the code and the arguments.
    """
    names = arguments.split()
    kinds = [WORD if argument.startswith("n_") else POINTER for argument in names]
    inner = ir.Function(module, ir.FunctionType(ir.VoidType(), kinds), name + ".inner")
    inner.linkage = "internal"
    # Inlined, it would lose the knowledge that its arrays do not overlap.
    inner.attributes.add("noinline")
    for argument, kind in zip(inner.args, kinds, strict=True):
        if kind is POINTER:
            argument.add_attribute("noalias")
    code = Code(module, inner)
    body(code, *inner.args)
    code.build.ret_void()
    outer = ir.Function(module, ir.FunctionType(ir.VoidType(), [POINTER]), name)
    code = Code(module, outer)
    code.build.call(inner, [code.load(outer.args[0], word(i + 1), kind) for i, kind in enumerate(kinds)])
    code.build.ret_void()
