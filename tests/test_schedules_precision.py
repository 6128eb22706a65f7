"""The schedules to the last step of a long run, at integers that float32 cannot tell apart, and where they have settled."""

import math
from fractions import Fraction

import jax
import numpy as np
import pytest
from formulas import restarts, wave

from mithril_opt import (
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CosineCyclesLR,
    CosineDecayLR,
    CosineHardRestartsLR,
    CyclicLR,
    ExponentialLR,
    LinearLR,
    LinearWarmupScheduler,
    MultiplicativeLR,
    MultiStepLR,
    OneCycleLR,
    PerEpoch,
    PolynomialDecayLR,
    PolynomialLR,
    SequentialLR,
    StepLR,
    WarmupCosLR,
    WarmupStableDecayLR,
    get_cosine_with_hard_restarts_schedule_with_warmup,
)
from mithril_opt.schedulers.numerics import multiple_divmod


@pytest.mark.parametrize(("gamma", "step"), [(0.99995, 100_000), (0.999999, 5_000_000), (0.5, 120), (0.9, 2000)])
def test_powers_stay_exact_over_long_runs(gamma, step):
    np.testing.assert_allclose(ExponentialLR(1.0, gamma=gamma)(step), gamma**step, rtol=1e-6, atol=1.2e-38)


MILLION = 1_000_000
ALMOST_OVER = [
    (CosineAnnealingLR(1.0, T_max=MILLION), lambda left: wave(1 - left)),
    (CosineDecayLR(1.0, decay_steps=MILLION), lambda left: wave(1 - left)),
    (CosineCyclesLR(1.0, decay_steps=MILLION, num_cycles=2.5), lambda left: wave(1 - 5 * left)),
    (CosineHardRestartsLR(1.0, decay_steps=MILLION, num_cycles=3), lambda left: wave(1 - 3 * left)),
    (CosineAnnealingWarmRestarts(1.0, T_0=MILLION, T_mult=2), lambda left: wave(1 - left)),
    (LinearLR(1.0, start_factor=1.0, end_factor=0.0, total_iters=MILLION), lambda left: left),
    (PolynomialLR(1.0, total_iters=MILLION, power=2.0), lambda left: left**2),
    (LinearWarmupScheduler(MILLION, 1.0, 0.0), lambda left: left),
    (WarmupCosLR(0.0, 1.0, warmup_epochs=0, epochs=MILLION), lambda left: wave(1 - left)),
    (WarmupStableDecayLR(1.0, 0, 0, MILLION, decay_type="linear"), lambda left: left),
    (WarmupStableDecayLR(1.0, 0, 0, MILLION, decay_type="1-sqrt"), lambda left: left / (1 + math.sqrt(1 - left))),
    (OneCycleLR(1.0, MILLION + 1, pct_start=0.0, final_div_factor=1e30), lambda left: wave(1 - left * MILLION / (MILLION + 1))),
]


@pytest.mark.parametrize(("schedule", "closed_form"), ALMOST_OVER)
def test_relative_accuracy_to_the_last_step(schedule, closed_form):
    left = np.resize([1, 2, 3, 10, 1000, 123_456], 160)
    np.testing.assert_allclose(schedule(MILLION - left), [closed_form(n / MILLION) for n in left], rtol=1e-6)


@jax.jit
def warm_restarts(first, multiple, steps):
    return CosineAnnealingWarmRestarts(0.3, first, multiple)(steps)


@jax.jit
@jax.vmap
def divmods(m, n, period):
    return multiple_divmod(m, n, period)


def test_quotient_and_rest_of_a_product_that_exceeds_32_bits():
    """Against Python's integers, mostly where the product lies just below, at or just above a multiple of the period."""
    rng = np.random.default_rng(0)
    triples = []
    for _ in range(3000):
        period, m = int(2 ** rng.uniform(0, 31)), int(10 ** rng.uniform(0, 5))
        n = int(rng.integers(m + 1)) * period // m + int(rng.integers(-1, 3))
        triples.append((m, min(max(n, 0), period - 1), period))
    quotients, rests = divmods(*np.array(triples).T)
    exact = [divmod(m * n, period) for m, n, period in triples]
    assert sum(period - rest <= m for (m, _, period), (_, rest) in zip(triples, exact, strict=True)) > 500
    np.testing.assert_array_equal(np.stack([quotients, rests], axis=1), exact)


