"""Schedules: what one evaluation costs inside a compiled loop, and called from Python."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks.candidates import OURS
from benchmarks.measure import Runner, race
from benchmarks.tables import Row, Table
from mithril_opt import CosineAnnealingLR, ExponentialLR, LinearLR, LinearWarmupScheduler, StepLR

LOOP = 20_000  # evaluations per run of the loop
Schedule = Callable[[Any], Any]

SCHEDULES: dict[str, tuple[Schedule, Schedule]] = {
    "cosine": (CosineAnnealingLR(0.1, T_max=1000), optax.cosine_decay_schedule(0.1, 1000)),
    "warm-up, cosine": (
        LinearWarmupScheduler(100, 0.0, 0.1, after_scheduler=CosineAnnealingLR(0.1, T_max=900)),
        optax.warmup_cosine_decay_schedule(0.0, 0.1, 100, 1000),
    ),
    "linear": (LinearLR(0.1, 1.0, 0.1, total_iters=1000), optax.linear_schedule(0.1, 0.01, 1000)),
    "step": (StepLR(0.1, step_size=100, gamma=0.5), optax.exponential_decay(0.1, 100, 0.5, staircase=True)),
    "exponential": (ExponentialLR(0.1, gamma=0.999), optax.exponential_decay(0.1, 1, 0.999)),
}


def measure(samples: int, tick: Callable[[], None]) -> list[Table]:
    """A table per schedule."""
    return [measure_one(name, *pair, samples, tick) for name, pair in SCHEDULES.items()]


def measure_one(name: str, own: Schedule, other: Schedule, samples: int, tick: Callable[[], None]) -> Table:
    """Both libraries' version of one schedule."""
    candidates = {OURS: own, "optax": other}
    loops = [Runner(key, loop(schedule)) for key, schedule in candidates.items()]
    calls = [Runner(key, call(schedule)) for key, schedule in candidates.items()]
    race(loops + calls, samples, tick=tick)
    rows: list[Row] = [
        {
            "candidate": inside.name,
            "loop_ns": 1e9 * inside.seconds / LOOP,
            "eager_us": 1e6 * outside.seconds,
            "eager_ratio": outside.seconds / calls[1].seconds,
            "samples_s": [inside.samples, outside.samples],
        }
        for inside, outside in zip(loops, calls, strict=True)
    ]
    return Table("schedules", name, f"Schedule: {name}", rows)


def loop(schedule: Schedule) -> Callable[[int], None]:
    """A compiled loop of `LOOP` evaluations at a time."""

    @jax.jit
    def evaluate(start: jax.Array) -> jax.Array:
        total = jnp.float32(0)
        return jax.lax.fori_loop(0, LOOP, lambda i, total: total + schedule(start + i % 1000), total)

    def run(steps: int) -> None:
        for i in range(steps):
            jax.block_until_ready(evaluate(jnp.int32(i)))

    return run


def call(schedule: Schedule) -> Callable[[int], None]:
    """Single evaluations from Python."""
    count = jnp.int32(500)

    def run(steps: int) -> None:
        for _ in range(steps):
            jax.block_until_ready(schedule(count))

    return run
