"""
As ``benchmarks/without_avx512.py``, for x86-64 processors that have no AVX either. To be imported before any kernel is
compiled.
"""

import llvmlite.binding as llvm

if llvm.get_host_cpu_features().get("sse2", False):
    llvm.get_host_cpu_features = lambda: llvm.FeatureMap()
    llvm.get_host_cpu_name = lambda: "x86-64"
