"""
The compiled kernels as LLVM assembly, and their compilation for the processor at hand.

No compiler is needed: llvmlite brings LLVM as a wheel, for x86 and ARM alike. Compiling takes a quarter to
half a second, once per process. The same text serves every processor, since LLVM splits vectors of 16 floats into what
there is.

Batches are stored feature by feature: ``x[c]`` is the row of all samples' values of feature ``c``, padded to
whole vectors. A weight ``v`` at ``(i, c)`` then adds ``v * x[c]`` to ``y[i]``: vector operations, whatever the
topology. Sums of one output row stay in registers over all weights of a row (a *tile* is as many lanes of the batch
as fit), so that every weight costs one load and one multiply-add per vector, nothing else.
"""

import ctypes
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, NamedTuple

import llvmlite.binding as llvm

LANES = 16
"""Floats per vector; batches are padded to a multiple of it."""
_VECTOR = f"<{LANES} x float>"
# How many weights ahead a scattered value is fetched into the cache.
_PREFETCH_DISTANCE = 16

_POINTER, _INT = ctypes.c_void_p, ctypes.c_int64


@cache
def host_cpu() -> str:
    """LLVM's name of this processor's family, such as ``znver4``."""
    return llvm.get_host_cpu_name()


@cache
def tile_vectors() -> tuple[int, ...]:
    """Vectors per tile, largest first: half of the vector registers, and smaller ones for the rest of a batch."""
    return (16, 4, 1) if llvm.get_host_cpu_features().get("avx512f", False) else (4, 1)


class Kernel(NamedTuple):
    """Two ways to call a compiled kernel."""

    call: Any
    """``call(*arguments, row_begin, row_end)``; releases Python's lock."""
    task: int
    """Address of a C function ``void task(int64_t *data)`` for a thread pool, see :func:`_task`."""
    n_arguments: int
    """Arguments before ``row_begin``."""


@cache
def kernel(name: str, vectors: int = 0, column_bits: int = 32) -> Kernel:
    """
    Compile a kernel for this processor, once.

    :param name: Name of one of the functions below, without its underscore.
    :param vectors: Vectors per tile, for the kernels that work on batches.
    :param column_bits: Size of a column index, for those that do not: 16 or 32.
    """
    writers: dict[str, tuple[Callable[..., str], int, int]] = {
        "multiply": (_multiply, 8, 4),
        "multiply_transposed": (_multiply_transposed, 8, 4),
        "sample_product": (_sample_product, 6, 3),
        "multiply_one": (_multiply_one, 6, 0),
        "multiply_one_transposed": (_multiply_one_transposed, 5, 0),
        "sample_product_one": (_sample_product_one, 5, 0),
    }
    write, n_pointers, n_integers = writers[name]
    if vectors:
        return make_kernel(write(vectors), n_pointers, n_integers)
    # For one sample, LLVM would gather with vector instructions, which take longer than one load after the other.
    return make_kernel(write(column_bits), n_pointers, n_integers, vectorize=False)


def make_kernel(assembly: str, n_pointers: int, n_integers: int, vectorize: bool = True) -> Kernel:
    """
    Compile a module with a function ``kernel`` of pointers, integers, ``row_begin`` and ``row_end``.

    :param n_pointers: How many pointers come first.
    :param n_integers: How many integers follow, without the last two.
    :param vectorize: Whether LLVM may turn scalar operations into vector operations.
    """
    engine = compile_assembly(assembly + _task(n_pointers, n_integers), vectorize)
    types = [_POINTER] * n_pointers + [_INT] * (n_integers + 2)
    call = ctypes.CFUNCTYPE(None, *types)(engine.get_function_address("kernel"))
    return Kernel(call, engine.get_function_address("task"), n_pointers + n_integers)


_engines: list[Any] = []  # compiled code lives as long as its engine


def compile_assembly(assembly: str, vectorize: bool = True) -> Any:
    """
    An engine with the compiled functions of a module, for this processor; it is kept for ever.

    :param vectorize: Whether LLVM may turn scalar operations into vector operations.
    """
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module = llvm.parse_assembly(assembly)
    module.verify()
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=host_cpu(), features=llvm.get_host_cpu_features().flatten(), opt=3
    )
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    options.loop_vectorization = options.slp_vectorization = vectorize
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    _engines.append(engine)
    return engine


