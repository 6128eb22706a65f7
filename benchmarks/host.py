"""What happens on the host: tracing, lowering, compiling, calls outside jit."""

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax

from benchmarks.candidates import Candidate, Work
from benchmarks.measure import Runner, donating_jit, race
from benchmarks.tables import Row, Table
from benchmarks.workloads import Workload

Stages = tuple[float, float, float]


def measure_compilation(work: Work, workload: Workload, rounds: int, tick: Callable[[], None]) -> Table:
    """How long it takes until the first step can run, with nothing cached."""
    params, grads = workload.tree(seed=0), workload.tree(seed=1)
    stages: dict[str, list[Stages]] = {candidate.name: [] for candidate in work.candidates}
    for _ in range(rounds):
        for candidate in work.candidates:
            stages[candidate.name].append(compile_once(candidate, params, grads))
        tick()
    medians = {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in stages.items()}
    peer = medians[work.candidates[1].name]
    return Table(
        "compile",
        workload.name,
        f"Compilation of {work.title}, {workload}",
        [
            {
                "candidate": name,
                **dict(zip(("trace_s", "lower_s", "compile_s"), own, strict=True)),
                "prepare_ratio": (own[0] + own[1]) / (peer[0] + peer[1]),
                "compile_ratio": own[2] / peer[2],
                "samples_s": stages[name],
            }
            for name, own in medians.items()
        ],
    )


def compile_once(candidate: Candidate, params: Any, grads: Any) -> Stages:
    """Seconds for trace, lower and compile, without the garbage of the candidate before."""
    state = jax.jit(candidate.init)(params)
    jax.clear_caches()
    gc.collect()
    times = [time.perf_counter()]
    stage: Any = donating_jit(candidate.step)
    for advance in ("trace", "lower", "compile"):
        stage = getattr(stage, advance)(*((params, grads, state) if advance == "trace" else ()))
        times.append(time.perf_counter())
    return times[1] - times[0], times[2] - times[1], times[3] - times[2]


def measure_eager(work: Work, workload: Workload, samples: int, tick: Callable[[], None]) -> Table:
    """Steps called from Python, without a jit around them."""
    grads = workload.tree(seed=1)
    runners = [eager_runner(candidate, workload, grads) for candidate in work.candidates[:2]]
    race(runners, samples, tick=tick)
    rows: list[Row] = [
        {
            "candidate": runner.name,
            "ms": 1e3 * runner.seconds,
            "ratio": runner.seconds / runners[1].seconds,
            "samples_s": runner.samples,
        }
        for runner in runners
    ]
    return Table("eager", workload.name, f"{work.title} outside jit, {workload}", rows)


def eager_runner(candidate: Candidate, workload: Workload, grads: Any) -> Runner:
    """`candidate` as Python runs it, operation by operation unless it compiles itself."""
    params = workload.tree(seed=0)
    state = candidate.init(params)

    def run(steps: int) -> None:
        nonlocal params, state
        for _ in range(steps):
            params, state = candidate.step(params, grads, state)
        jax.block_until_ready((params, state))

    return Runner(candidate.name, run)
