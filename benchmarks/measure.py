"""Measuring: what the compiler says a step costs, and what a clock says, the candidates taking turns."""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import hlo
from benchmarks.candidates import Candidate
from benchmarks.workloads import Tree, Workload

SAMPLE_S = 0.02  # short steps are timed several at a time, so that waiting for them does not count
WARM_UP = 2
COPY_BYTES = 8  # per element: read and written


@dataclasses.dataclass
class Runner:
    """A candidate, ready to run.

    Attributes:
        name: the candidate's.
        run: takes so many steps and waits for them.
        counts: `bytes` and `temp` per parameter, and `launches`, where the compiler reports them.
        samples: seconds per step.
    """

    name: str
    run: Callable[[int], None]
    counts: dict[str, float] = dataclasses.field(default_factory=dict)
    samples: list[float] = dataclasses.field(default_factory=list)

    @property
    def seconds(self) -> float:
        """The median of the samples."""
        return statistics.median(self.samples)


def donating_jit(step: Callable[..., Any]) -> Any:
    """`step(params, grads, state)` compiled with the buffers of params and state handed over."""
    return jax.jit(step, donate_argnums=(0, 2))


def compile_step(candidate: Candidate, workload: Workload, grads: Tree) -> Runner:
    """`candidate` compiled, with parameters and a state of its own."""
    params = workload.tree(seed=0)
    state = jax.jit(candidate.init)(params)
    compiled = donating_jit(candidate.step).lower(params, grads, state).compile()

    def run(steps: int) -> None:
        nonlocal params, state
        for _ in range(steps):
            params, state = compiled(params, grads, state)
        jax.block_until_ready((params, state))

    return Runner(candidate.name, run, counts(compiled, workload.count))


def counts(compiled: Any, parameters: int) -> dict[str, float]:
    """Bytes accessed and bytes of temporaries, per parameter, and on a GPU launches; without what the backend does not report.

    On accelerators the bytes are read from the compiled program, which says what stays on the chip.
    """
    backend, program = jax.default_backend(), compiled.memory_analysis()
    if backend == "cpu":
        moved, launches = (compiled.cost_analysis() or {}).get("bytes accessed"), None
    else:
        counted = hlo.count(hlo.read(compiled.as_text()))
        moved, launches = counted["bytes"], counted["launches"] if backend == "gpu" else None
    sizes = {"bytes": moved, "temp": getattr(program, "temp_size_in_bytes", None)}
    found = {name: size / parameters for name, size in sizes.items() if size is not None}
    return found if launches is None else found | {"launches": launches}


def copy_runner(elements: int) -> Runner:
    """A pass over one buffer in place, which reads and writes 8 bytes per element."""
    compiled = jax.jit(lambda x: x + 1.0, donate_argnums=0)
    buffer = jnp.zeros(elements, jnp.float32)

    def run(steps: int) -> None:
        nonlocal buffer
        for _ in range(steps):
            buffer = compiled(buffer)
        jax.block_until_ready(buffer)

    return Runner("copy", run)


def copy_bandwidth(elements: int, samples: int) -> float:
    """Bytes per second that a copy of so many elements moves."""
    copy = copy_runner(elements)
    race([copy], samples)
    return COPY_BYTES * elements / copy.seconds


def timed(run: Callable[[int], None], steps: int) -> float:
    """Seconds per step."""
    began = time.perf_counter()
    run(steps)
    return (time.perf_counter() - began) / steps


def race(runners: list[Runner], samples: int, window: int = 1, tick: Callable[[], None] = lambda: None) -> None:
    """Fill in the samples of all runners, one of each in turn.

    Args:
        runners: who takes part.
        samples: how many of each.
        window: steps that belong together; a sample is a whole number of windows.
        tick: called after every round.
    """
    for runner in runners:
        runner.run(WARM_UP * window)
    steps = {id(runner): window * math.ceil(SAMPLE_S / window / timed(runner.run, window)) for runner in runners}
    for _ in range(samples):
        for runner in runners:
            runner.samples.append(timed(runner.run, steps[id(runner)]))
        tick()