def _task(n_pointers: int, n_integers: int) -> str:
    """
    ``task(data)``: the share of one thread of a pool in a kernel call.

    ``data`` is an array of 64-bit words: the addresses of ``omp_get_thread_num`` and ``omp_get_num_threads``, the
    number of row ranges, the address of their bounds, and the arguments of the kernel before ``row_begin``.
    """
    names = ["thread_num", "num_threads", "parts", "bounds", *(f"a{i}" for i in range(n_pointers + n_integers))]
    pointers = {"thread_num", "num_threads", "bounds", *(f"a{i}" for i in range(n_pointers))}

    def kind(name: str) -> str:
        return "ptr" if name in pointers else "i64"

    loads = _lines(
        f"  %{name}.at = getelementptr inbounds i64, ptr %data, i64 {i}\n  %{name} = load {kind(name)}, ptr %{name}.at"
        for i, name in enumerate(names)
    )
    arguments = ", ".join(f"{kind(name)} %{name}" for name in names[4:])
    part = f"""
  %begin.at = getelementptr inbounds i64, ptr %bounds, i64 %part
  %begin = load i64, ptr %begin.at
  %end.at = getelementptr inbounds i64, ptr %begin.at, i64 1
  %end = load i64, ptr %end.at
  call void @kernel({arguments}, i64 %begin, i64 %end)"""
    return f"""
define void @task(ptr %data) {{
entry:
  %part.slot = alloca i64
{loads}
  %thread.32 = call i32 %thread_num()
  %thread = zext i32 %thread.32 to i64
  %threads.32 = call i32 %num_threads()
  %threads = zext i32 %threads.32 to i64
{_loop("part", "%thread", "%parts", part, step="%threads")}
  ret void
}}
"""


def _function(arguments: str, slots: Iterable[str], body: str) -> str:
    """A whole module with one function. ``slots`` are local variables; LLVM turns them into registers."""
    return f"""
declare {_VECTOR} @llvm.fma.v{LANES}f32({_VECTOR}, {_VECTOR}, {_VECTOR})
declare float @llvm.vector.reduce.fadd.v{LANES}f32(float, {_VECTOR})
declare float @llvm.fma.f32(float, float, float)
declare i64 @llvm.smin.i64(i64, i64)
declare void @llvm.prefetch.p0(ptr, i32, i32, i32)

define void @kernel({arguments}) {{
entry:
{_lines(f"  {slot}" for slot in slots)}
{body}
  ret void
}}
"""


def _lines(lines: Iterable[str]) -> str:
    return "\n".join(lines)


def _loop(name: str, start: str, stop: str, body: str, step: int | str = 1) -> str:
    """``for %name in range(start, stop, step)``; needs the slot ``%name.slot``."""
    return f"""
  store i64 {start}, ptr %{name}.slot
  br label %{name}.head
{name}.head:
  %{name} = load i64, ptr %{name}.slot
  %{name}.more = icmp slt i64 %{name}, {stop}
  br i1 %{name}.more, label %{name}.body, label %{name}.exit
{name}.body:
{body}
  %{name}.next = add nsw i64 %{name}, {step}
  store i64 %{name}.next, ptr %{name}.slot
  br label %{name}.head
{name}.exit:
"""


def _load_index(name: str, array: str, position: str, bits: int = 32) -> str:
    """``%name = array[position]``, an index of 16 or 32 bits as a 64-bit number."""
    return f"""
  %{name}.at = getelementptr inbounds i{bits}, ptr {array}, i64 {position}
  %{name}.{bits} = load i{bits}, ptr %{name}.at
  %{name} = zext i{bits} %{name}.{bits} to i64"""


def _load_float(name: str, array: str, position: str) -> str:
    return f"""
  %{name}.at = getelementptr inbounds float, ptr {array}, i64 {position}
  %{name} = load float, ptr %{name}.at"""


def _row_pointer(name: str, array: str, row: str) -> str:
    """``%name``: where row ``row`` of a batch begins, at the lanes of the current tile."""
    return f"""
  %{name}.offset = mul nsw i64 {row}, %stride
  %{name}.lane = add nsw i64 %{name}.offset, %tile.lane
  %{name} = getelementptr inbounds float, ptr {array}, i64 %{name}.lane"""


