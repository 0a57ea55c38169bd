"""Settings of the environment for jax, which is not imported here: tests/data works without it.

Tests compile far more than they compute, so XLA's CPU backend is told to compile quickly (8 times
quicker than by default). Set XLA_FLAGS, to nothing if need be, to test under other flags.
"""

import os
import tempfile

# Before jax is imported, which reads it; the processes that tests start inherit it.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_use_fusion_emitters=false",
)

# The commands that tests start run the same programs; outside of the tests nothing is kept.
_PROGRAMS = tempfile.TemporaryDirectory()
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _PROGRAMS.name)

# Some tests compile for TPUs that are not there; none may look for one. Set it to test on a GPU.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