@pytest.mark.parametrize("multiple", [1, 2, 3, 5, 1000, 2**30, 2**31 - 1])
@pytest.mark.parametrize("first", [1, 7, 1000, 2**30, 2**31 - 1])
def test_warm_restarts_at_the_integer_boundaries(first, multiple):
    """One step before each of the first cycles starts, at it and one step after it, up to the largest step."""
    starts = [0]
    for i in range(40):
        starts.append(starts[-1] + first * multiple**i)
    steps = np.full(128, 2**31 - 1)
    around = sorted({k for start in starts for k in (start - 1, start, start + 1) if 0 <= k < 2**31})
    steps[: len(around)] = around
    # The walk of the oracle would take too long with many short cycles.
    exact = [restarts(k % first if multiple == 1 else k, first, multiple) for k in steps.tolist()]
    np.testing.assert_allclose(CosineAnnealingWarmRestarts(0.3, first, multiple)(steps), exact, rtol=1e-6, atol=1e-16)
    np.testing.assert_allclose(warm_restarts(first, multiple, steps), exact, rtol=1e-6, atol=1e-16)


def test_a_boundary_that_the_logarithm_misses():
    """T_0 = 1, T_mult = 3, k = 121: log₃(2 · 121 + 1) is 5, and 4.999… in floating point."""
    assert float(CosineAnnealingWarmRestarts(0.5, T_0=1, T_mult=3)(121)) == 0.5


def test_integers_above_the_precision_of_float32_are_told_apart():
    schedule = CosineAnnealingLR(1.0, T_max=2**24)
    assert float(schedule(2**25)) == 1.0
    assert float(schedule(2**25 + 2**24)) == 0.0
    assert float(schedule(2**24 + 1)) > 0.0
    assert float(StepLR(1.0, step_size=2**24 + 1, gamma=0.5)(2**24)) == 1.0
    assert float(LinearWarmupScheduler(2**24 + 2, 1.0, 0.0)(2**24 + 1)) > 0.0
    late = SequentialLR([ConstantLR(1.0, 1.0), StepLR(0.5, 1, 0.5)], [2**30 + 1])
    np.testing.assert_array_equal(late(2**30 + np.arange(3)), [1.0, 0.5, 0.25])


SETTLED = [
    (ConstantLR(0.3, 0.5, 10), 10, 0.3),
    (LinearLR(0.3, 0.1, 0.7, 10), 10, 0.3 * 0.7),
    (PolynomialLR(0.3, 10, 0.5), 10, 0.0),
    (PolynomialDecayLR(0.3, 10, 1e-5), 10, 1e-5),
    (MultiStepLR(0.3, [3, 10], 0.5), 10, 0.075),
    (ExponentialLR(0.3, 0.9), 2000, 0.0),
    (CosineDecayLR(0.3, 10, 0.01), 10, 0.01),
    (CosineHardRestartsLR(0.3, 10, 3), 10, 0.0),
    (OneCycleLR(0.3, 10, div_factor=2.0, final_div_factor=5.0), 9, 0.3 / 2 / 5),
    (OneCycleLR(0.3, 10).momentum_schedule(), 9, 0.95),
    (LinearWarmupScheduler(10, 0.0, 0.3), 10, 0.3),
    (WarmupCosLR(0.01, 0.3, 3, 10), 10, 0.01),
    (WarmupStableDecayLR(0.3, 2, 3, 5, min_lr_ratio=0.5), 10, 0.15),
    (PerEpoch(LinearWarmupScheduler(5, 0.0, 0.3), 2), 10, 0.3),
    (get_cosine_with_hard_restarts_schedule_with_warmup(0.3, 2, 10), 10, 0.0),
]