def _vector_at(name: str, row: str, u: int) -> str:
    return f"  %{name}.at = getelementptr inbounds float, ptr %{row}, i64 {u * LANES}"


def _multiply(vectors: int, transposed: bool = False) -> str:
    """
    ``y[i] (+)= sum over weights k of row i: value(k) * x[col[k]]``, for rows ``[row_begin, row_end)``.

    ``begin`` and ``end`` say which weights of a row to use, so that a call can be about a block of columns whose
    part of ``x`` stays in the cache. ``accumulate`` adds to ``y``; otherwise ``y`` starts from ``bias``, or from
    zero where that is a null pointer. ``stride`` is the length of a row of ``x`` and ``y``.
    """
    value = _load_float("value", "%values", "%k")
    if transposed:
        value = (
            f"""
  %ahead = add nsw i64 %k, {_PREFETCH_DISTANCE}
  %ahead.in = call i64 @llvm.smin.i64(i64 %ahead, i64 %last)"""
            + _load_index("soon", "%order", "%ahead.in")
            + """
  %soon.value = getelementptr inbounds float, ptr %values, i64 %soon
  call void @llvm.prefetch.p0(ptr %soon.value, i32 0, i32 3, i32 1)"""
            + _load_index("place", "%order", "%k")
            + _load_float("value", "%values", "%place")
        )
    weights = _loop(
        "k",
        "%from",
        "%to",
        value
        + f"""
  %value.1 = insertelement {_VECTOR} poison, float %value, i32 0
  %value.n = shufflevector {_VECTOR} %value.1, {_VECTOR} poison, <{LANES} x i32> zeroinitializer"""
        + _load_index("column", "%col", "%k")
        + _row_pointer("x.row", "%x", "%column")
        + "\n"
        + _lines(
            _vector_at(f"x{u}", "x.row", u)
            + f"""
  %x{u} = load {_VECTOR}, ptr %x{u}.at, align 4
  %old{u} = load {_VECTOR}, ptr %sum{u}
  %new{u} = call {_VECTOR} @llvm.fma.v{LANES}f32({_VECTOR} %value.n, {_VECTOR} %x{u}, {_VECTOR} %old{u})
  store {_VECTOR} %new{u}, ptr %sum{u}"""
            for u in range(vectors)
        ),
    )
    tile = (
        f"  %tile.lane = mul nsw i64 %tile, {vectors * LANES}"
        + _row_pointer("y.row", "%y", "%row")
        + "\n"
        + _lines(_vector_at(f"y{u}", "y.row", u) for u in range(vectors))
        + """
  br i1 %adds, label %resume, label %fresh
resume:
"""
        + _lines(
            f"  %y{u} = load {_VECTOR}, ptr %y{u}.at, align 4\n  store {_VECTOR} %y{u}, ptr %sum{u}" for u in range(vectors)
        )
        + """
  br label %started
fresh:
"""
        + _lines(f"  store {_VECTOR} %bias.n, ptr %sum{u}" for u in range(vectors))
        + """
  br label %started
started:
"""
        + weights
        + _lines(
            f"  %total{u} = load {_VECTOR}, ptr %sum{u}\n  store {_VECTOR} %total{u}, ptr %y{u}.at, align 4"
            for u in range(vectors)
        )
    )
    row = (
        _load_index("from", "%begin", "%row")
        + _load_index("to", "%end", "%row")
        + """
  store float 0.0, ptr %bias.slot
  br i1 %biased, label %with_bias, label %with_or_without
with_bias:"""
        + _load_float("bias.given", "%bias", "%row")
        + f"""
  store float %bias.given, ptr %bias.slot
  br label %with_or_without
with_or_without:
  %bias.value = load float, ptr %bias.slot
  %bias.1 = insertelement {_VECTOR} poison, float %bias.value, i32 0
  %bias.n = shufflevector {_VECTOR} %bias.1, {_VECTOR} poison, <{LANES} x i32> zeroinitializer
"""
        + _loop("tile", "0", "%tiles", tile)
    )
    return _function(
        "ptr noalias %values, ptr noalias %order, ptr noalias %begin, ptr noalias %end, ptr noalias %col, "
        "ptr noalias %x, ptr noalias %bias, ptr noalias %y, "
        "i64 %stride, i64 %tiles, i64 %accumulate, i64 %last, i64 %row_begin, i64 %row_end",
        [
            *(f"%{name}.slot = alloca i64" for name in ("row", "tile", "k")),
            "%bias.slot = alloca float",
            *(f"%sum{u} = alloca {_VECTOR}" for u in range(vectors)),
            "%adds = icmp ne i64 %accumulate, 0",
            "%biased = icmp ne ptr %bias, null",
        ],
        _loop("row", "%row_begin", "%row_end", row),
    )


