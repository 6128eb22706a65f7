"""Schedules at the edges of their numbers: narrow steps, factors of 0 and above 1, cycles as long as int32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo import SCHEDULES, often_halving

from mithril_opt import CyclicLR, ExponentialLR, LinearWarmupScheduler, MultiplicativeLR, MultiStepLR, ReduceLROnPlateau, StepLR

NARROW = ["int4", "int8", "uint8", "int16", "uint16", "uint32"]


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("name", ["step", "warmup-cosine", "one-cycle", "per-epoch"])
def test_steps_of_any_integer_dtype(name, dtype):
    schedule = SCHEDULES[name]()
    assert float(schedule(jnp.asarray(5, dtype))) == float(schedule(5))
    if dtype != "int4":
        assert float(schedule(np.dtype(dtype).type(5))) == float(schedule(5))


def test_vectors_of_narrow_steps():
    rates = jax.vmap(LinearWarmupScheduler(10, 0.0, 1.0))(jnp.arange(3, dtype=jnp.int16))
    np.testing.assert_allclose(rates, [0, 0.1, 0.2], rtol=1e-6)


def test_steps_beyond_any_integer():
    assert float(StepLR(0.5, step_size=1, gamma=0.5)(2**70)) == 0
    assert float(StepLR(0.5, step_size=1, gamma=0.5)(-(2**70))) == 0.5


def test_a_product_under_64_bits():
    with jax.enable_x64(True):
        np.testing.assert_allclose(MultiplicativeLR(0.5, often_halving)(9), 0.125, rtol=1e-6)


@pytest.mark.parametrize(
    "schedule",
    [
        lambda zero: ExponentialLR(0.5, gamma=zero),
        lambda zero: StepLR(0.5, step_size=3, gamma=zero),
        lambda zero: MultiStepLR(0.5, milestones=[3], gamma=zero),
        lambda zero: CyclicLR(0.1, 0.5, step_size_up=5, mode="exp_range", gamma=zero),
        lambda zero: ReduceLROnPlateau(0.5, factor=zero),
    ],
)
@pytest.mark.parametrize("step", [0, 1, 7])
def test_derivatives_at_a_factor_of_zero(schedule, step):
    for derivative in (jax.grad, jax.jacfwd):
        assert np.isfinite(derivative(lambda zero: schedule(zero)(step))(0.0))


@pytest.mark.parametrize("base_lr", [0.0, 0.1])
@pytest.mark.parametrize("make", [lambda lr: ExponentialLR(lr, gamma=1.5), lambda lr: StepLR(lr, step_size=1, gamma=2.0)])
def test_growth_without_end_stays_finite(make, base_lr):
    for rate in (make(base_lr)(2**20), jax.jit(lambda schedule: schedule(2**31 - 1))(make(base_lr))):
        assert np.isfinite(rate)
        assert float(rate) > 1e30 or base_lr == 0
    assert np.isfinite(jax.grad(lambda rate: make(rate)(2**20))(base_lr))


@pytest.mark.parametrize("step", [0, 1, 50, 200, 219, 236, 2**20, 2**31 - 1])
def test_derivative_by_a_factor_above_one(step):
    """1e-3 · 1.5²³⁵ is the last value that is a float32."""
    slope = jax.grad(lambda gamma: ExponentialLR(1e-3, gamma=gamma)(step))(1.5)
    expected = step * 1e-3 * 1.5 ** (step - 1) if step <= 235 else 0.0
    np.testing.assert_allclose(slope, expected, rtol=1e-4)


def test_a_cycle_fits_int32():
    assert float(CyclicLR(0.1, 0.5, step_size_up=2**30, step_size_down=2**30 - 1)(2**30)) == 0.5
    with pytest.raises(ValueError, match=r"a cycle must be shorter than 2³¹ steps, got 2147483648"):
        CyclicLR(0.1, 0.5, step_size_up=2**30)
