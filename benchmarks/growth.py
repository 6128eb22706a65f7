"""How times grow with the number of leaves and with the number of parameters."""

import itertools
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.candidates import Candidate, make_works
from benchmarks.measure import donating_jit, timed
from benchmarks.tables import Row

LEAVES, PARAMETERS = "leaves of 256 parameters", "parameters in 16 leaves"
SIZES = {
    LEAVES: [10, 20, 50, 100, 200, 500, 1000, 2000, 5000],
    PARAMETERS: [1e6, 2e6, 5e6, 1e7, 2e7, 5e7, 1e8, 2e8, 5e8],
}
QUICK_SIZES = {LEAVES: [3, 10, 30], PARAMETERS: [1e5, 3e5, 1e6]}
QUANTITIES = ("ms", "prepare_s", "compile_s")


def measure(sizes: dict[str, list[float]], samples: int, tick: Callable[[str], None]) -> dict[str, list[Row]]:
    """All sweeps; one candidate at a time, so that the largest fits into memory."""
    candidates = make_works()["adamw"].candidates[:2]
    sweeps: dict[str, list[Row]] = {what: [] for what in sizes}
    for what, size in itertools.chain.from_iterable(zip(itertools.repeat(what), sizes[what]) for what in sizes):
        for candidate in candidates:
            tick(f"{candidate.name}, {size:,.0f} {what}")
            sweeps[what].append(
                {"candidate": candidate.name, "size": size, **measure_one(candidate, shapes(what, size), samples)}
            )
    return sweeps


def shapes(what: str, size: float) -> list[tuple[int, int]]:
    """The leaves: so many small ones, or 16 that make up so many parameters."""
    return [(16, 16)] * int(size) if what == LEAVES else [(math.ceil(size / 16 / 1000), 1000)] * 16


def measure_one(candidate: Candidate, leaves: list[tuple[int, int]], samples: int) -> Row:
    """Trace, lower, compile and run one step, with nothing cached."""
    params, grads = ({str(i): jnp.full(shape, 0.01) for i, shape in enumerate(leaves)} for _ in "pg")
    state = jax.jit(candidate.init)(params)
    jax.clear_caches()
    began = time.perf_counter()
    lowered = donating_jit(candidate.step).lower(params, grads, state)
    prepared = time.perf_counter()
    compiled = lowered.compile()
    finished = time.perf_counter()
    seconds = median_step(compiled, params, grads, state, samples)
    return {"prepare_s": prepared - began, "compile_s": finished - prepared, "ms": 1e3 * seconds}


def median_step(compiled: Any, params: Any, grads: Any, state: Any, samples: int) -> float:
    """The median time of a step, of `samples` runs after two to warm up."""

    def run(steps: int) -> None:
        nonlocal params, state
        for _ in range(steps):
            params, state = compiled(params, grads, state)
        jax.block_until_ready((params, state))

    run(2)
    steps = math.ceil(0.005 / timed(run, 1))
    return statistics.median(timed(run, steps) for _ in range(samples))


def exponents(sweeps: dict[str, list[Row]]) -> dict[tuple[str, str, str], float]:
    """The exponent of a power law through the upper half of every curve, where constant costs no longer count."""
    found = {}
    for what, rows in sweeps.items():
        for candidate in dict.fromkeys(row["candidate"] for row in rows):
            own = [row for row in rows if row["candidate"] == candidate]
            upper = own[len(own) // 2 :]
            for key in QUANTITIES:
                found[what, key, candidate] = slope([row["size"] for row in upper], [row[key] for row in upper])
    return found


def slope(sizes: list[float], values: list[float]) -> float:
    """The least-squares slope of log `values` over log `sizes`."""
    return statistics.linear_regression([math.log(size) for size in sizes], [math.log(value) for value in values]).slope