@pytest.mark.parametrize(("schedule", "settled", "value"), SETTLED)
def test_exact_where_it_has_settled(schedule, settled, value):
    steps = np.resize([settled, settled + 1, 1000 + settled, 2**24 + 1, 2**30 + 7, 2**31 - 2, 2**31 - 1], 160)
    values = np.asarray(schedule(steps))
    np.testing.assert_allclose(values, value, rtol=1.2e-7)
    assert len(np.unique(values)) == 1


@pytest.mark.parametrize("cycles", [0.5, 0.7, 0.75, 1 / 3, 7.123456, 1e-3, 123.456])
@pytest.mark.parametrize("period", [1, 10, 123_457, 2**30])
def test_any_number_of_waves_up_to_the_last_step(cycles, period):
    steps = np.unique(np.r_[np.geomspace(1, 2**31 - 1, 60).astype(np.int64), 2**31 - 1, 10_000_001])
    exact = [0.5 * (1 + math.cos(2 * math.pi * float(Fraction(cycles) * int(n) / period % 1))) for n in steps]
    waves = jax.jit(lambda schedule: schedule(steps))(CosineCyclesLR(1.0, period, cycles))
    np.testing.assert_allclose(waves, exact, atol=3e-6 + 2e-15 * cycles * 2**31 / period * 30)


@pytest.mark.parametrize("mode", ["triangular", "triangular2", "exp_range"])
@pytest.mark.parametrize(("base", "peak"), [(0.97, 1e-7), (1e-7, 0.97), (1e-12, 1e3), (0.0, 1.0), (1.0, 0.0)])
def test_a_cycle_between_rates_many_decades_apart(mode, base, peak):
    gamma, up, down, steps = 0.9999, 5, 8, np.arange(80)
    cycle, place = np.divmod(steps, up + down)
    factor = {"triangular": 1.0, "triangular2": 0.5**cycle, "exp_range": gamma**steps}[mode]
    height = np.where(place < up, place / up, (up + down - place) / down)
    exact = [float(Fraction(base) + (Fraction(peak) - Fraction(base)) * Fraction(a)) for a in factor * height]
    values = CyclicLR(base, peak, step_size_up=up, step_size_down=down, mode=mode, gamma=gamma)(steps)
    np.testing.assert_allclose(values, exact, rtol=3e-6, atol=0)


GROWING = {
    "step": lambda rate, gamma: StepLR(rate, 19, gamma),
    "exponential": lambda rate, gamma: ExponentialLR(rate, gamma),
    "multi-step": lambda rate, gamma: MultiStepLR(rate, [1] * 30, gamma**400),
    "cyclic": lambda rate, gamma: CyclicLR(0.0, rate, step_size_up=4, mode="exp_range", gamma=gamma),
    "chained": lambda rate, gamma: ChainedScheduler([ExponentialLR(rate, gamma), ExponentialLR(1.0, gamma)]),
    "multiplicative": lambda rate, gamma: MultiplicativeLR(rate, lambda step: 1.01),
}


@pytest.mark.parametrize("name", GROWING)
@pytest.mark.parametrize("rate", [1e-3, 3.0, 1e30])
def test_growth_saturates_with_finite_derivatives_whatever_the_base_rate(name, rate):
    make = GROWING[name]
    steps = np.unique(np.geomspace(1, 2**31 - 1, 40).astype(np.int64))
    values = make(rate, 1.01)(steps)
    assert np.isfinite(values).all()
    assert np.max(np.abs(values)) > 1e37
    for step in (0, 3, 8000, 8700, 8900, 9000, 165_000, 169_000, 2**31 - 1):
        slopes = jax.grad(lambda rate, gamma, k=step: make(rate, gamma)(k), argnums=(0, 1))(rate, 1.01)
        assert np.isfinite(slopes).all()