def _multiply_transposed(vectors: int) -> str:
    """
    The same with values in another order: ``value(k) = values[order[k]]``.

    ``last`` is the last position of ``order``: values are fetched ahead up to there.
    """
    return _multiply(vectors, transposed=True)


def _sample_product(vectors: int) -> str:
    """
    ``dv[k] (+)= sum over the batch: g[i] * x[col[k]]`` for the weights ``k`` of rows ``[row_begin, row_end)``.

    ``begin`` and ``end`` select weights as above. Lanes beyond the batch have to be zero.
    """
    # Several partial sums, since a multiply-add takes longer than the next one can wait.
    chains = min(4, vectors)
    products = _lines(
        _vector_at(f"x{u}", "x.row", u)
        + f"""
  %x{u} = load {_VECTOR}, ptr %x{u}.at, align 4
  %p{u} = call {_VECTOR} @llvm.fma.v{LANES}f32({_VECTOR} %g{u}, {_VECTOR} %x{u}, """
        + (f"{_VECTOR} zeroinitializer)" if u < chains else f"{_VECTOR} %p{u - chains})")
        for u in range(vectors)
    )
    partial = [f"%p{vectors - chains + c}" for c in range(chains)]
    additions: list[str] = []
    while len(partial) > 1:
        merged = f"%m{len(additions)}"
        additions.append(f"  {merged} = fadd {_VECTOR} {partial[0]}, {partial[1]}")
        partial = [*partial[2:], merged]
    weights = _loop(
        "k",
        "%from",
        "%to",
        _load_index("column", "%col", "%k")
        + _row_pointer("x.row", "%x", "%column")
        + "\n"
        + products
        + "\n"
        + _lines(additions)
        + f"""
  %dv.at = getelementptr inbounds float, ptr %dv, i64 %k
  %dv.old = load float, ptr %dv.at
  %start = select i1 %adds, float %dv.old, float 0.0
  %sum = call reassoc float @llvm.vector.reduce.fadd.v{LANES}f32(float %start, {_VECTOR} {partial[0]})
  store float %sum, ptr %dv.at""",
    )
    tile = (
        f"""
  %tile.lane = mul nsw i64 %tile, {vectors * LANES}
  %later = icmp sgt i64 %tile, 0
  %adds = or i1 %later, %resumes"""
        + _row_pointer("g.row", "%g", "%row")
        + "\n"
        + _lines(
            _vector_at(f"g{u}", "g.row", u) + f"\n  %g{u} = load {_VECTOR}, ptr %g{u}.at, align 4" for u in range(vectors)
        )
        + weights
    )
    row = _load_index("from", "%begin", "%row") + _load_index("to", "%end", "%row") + _loop("tile", "0", "%tiles", tile)
    return _function(
        "ptr noalias %dv, ptr noalias %begin, ptr noalias %end, ptr noalias %col, ptr noalias %g, ptr noalias %x, "
        "i64 %stride, i64 %tiles, i64 %accumulate, i64 %row_begin, i64 %row_end",
        [
            *(f"%{name}.slot = alloca i64" for name in ("row", "tile", "k")),
            "%resumes = icmp ne i64 %accumulate, 0",
        ],
        _loop("row", "%row_begin", "%row_end", row),
    )


# A batch of one sample: vectors run over the weights of a row instead.
_UNROLL = 8


