"""Tests run on the CPU, on 8 simulated devices, and share what they compile."""

import atexit
import gc
import os
import shutil
import tempfile
from importlib.metadata import version

os.environ["JAX_PLATFORMS"] = "cpu"
# Most of a test is compilation.  Level 0 of LLVM and the older way to emit fusions, which JAX 0.11
# no longer has, halve the processor time of the tests.
OLD_FUSIONS = version("jax").startswith("0.10.")
os.environ["XLA_FLAGS"] = " ".join(
    [
        "--xla_backend_optimization_level=0",
        "--xla_cpu_use_fusion_emitters=false" if OLD_FUSIONS else "",
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
    ]
)
# The workers of pytest-xdist inherit the folder from the process that starts them.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="densenet_jax_compiled_")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
# Also the smallest programs: most are single operations, which many tests compile.
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
# Tracing makes many small objects, which the collector would look through again and again.
gc.set_threshold(20_000, 20, 50)

# Files whose few tests take minutes.  Begun last they would keep one worker busy while others wait.
LONG = ("test_golden.py", "test_processes.py", "test_docs.py", "test_notebooks.py")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in LONG)  # stable: the rest keeps its order
