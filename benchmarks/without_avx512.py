"""
Import this before any kernel is compiled, and they are compiled for x86-64 processors with AVX2 and no AVX-512.

Torch takes the same from its own variable: ``ATEN_CPU_CAPABILITY=avx2``.
"""

import llvmlite.binding as llvm

host_features = llvm.get_host_cpu_features()
if host_features.get("avx2", False):
    features = llvm.FeatureMap({name: has and not name.startswith(("avx512", "evex")) for name, has in host_features.items()})
    llvm.get_host_cpu_features = lambda: features
    llvm.get_host_cpu_name = lambda: "x86-64-v3"