def _multiply_one(column_bits: int) -> str:
    """``y[i] = bias[i] + sum over weights k of row i: values[k] * x[col[k]]``; ``bias`` may be null."""

    def term(k: str, tag: str) -> str:
        return (
            _load_index(f"column{tag}", "%col", k, column_bits)
            + _load_float(f"x{tag}", "%x", f"%column{tag}")
            + _load_float(f"value{tag}", "%values", k)
            + f"""
  %old{tag} = load float, ptr %sum{tag}
  %new{tag} = call float @llvm.fma.f32(float %value{tag}, float %x{tag}, float %old{tag})
  store float %new{tag}, ptr %sum{tag}"""
        )

    unrolled = _loop(
        "k",
        "%from",
        "%unrolled.to",
        _lines(f"  %k{u} = add nsw i64 %k, {u}" + term(f"%k{u}", str(u)) for u in range(_UNROLL)),
        step=_UNROLL,
    )
    rest = _loop("r", "%unrolled.to", "%to", term("%r", "r"))
    names = [*map(str, range(_UNROLL)), "r"]
    total = "".join(
        f"""
  %part{name} = load float, ptr %sum{name}
  %total{name} = fadd float {"%bias.value" if i == 0 else f"%total{names[i - 1]}"}, %part{name}"""
        for i, name in enumerate(names)
    )
    row = (
        _load_index("from", "%crow", "%row")
        + """
  %after = add nsw i64 %row, 1"""
        + _load_index("to", "%crow", "%after")
        + f"""
  %count = sub nsw i64 %to, %from
  %count.left = srem i64 %count, {_UNROLL}
  %unrolled.to = sub nsw i64 %to, %count.left
"""
        + _lines(f"  store float 0.0, ptr %sum{name}" for name in names)
        + unrolled
        + rest
        + """
  store float 0.0, ptr %bias.slot
  br i1 %biased, label %with_bias, label %with_or_without
with_bias:"""
        + _load_float("bias.given", "%bias", "%row")
        + """
  store float %bias.given, ptr %bias.slot
  br label %with_or_without
with_or_without:
  %bias.value = load float, ptr %bias.slot"""
        + total
        + """
  %y.at = getelementptr inbounds float, ptr %y, i64 %row
  store float %totalr, ptr %y.at"""
    )
    return _function(
        "ptr noalias %values, ptr noalias %crow, ptr noalias %col, ptr noalias %x, ptr noalias %bias, ptr noalias %y, "
        "i64 %row_begin, i64 %row_end",
        [
            *(f"%{name}.slot = alloca i64" for name in ("row", "k", "r")),
            "%bias.slot = alloca float",
            *(f"%sum{name} = alloca float" for name in names),
            "%biased = icmp ne ptr %bias, null",
        ],
        _loop("row", "%row_begin", "%row_end", row),
    )


def _each_weight(body: str, column_bits: int) -> str:
    """Rows, and weights of a row with ``%g.row``, the gradient of its output."""
    return _loop(
        "row",
        "%row_begin",
        "%row_end",
        _load_index("from", "%crow", "%row")
        + """
  %after = add nsw i64 %row, 1"""
        + _load_index("to", "%crow", "%after")
        + _load_float("g.row", "%g", "%row")
        + _loop("k", "%from", "%to", _load_index("column", "%col", "%k", column_bits) + body),
    )


def _multiply_one_transposed(column_bits: int) -> str:
    """``dx[col[k]] += values[k] * g[i]``: values are read in order, unlike through the transposed topology."""
    body = (
        _load_float("value", "%values", "%k")
        + _load_float("dx.old", "%dx", "%column")
        + """
  %dx.new = call float @llvm.fma.f32(float %value, float %g.row, float %dx.old)
  store float %dx.new, ptr %dx.old.at"""
    )
    return _function(
        "ptr noalias %values, ptr noalias %crow, ptr noalias %col, ptr noalias %g, ptr noalias %dx, "
        "i64 %row_begin, i64 %row_end",
        [f"%{name}.slot = alloca i64" for name in ("row", "k")],
        _each_weight(body, column_bits),
    )


def _sample_product_one(column_bits: int) -> str:
    """``dv[k] = g[i] * x[col[k]]``."""
    body = (
        _load_float("x.value", "%x", "%column")
        + """
  %product = fmul float %g.row, %x.value
  %dv.at = getelementptr inbounds float, ptr %dv, i64 %k
  store float %product, ptr %dv.at"""
    )
    return _function(
        "ptr noalias %dv, ptr noalias %crow, ptr noalias %col, ptr noalias %g, ptr noalias %x, i64 %row_begin, i64 %row_end",
        [f"%{name}.slot = alloca i64" for name in ("row", "k")],
        _each_weight(body, column_bits),
    )
