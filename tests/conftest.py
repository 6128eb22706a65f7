"""Tests are stricter than users: types never promote in silence, ranks never broadcast in silence, warnings are errors."""

import gc
import os
from importlib.metadata import version
from pathlib import Path

# Most of a run is spent compiling small programs, many of them more than once: they need not become fast, nor know in which
# line each of their operations was written.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + (
    " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)
os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"
if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 12):  # a flag that XLA does not know ends the process
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".pytest_cache" / "jax"))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import hypothesis
import jax
import pytest

gc.freeze()  # what is imported stays
gc.set_threshold(100_000)

# The same cases in every run; `--hypothesis-profile=default` draws others.
hypothesis.settings.register_profile("repeatable", derandomize=True)
hypothesis.settings.load_profile("repeatable")

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Every property is tested on every row of the table; on variants, "adam-plateau" beside "adam", with the slow tests."""
    import zoo

    for item in items:
        if getattr(getattr(item, "module", None), "OPTIMIZERS", None) is zoo.OPTIMIZERS and zoo.VARIANTS & set(names_in(item)):
            item.add_marker(pytest.mark.slow)


def names_in(item):
    callspec = getattr(item, "callspec", None)
    return [value for value in callspec.params.values() if isinstance(value, str)] if callspec else []


@pytest.fixture
def force(monkeypatch):
    """A function that makes every platform use one form of a step that may not be taken."""
    from mithril_opt.core import branch

    def use(form):
        jax.clear_caches()
        for lazily in branch.FORMS:
            monkeypatch.setitem(branch.FORMS, lazily, {"default": form})

    yield use
    jax.clear_caches()


@pytest.fixture(autouse=True, scope="module")
def forget():
    """Programs of one module are of no use to the next, and fill the memory."""
    yield
    jax.clear_caches()
