"""
A small code generator over llvmlite's builder: every kernel of this package is written with it.

A kernel is a Python function that calls the methods of :class:`Code`. Each writes one or more instructions of LLVM and
returns the value that they will have when the kernel runs. A Python loop therefore unrolls, and :meth:`Code.loop` loops.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from llvmlite import ir

LANES = 16
"""Floats per vector. LLVM splits vectors of 16 into what a processor has."""

FLOAT, DOUBLE, POINTER = ir.FloatType(), ir.DoubleType(), ir.PointerType()
INT8, INT16, INT32, WORD = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)
VECTOR = ir.VectorType(FLOAT, LANES)
FOUR = ir.VectorType(FLOAT, 4)

# Of the names of LLVM's functions that exist for several types.
_SUFFIX = {FLOAT: "f32", FOUR: "v4f32", VECTOR: f"v{LANES}f32"}
# Sums may be reordered and vectorised; NaN and infinity still mean what they mean.
_FAST = ("reassoc", "contract", "nsz")


class Code:
    """
    The body of a function, written instruction by instruction.

    What has no method here is written with :attr:`build`, llvmlite's own builder: arithmetic of words, comparisons,
    branches, and additions that must not be reordered (``build.fadd``).

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

    def load_index(self, array: ir.Value, index: ir.Value, kind: ir.Type = INT32) -> ir.Value:
        """``array[index]`` of unsigned integers, as a word."""
        return self.build.zext(self.load(array, index, kind), WORD)

    def load_four_indices(self, array: ir.Value, index: ir.Value, kind: ir.IntType) -> list[ir.Value]:
        """``array[index]`` to ``array[index + 3]`` of unsigned integers, as words: 64 bits are read at a time."""
        build, indices = self.build, []
        for u in range(4):
            shift = kind.width * u % WORD.width
            if shift == 0:
                read = build.load(self.at(array, build.add(index, word(u)), kind), typ=WORD, align=kind.width // 8)
            indices.append(build.and_(build.lshr(read, word(shift)), word(2**kind.width - 1)))
        return indices

    def load_four(self, array: ir.Value, index: ir.Value) -> ir.Value:
        """``array[index]`` to ``array[index + 3]``."""
        return self.build.load(self.at(array, index), typ=FOUR, align=4)

    def store_four(self, value: ir.Value, array: ir.Value, index: ir.Value) -> None:
        """The way back."""
        self.build.store(value, self.at(array, index), align=4)

    def gather(self, array: ir.Value, indices: Sequence[ir.Value]) -> ir.Value:
        """A vector of ``array[i]`` for each of some indices, loaded one by one: LLVM's own gathering takes longer."""
        vector = ir.Constant(ir.VectorType(FLOAT, len(indices)), ir.Undefined)
        for lane, index in enumerate(indices):
            vector = self.build.insert_element(vector, self.load(array, index), ir.Constant(INT32, lane))
        return vector

    def elements(self, vector: ir.Value) -> list[ir.Value]:
        """The numbers of a vector."""
        return [self.build.extract_element(vector, ir.Constant(INT32, lane)) for lane in range(vector.type.count)]

    def load_or_zero(self, array: ir.Value, index: ir.Value) -> ir.Value:
        """``array[index]``, or zero if ``array`` is a null pointer."""
        build, before = self.build, self.build.block
        with build.if_then(build.icmp_unsigned("!=", build.ptrtoint(array, WORD), word(0))):
            given = self.load(array, index)
            inside = build.block
        value = build.phi(FLOAT)
        value.add_incoming(given, inside)
        value.add_incoming(number(0.0), before)
        return value

    def store(self, value: ir.Value, array: ir.Value, index: ir.Value) -> None:
        """``array[index] = value``."""
        self.build.store(value, self.at(array, index, value.type))

    def array(self, kind: ir.Type, size: int, align: int = 8) -> ir.Value:
        """A local array. To be asked for outside of loops."""
        array = self.build.alloca(ir.ArrayType(kind, size))
        array.align = align
        array.type = POINTER  # llvmlite would write a typed pointer, which LLVM does not read any more
        return array

    def prefetch(self, address: ir.Value, locality: int = 3, write: bool = False) -> None:
        """
        Fetch what will be read soon into the cache.

        :param locality: 3 for the first level, 2 for the second.
        :param write: Whether it will be written to.
        """
        settings = [ir.Constant(INT32, setting) for setting in (int(write), locality, 1)]
        self._intrinsic("llvm.prefetch.p0", ir.VoidType(), [address, *settings])

    def minimum(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """The smaller one of two words."""
        return self.build.select(self.build.icmp_signed("<", a, b), a, b)

    def maximum(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """The larger one of two words."""
        return self.build.select(self.build.icmp_signed(">", a, b), a, b)

    def whole(self, begin: ir.Value, end: ir.Value, step: int) -> ir.Value:
        """Where the last whole step from ``begin`` on ends, if none may go beyond ``end``; ``step`` is a power of two."""
        # Not `srem`: of numbers that may be negative LLVM does more.
        return self.build.sub(end, self.build.and_(self.build.sub(end, begin), word(step - 1)))

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

    def fma(self, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        """``a * b + c``, rounded once, of numbers or of vectors."""
        return self._intrinsic(f"llvm.fma.{_SUFFIX[c.type]}", c.type, [a, b, c])

    def sqrt(self, a: ir.Value) -> ir.Value:
        """The square root of a number, or of those of a vector."""
        return self._intrinsic(f"llvm.sqrt.{_SUFFIX[a.type]}", a.type, [a])

    def call(self, intrinsic: str, a: ir.Value) -> ir.Value:
        """A function of LLVM's of one argument, such as ``llvm.sqrt``."""
        return self.build.call(self.module.declare_intrinsic(intrinsic, [a.type]), [a], fastmath=_FAST)

    def call_address(self, address: ir.Value, result: ir.Type, *arguments: ir.Value) -> ir.Value:
        """The function at an address."""
        return self.build.call(_Function(address, ir.FunctionType(result, [a.type for a in arguments])), arguments)

    def at_lane(self, batch: ir.Value, row: ir.Value, stride: ir.Value, lane: ir.Value) -> ir.Value:
        """The address of ``batch[row, lane]``, where ``stride`` is the length of a row."""
        return self.at(batch, self.build.add(self.build.mul(row, stride), lane))

    def load_vector(self, row: ir.Value, vector: int, align: int = 4) -> ir.Value:
        """The vector of that number from an address on."""
        return self.build.load(self.at(row, word(vector * LANES)), typ=VECTOR, align=align)

    def store_vector(self, value: ir.Value, row: ir.Value, vector: int, align: int = 4) -> None:
        """The way back."""
        self.build.store(value, self.at(row, word(vector * LANES)), align=align)

    def splat(self, value: ir.Value, lanes: int = LANES) -> ir.Value:
        """A vector of the same number."""
        undefined = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
        one = self.build.insert_element(undefined, value, ir.Constant(INT32, 0))
        return self.shuffle(one, one, [0] * lanes)

    def shuffle(self, a: ir.Value, b: ir.Value, lanes: Sequence[int]) -> ir.Value:
        """A vector of these lanes of two, of which the second one's are counted on."""
        mask = ir.Constant(ir.VectorType(INT32, len(lanes)), list(lanes))
        return self.build.shuffle_vector(a, b, mask)

    def total(self, start: ir.Value, vector: ir.Value) -> ir.Value:
        """``start`` and the sum of a vector's elements, in whatever order is fast."""
        name = f"llvm.vector.reduce.fadd.{_SUFFIX[vector.type]}"
        return self._intrinsic(name, FLOAT, [start, vector], fastmath=("reassoc",))

    def sums_of_four(self, vectors: list[ir.Value]) -> ir.Value:
        """
        The sums of the elements of four vectors, as a vector of four.

        The first steps are made for two and for four vectors at once, within groups of four lanes, where processors
        shuffle fastest.
        """
        a, b, c, d = vectors
        groups = range(0, LANES, 4)

        def pairs(first: ir.Value, second: ir.Value, lanes: tuple[int, int, int, int]) -> ir.Value:
            return self.shuffle(first, second, [group + lane for group in groups for lane in lanes])

        low, high = (0, LANES, 1, LANES + 1), (2, LANES + 2, 3, LANES + 3)
        ab = self.add(pairs(a, b, low), pairs(a, b, high))
        cd = self.add(pairs(c, d, low), pairs(c, d, high))
        low, high = (0, 1, LANES, LANES + 1), (2, 3, LANES + 2, LANES + 3)
        total = self.add(pairs(ab, cd, low), pairs(ab, cd, high))
        half = LANES // 2
        while half >= len(vectors):
            first, second = (self.shuffle(total, total, range(begin, begin + half)) for begin in (0, half))
            total, half = self.add(first, second), half // 2
        return total

    def vectors_or(
        self, is_first: ir.Value, first: Callable[[], ir.Value], before: Callable[[], list[ir.Value]]
    ) -> list[ir.Value]:
        """
        What sums start from.

        :param is_first: Whether nothing was summed yet: then each starts from the vector that ``first`` writes.
        :param before: Writes how the sums so far are loaded.
        """
        build = self.build
        with build.if_else(is_first) as (fresh, later):
            with fresh:
                start = first()
                fresh_end = build.block
            with later:
                loaded = before()
                later_end = build.block
        sums = [build.phi(VECTOR) for _ in loaded]
        for total, previous in zip(sums, loaded, strict=True):
            total.add_incoming(start, fresh_end)
            total.add_incoming(previous, later_end)
        return sums

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

    def _intrinsic(self, name: str, result: ir.Type, arguments: list[ir.Value], fastmath: tuple[str, ...] = ()) -> ir.Value:
        """Of LLVM's functions llvmlite's builder does not know all, nor all for vectors: declared here."""
        kind = ir.FunctionType(result, [argument.type for argument in arguments])
        function = self.module.globals.get(name) or ir.Function(self.module, kind, name)
        return self.build.call(function, arguments, fastmath=fastmath)


class _Function(NamedTuple):
    """An address, as what llvmlite can call: LLVM's pointers do not say what they point to."""

    address: ir.Value
    function_type: ir.FunctionType

    def get_reference(self) -> str:
        """What is written into the call."""
        return self.address.get_reference()


def word(value: int) -> ir.Constant:
    """An integer constant."""
    return ir.Constant(WORD, value)


def number(value: float) -> ir.Constant:
    """A float32 constant."""
    return ir.Constant(FLOAT, value)


def column_type(bits: int) -> ir.IntType:
    """Of the columns of a topology: 16 bits where that is enough, else 32."""
    return {16: INT16, 32: INT32}[bits]
