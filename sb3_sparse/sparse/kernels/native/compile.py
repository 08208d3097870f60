"""
From a module of LLVM to code for the processor at hand.

No compiler is needed: llvmlite brings LLVM as a wheel, for x86 and ARM alike. Compiling a kernel takes a quarter to half a
second, once per process.
"""

from functools import cache
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir

_engines: list[Any] = []  # compiled code lives as long as its engine


@cache
def host_cpu() -> str:
    """LLVM's name of this processor's family, such as ``znver4``."""
    return llvm.get_host_cpu_name()


def compile_module(module: ir.Module, vectorize: bool = True) -> Any:
    """
    An engine with the compiled functions of a module, for this processor; it is kept for ever.

    :param vectorize: Whether LLVM may turn scalar operations into vector operations.
    """
    optimized, machine = _optimize(module, vectorize)
    engine = llvm.create_mcjit_compiler(optimized, machine)
    engine.finalize_object()
    _engines.append(engine)
    return engine


def optimized_ir(module: ir.Module, vectorize: bool = True) -> str:
    """What LLVM's optimiser makes of a module, as text to read."""
    return str(_optimize(module, vectorize)[0])


def assembly(module: ir.Module, vectorize: bool = True) -> str:
    """The instructions of this processor that a module becomes, as text to read."""
    optimized, machine = _optimize(module, vectorize)
    return machine.emit_assembly(optimized)


def _optimize(module: ir.Module, vectorize: bool) -> tuple[Any, Any]:
    """A module after LLVM's optimiser, and the processor that it is for."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    parsed = llvm.parse_assembly(str(module))
    parsed.verify()
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=host_cpu(), features=llvm.get_host_cpu_features().flatten(), opt=3
    )
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    options.loop_vectorization = options.slp_vectorization = vectorize
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(parsed, builder)
    return parsed, machine
