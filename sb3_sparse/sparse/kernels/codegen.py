"""A little code generator over llvmlite's builder, in which kernels are written that are more than one loop."""

from collections.abc import Callable, Sequence

from llvmlite import ir

FLOAT, DOUBLE, POINTER = ir.FloatType(), ir.DoubleType(), ir.PointerType()
INT8, INT16, INT32, WORD = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)
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

    def minimum(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """The smaller one of two words."""
        return self.build.select(self.build.icmp_signed("<", a, b), a, b)

    def array(self, kind: ir.Type, size: int, align: int = 8) -> ir.Value:
        """A local array. To be asked for outside of loops."""
        array = self.build.alloca(ir.ArrayType(kind, size))
        array.align = align
        array.type = POINTER  # llvmlite would write a typed pointer, which LLVM does not read any more
        return array

    def prefetch(self, address: ir.Value, locality: int = 3) -> None:
        """
        Fetch what will be read soon into the cache.

        :param locality: 3 for the first level, 2 for the second.
        """
        name = "llvm.prefetch.p0"
        kind = ir.FunctionType(ir.VoidType(), [POINTER, INT32, INT32, INT32])
        prefetch = self.module.globals.get(name) or ir.Function(self.module, kind, name)
        self.build.call(prefetch, [address, *(ir.Constant(INT32, setting) for setting in (0, locality, 1))])

    def call(self, intrinsic: str, a: ir.Value) -> ir.Value:
        """A function of LLVM's, such as ``llvm.sqrt``."""
        return self.build.call(self.module.declare_intrinsic(intrinsic, [a.type]), [a], fastmath=_FAST)

    def loop(
        self,
        start: ir.Value,
        stop: ir.Value,
        body: Callable[..., Sequence[ir.Value] | None],
        *initial: ir.Value,
        step: int | ir.Value = 1,
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
        following = [build.add(counter, word(step) if isinstance(step, int) else step, flags=("nsw",)), *following]
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
