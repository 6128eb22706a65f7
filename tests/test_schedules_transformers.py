"""The schedules of transformers against a float64 transcription of their formulas."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mithril_opt import (
    get_constant_schedule,
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_cosine_with_hard_restarts_schedule_with_warmup,
    get_cosine_with_min_lr_schedule_with_warmup,
    get_cosine_with_min_lr_schedule_with_warmup_lr_rate,
    get_inverse_sqrt_schedule,
    get_linear_schedule_with_warmup,
    get_polynomial_decay_schedule_with_warmup,
    get_wsd_schedule,
)

STEPS = np.arange(160)

# What transformers 5.23.0 gives for a base rate of 10, 2 steps of warm-up and 10 in all, to three decimals.
LENGTHS = dict(num_warmup_steps=2, num_training_steps=10)
TABLES = [
    (get_constant_schedule(10.0), [10.0] * 11),
    (get_constant_schedule_with_warmup(10.0, 2), [0.0, 5.0] + [10.0] * 9),
    (get_linear_schedule_with_warmup(10.0, **LENGTHS), [0.0, 5.0, 10.0, 8.75, 7.5, 6.25, 5.0, 3.75, 2.5, 1.25, 0.0]),
    (
        get_cosine_schedule_with_warmup(10.0, **LENGTHS),
        [0.0, 5.0, 10.0, 9.619, 8.536, 6.913, 5.0, 3.087, 1.464, 0.381, 0.0],
    ),
    (
        get_cosine_schedule_with_warmup(10.0, **LENGTHS, num_cycles=0.4),
        [0.0, 5.0, 10.0, 9.755, 9.045, 7.939, 6.545, 5.0, 3.455, 2.061, 0.955],
    ),
    (
        get_cosine_with_min_lr_schedule_with_warmup(10.0, **LENGTHS, min_lr=2.0),
        [0.0, 5.0, 10.0, 9.696, 8.828, 7.531, 6.0, 4.469, 3.172, 2.304, 2.0],
    ),
    (
        get_cosine_with_min_lr_schedule_with_warmup_lr_rate(10.0, 3, 10, min_lr_rate=0.2),
        [3.333, 6.667, 10.0, 9.604, 8.494, 6.89, 5.11, 3.506, 2.396, 2.0, 2.396],
    ),
    (
        get_cosine_with_min_lr_schedule_with_warmup_lr_rate(10.0, 3, 10, min_lr_rate=0.2, warmup_lr_rate=0.1),
        [1.0, 5.5, 10.0, 9.604, 8.494, 6.89, 5.11, 3.506, 2.396, 2.0, 2.396],
    ),
    (
        get_cosine_with_hard_restarts_schedule_with_warmup(10.0, **LENGTHS, num_cycles=2),
        [0.0, 5.0, 10.0, 8.536, 5.0, 1.464, 10.0, 8.536, 5.0, 1.464, 0.0],
    ),
    (
        get_polynomial_decay_schedule_with_warmup(10.0, **LENGTHS, power=2.0, lr_end=1e-7),
        [0.0, 5.0, 10.0, 7.656, 5.625, 3.906, 2.5, 1.406, 0.625, 0.156, 0.0],
    ),
    (get_inverse_sqrt_schedule(10.0, 2), [0.0, 5.0, 10.0, 8.165, 7.071, 6.325, 5.774, 5.345, 5.0, 4.714, 4.472]),
    (
        get_wsd_schedule(10.0, **LENGTHS, num_decay_steps=3, min_lr_ratio=0.1),
        [1.0, 5.5, 10.0, 10.0, 10.0, 10.0, 10.0, 10.0, 7.75, 3.25, 1.0],
    ),
    (
        get_wsd_schedule(10.0, **LENGTHS, num_decay_steps=3, warmup_type="1-sqrt", decay_type="1-sqrt", min_lr_ratio=0.1),
        [1.0, 3.636, 10.0, 10.0, 10.0, 10.0, 10.0, 10.0, 4.804, 2.652, 1.0],
    ),
    (
        get_wsd_schedule(10.0, 2, 9, num_stable_steps=4, warmup_type="cosine", decay_type="linear"),
        [0.0, 5.0, 10.0, 10.0, 10.0, 10.0, 10.0, 8.889, 7.778, 6.667, 5.556],
    ),
]


@pytest.mark.parametrize(("schedule", "table"), TABLES)
def test_known_tables(schedule, table):
    np.testing.assert_allclose(schedule(STEPS)[:11], table, atol=5.1e-4)


def warmed(k, warmup, after):
    return k / max(1, warmup) if k < warmup else after(k - warmup)


def early(k, w, rest, low, first):
    """A warm-up that is over with its last step, and does not start at 0."""
    if k >= w:
        return wave((k - w + 1) / rest) * (1 - low) + low
    return (k + 1) / w if first is None else first + (1 - first) * k / max(1, w - 1)


def wave(x):
    return (1 + math.cos(math.pi * x)) / 2


RISES = {"linear": lambda x: x, "cosine": lambda x: 1 - wave(x), "1-sqrt": lambda x: 1 - math.sqrt(1 - x)}
FALLS = {"linear": lambda x: 1 - x, "cosine": wave, "1-sqrt": lambda x: 1 - math.sqrt(x)}


def stable(k, w, s, d, r, rise, fall):
    if k < w:
        return r + (1 - r) * RISES[rise](k / max(1, w))
    if k < w + s:
        return 1.0
    return r + (1 - r) * FALLS[fall]((k - w - s) / d) if k < w + s + d else r


# Factors of the base rate at step k, with W steps of warm-up and T in all; restated from reading and running transformers.
def formulas(w, t):
    rest = max(1, t - w)
    yield get_constant_schedule, {}, lambda k: 1.0
    yield get_constant_schedule_with_warmup, dict(num_warmup_steps=w), lambda k: warmed(k, w, lambda j: 1.0)
    lengths = dict(num_warmup_steps=w, num_training_steps=t)
    yield get_linear_schedule_with_warmup, lengths, lambda k: warmed(k, w, lambda j: max(0, (t - w - j) / rest))
    for cycles in (0.5, 1.0, 1.5, 3.0):
        yield (
            get_cosine_schedule_with_warmup,
            dict(lengths, num_cycles=cycles),
            lambda k, c=cycles: warmed(k, w, lambda j: wave(2 * c * j / rest)),
        )
        for low in (0.0, 0.1):
            yield (
                get_cosine_with_min_lr_schedule_with_warmup,
                dict(lengths, num_cycles=cycles, min_lr=low * BASE),
                lambda k, c=cycles, low=low: warmed(k, w, lambda j: wave(2 * c * j / rest) * (1 - low) + low),
            )
    for first in (None, 0.0, 0.3)[: 3 if w > 1 else w]:
        yield (
            get_cosine_with_min_lr_schedule_with_warmup_lr_rate,
            dict(lengths, min_lr_rate=0.2, warmup_lr_rate=first),
            lambda k, first=first: early(k, w, rest, 0.2, first),
        )
    for cycles in (1, 2, 3, 7):
        yield (
            get_cosine_with_hard_restarts_schedule_with_warmup,
            dict(lengths, num_cycles=cycles),
            lambda k, c=cycles: warmed(k, w, lambda j: wave(c * j % rest / rest) if j < rest else 0.0),
        )
    for power, end in ((1.0, 1e-7), (2.0, 1e-3), (0.5, 0.0)):
        yield (
            get_polynomial_decay_schedule_with_warmup,
            dict(lengths, power=power, lr_end=end),
            lambda k, p=power, e=end: warmed(k, w, lambda j: (1 - e / BASE) * max(0, 1 - j / rest) ** p + e / BASE),
        )
    for scale in (None, 50):
        tau = scale or w or 10_000
        yield (
            get_inverse_sqrt_schedule,
            dict(num_warmup_steps=w, timescale=scale),
            lambda k, tau=tau: warmed(k, w, lambda j: math.sqrt(tau / (j + tau))),
        )
    for rise in RISES:
        for fall in FALLS:
            yield (
                get_wsd_schedule,
                dict(lengths, num_decay_steps=9, min_lr_ratio=0.05, warmup_type=rise, decay_type=fall),
                lambda k, rise=rise, fall=fall: stable(k, w, t - w - 9, 9, 0.05, rise, fall),
            )


BASE = 0.3
FORMULAS = [row for w, t in ((2, 13), (0, 40), (7, 43), (1, 20)) for row in formulas(w, t)]


@pytest.mark.parametrize("make", dict.fromkeys(row[0] for row in FORMULAS))
def test_formulas(make):
    tested = 0
    for function, arguments, factor in FORMULAS:
        if function is make:
            expected = [BASE * factor(k) for k in STEPS]
            np.testing.assert_allclose(function(BASE, **arguments)(STEPS), expected, rtol=1e-6, atol=1e-15)
            tested += 1
    assert tested >= 3


@pytest.mark.parametrize("cycles", [0.4, 0.75, 2.2])
def test_a_fraction_of_a_wave_is_exact_relative_to_the_peak(cycles):
    expected = [BASE * wave(2 * cycles * k / 60) for k in STEPS]
    np.testing.assert_allclose(get_cosine_schedule_with_warmup(BASE, 0, 60, cycles)(STEPS), expected, atol=1e-6 * BASE)


def test_the_end_of_the_training_is_exact():
    for make in (get_linear_schedule_with_warmup, get_cosine_schedule_with_warmup):
        assert float(make(0.1, 10, 1_000_000)(1_000_000)) == 0.0
        left = float(make(0.1, 10, 1_000_000)(999_999)) / 0.1
        exact = 1 / 999_990 if make is get_linear_schedule_with_warmup else math.sin(math.pi / 2 / 999_990) ** 2
        np.testing.assert_allclose(left, exact, rtol=1e-6)
    assert float(get_cosine_schedule_with_warmup(0.1, 10, 20)(25)) > 0  # it rises again, as there


def test_warmup_as_long_as_the_training():
    steps = np.arange(12)
    for make in (get_linear_schedule_with_warmup, get_cosine_with_hard_restarts_schedule_with_warmup):
        np.testing.assert_allclose(make(1.0, 5, 5)(steps)[:5], steps[:5] / 5, rtol=1e-6)
        assert np.isfinite(make(1.0, 5, 5)(steps)).all()
    assert float(get_linear_schedule_with_warmup(1.0, 5, 5)(5)) == 0.0
    # A half-wave of one step, again and again: transformers divides by max(1, 5 − 5).
    np.testing.assert_allclose(get_cosine_schedule_with_warmup(1.0, 5, 5)(np.array([5, 6, 7, 8])), [1.0, 0.0, 1.0, 0.0])


LENGTH_FUNCTIONS = [
    get_linear_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_cosine_with_hard_restarts_schedule_with_warmup,
    get_polynomial_decay_schedule_with_warmup,
]


@pytest.mark.parametrize("make", [*LENGTH_FUNCTIONS, get_inverse_sqrt_schedule, get_wsd_schedule])
def test_traced_numbers(make):
    """The lengths and the rate may be traced: one compilation for a search over them."""
    more = {get_inverse_sqrt_schedule: (), get_wsd_schedule: (5, 31)}.get(make, (31,))
    steps = jnp.arange(60)
    traces = []

    @jax.jit
    def values(base, warmup, more):
        traces.append(None)
        return make(base, warmup, *more)(steps)

    for base, warmup in ((0.3, 7), (0.5, 9)):
        np.testing.assert_allclose(values(base, warmup, more), make(base, warmup, *more)(steps), rtol=2e-6, atol=1e-9)
    assert len(traces) == 1


def test_traced_warmup_of_none_sets_the_timescale():
    values = jax.jit(lambda warmup: get_inverse_sqrt_schedule(1.0, warmup)(10_000))(0)
    np.testing.assert_allclose(values, math.sqrt(0.5), rtol=1e-6)
